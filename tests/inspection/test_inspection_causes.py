"""Usual causes of few right answers, each tried on a network where it is the cause."""

import pytest
import torch
from torch import Tensor, nn

from lrc import Images
from lrc.inspection import inspect
from lrc.inspection.causes import USUAL, likely_cause, tried
from lrc.models import Normalize

LEVELS = torch.tensor([10, 50, 100, 160, 220, 250])  # of red, by class; green and blue say nothing
CLASSES = tuple("abcdef")


@pytest.fixture(scope="module")
def data() -> Images:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % len(LEVELS)
    x = torch.full((120, 3, 8, 8), 128)
    x[:, 0] = LEVELS[y][:, None, None]
    noise = torch.randint(-4, 5, x.shape, generator=generator)
    return Images((x + noise).clamp(0, 255).byte(), y, CLASSES)


class Nearest(nn.Module):
    """The class whose level is nearest to the mean red, of images that were made z = (x - mean) / std before."""

    def __init__(self, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), *, channel=0, order=range(6)):
        super().__init__()
        self.mean, self.std, self.channel = mean[channel], std[channel], channel
        self.register_buffer("levels", LEVELS[list(order)] / 255)

    def forward(self, z: Tensor) -> Tensor:
        red = z[:, self.channel].mean((1, 2)) * self.std + self.mean
        return -100 * (red[:, None] - self.levels) ** 2


CIFAR = USUAL["CIFAR-10"]
CASES = {
    "normalization is missing, that of ImageNet": Nearest(*USUAL["ImageNet"]),
    "normalization is missing, that of CIFAR-10": Nearest(*CIFAR),
    "images are normalized twice": nn.Sequential(Normalize(*CIFAR), nn.Sequential(Normalize(*CIFAR), Nearest(*CIFAR))),
    "normalization is another, that of [-1, 1]": nn.Sequential(Normalize(*CIFAR), Nearest(*USUAL["[-1, 1]"])),
    "it takes channels in the order blue, green, red": Nearest(channel=2),
    "it takes images in 0..255": Nearest((0.0,) * 3, (1 / 255,) * 3),
    "classes are in another order": Nearest(order=[3, 4, 5, 0, 1, 2]),
}


@pytest.mark.parametrize("cause", CASES)
def test_the_cause_is_named_where_it_is_the_cause(data, cause):
    found = inspect(CASES[cause], data, masking=False, local=2)
    assert found.verdict.word == "undecided" or "normal" in cause
    best = likely_cause(found.tried)
    assert best is not None and best.accuracy.value == 1
    assert best.what == cause or "CIFAR-10" in cause  # whose means are those of ImageNet, nearly
    assert any(best.what in text for text in (*found.notes, *found.verdict.reasons))
    assert "Why it may be right on few images" in found.to_html() and cause in found.to_json()


def test_no_cause_is_named_for_a_right_network_nor_for_guesses(data):
    right = inspect(Nearest(), data, masking=False, local=2)
    assert likely_cause(right.tried) is None and not any("perhaps" in note for note in right.notes)
    guesses = torch.randint(0, 6, (len(data),), generator=torch.Generator().manual_seed(1))

    class Guess(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot((x.flatten(1).sum(1) * 1e4).long() % 6, 6).float()

    assert likely_cause(tried(Guess(), data, guesses)) is None


def test_the_order_of_classes_is_judged_on_other_images_than_it_is_fitted_on(data):
    """Fitted and judged on the same guesses, the best order would look better than chance."""
    gains = []
    for seed in range(40):
        guesses = torch.randint(0, 6, (len(data),), generator=torch.Generator().manual_seed(seed))
        found = next(t for t in tried(Nearest(), data, guesses, images=1) if "order" in t.what and "class" in t.what)
        gains.append(found.accuracy.value - found.before.value)
        assert found.accuracy.count == len(data) // 2
    assert abs(sum(gains) / len(gains)) < 0.04  # 60 images each: three standard errors are 0.03
