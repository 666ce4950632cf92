"""Accuracy against counting by hand."""

from functools import partial

import pytest
import torch
from torch import Generator, nn

from lrc.attacks import pgd
from lrc.data import Images
from lrc.evaluation import accuracy, logits
from lrc.utils.errors import InputError


class Brightest(nn.Module):
    """The class is the brightest channel."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x.mean((2, 3))


@pytest.fixture
def images():
    g = Generator().manual_seed(0)
    return Images(
        torch.randint(0, 256, (37, 3, 8, 8), generator=g).to(torch.uint8), torch.arange(37) % 3, ("r", "g", "b")
    )


@pytest.mark.parametrize("batch_size", [1, 10, 37, 500])
def test_accuracy_is_the_fraction_right(images, batch_size):
    by_hand = sum(int(x.float().mean((1, 2)).argmax() == y) for x, y in zip(images.x, images.y, strict=True)) / 37
    assert accuracy(Brightest(), images, batch_size=batch_size) == by_hand


class Overflowing(nn.Module):
    """No number for every image; the largest by argmax is then the first class."""

    def forward(self, x):
        return Brightest()(x) * torch.nan


def test_logits_that_are_no_numbers_are_right_of_no_image(images):
    assert accuracy(Overflowing(), images) == 0


def test_logits_keep_the_order(images):
    torch.testing.assert_close(logits(Brightest(), images, batch_size=10), images.float().mean((2, 3)))


def test_the_attack_is_applied(images):
    attack = partial(pgd, eps=1.0, steps=20)
    assert accuracy(Brightest(), images, attack=attack, generator=Generator().manual_seed(0)) == 0


def test_no_images_are_named(images):
    with pytest.raises(InputError, match="no images"):
        accuracy(Brightest(), images.subset(0))


def test_the_model_is_left_as_it_was(images):
    model = Brightest().train()
    accuracy(model, images)
    assert model.training and model.scale.requires_grad
