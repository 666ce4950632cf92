"""The built-in data: the same bytes always, and exactly the cues that it says."""

import hashlib
import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lrc.data import Images
from lrc.data.shapes import SHAPES, shapes
from lrc.utils.errors import InputError


def _digest(images: Images) -> str:
    return hashlib.sha256(images.x.contiguous().numpy().tobytes() + images.y.numpy().tobytes()).hexdigest()[:16]


def _nearest_mean(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """The class whose mean is nearest: a linear classifier without parameters to choose."""
    onehot = F.one_hot(labels).float()
    means = onehot.T @ train.flatten(1) / onehot.sum(0)[:, None]
    return torch.cdist(test.flatten(1), means).argmin(1)


def test_same_bytes_on_every_machine() -> None:
    assert _digest(shapes("test", n=64)) == "6541cb35cc541eb0"
    assert _digest(shapes("test", n=64, cues="thin", difficulty=2.0, pattern=0, seed=5)) == "dab252435a6f069e"


def test_default_type_and_global_seed_do_not_matter() -> None:
    expected = shapes(n=16).x
    state = torch.random.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(shapes(n=16).x, expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("n", [1, 16, 255, 256, 300])
def test_smaller_n_is_a_prefix(n: int) -> None:
    many, few = shapes(n=300), shapes(n=n)
    assert len(few) == n
    assert torch.equal(few.x, many.x[:n]) and torch.equal(few.y, many.y[:n])


def test_splits_and_seeds_share_no_image() -> None:
    streams = [shapes(split, n=256, seed=seed) for split in ("train", "validation", "test") for seed in (0, 1)]
    everything = torch.cat([images.x.flatten(1) for images in streams])
    assert len(everything.unique(dim=0)) == len(everything) == 6 * 256


def test_shape_type_range_and_layout() -> None:
    images = shapes(n=32, size=24, pattern=16)
    assert images.x.shape == (32, 3, 24, 24) and images.x.dtype == torch.uint8
    assert images.x.is_contiguous(memory_format=torch.channels_last)
    assert images.x.min() < 60 and images.x.max() > 190
    assert images.hierarchy is SHAPES and images.classes == SHAPES.classes
    assert SHAPES.groups() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]


def test_default_numbers_of_images() -> None:
    assert [len(shapes(split, size=8)) for split in ("train", "validation", "test")] == [4800, 800, 1600]


def test_classes_are_balanced_in_every_sixteen() -> None:
    y = shapes(n=512).y.view(-1, 16)
    assert torch.equal(y.sort(1).values, torch.arange(16).expand(32, 16))
    assert len(y.unique(dim=0)) > 1


def _body_hue(images: Images) -> Tensor:
    """Of each class the mean of what its images paint on the scene, as a unit vector without the grey part."""
    means = torch.stack([images.float((images.y == k).nonzero()[:, 0]).mean((0, 2, 3)) for k in range(16)]).double()
    chroma = means - means.mean(1, keepdim=True)
    return F.normalize(chroma - chroma.mean(0), dim=1)


def test_the_palette_decides_which_classes_share_their_colours() -> None:
    """By superclass those of a house, by kind the first house, tree, fish and car; the other sharing is then gone."""
    y = torch.arange(16)
    others = ~torch.eye(16, dtype=torch.bool)
    same = {"superclass": (y[:, None] // 4 == y // 4) & others, "kind": (y[:, None] % 4 == y % 4) & others}
    for palette, other in (("superclass", "kind"), ("kind", "superclass")):
        hue = _body_hue(shapes(n=3200, palette=palette))
        alike = hue @ hue.T
        assert alike[same[palette]].mean() > 0.7 > 0.2 > alike[same[other]].mean()


def test_without_a_palette_classes_have_no_colour() -> None:
    def spread(palette: str) -> float:
        images = shapes(n=3200, palette=palette)
        means = torch.stack([images.float((images.y == k).nonzero()[:, 0]).mean((0, 2, 3)) for k in range(16)])
        return float((means - means.mean(1, keepdim=True)).std(0).norm())

    assert spread("none") < 0.25 * spread("superclass")


def test_a_palette_changes_hues_alone() -> None:
    """Scenes stay: where no part is painted in body or accent, not a pixel differs."""
    first, other = shapes(n=256), shapes(n=256, palette="kind")
    same = (first.y // 4) == (first.y % 4)
    assert torch.equal(first.x[same], other.x[same]) and torch.equal(first.y, other.y)
    changed = (first.x[~same] != other.x[~same]).any(1).float().mean((1, 2))
    assert 0.02 < changed.min() and changed.max() < 0.8


def test_pattern_is_added_and_nothing_else_changes() -> None:
    plain = shapes(n=256, pattern=0)
    for amplitude in (1, 3, 16):
        change = shapes(n=256, pattern=amplitude).x.int() - plain.x.int()
        assert torch.equal(change.abs(), torch.full_like(change, amplitude))
        same = [change[plain.y == c].unique(dim=0) for c in range(16)]
        assert all(len(s) == 1 for s in same), "a class has more than one pattern"
        rows = torch.cat(same).flatten(1).float()
        assert torch.equal(rows @ rows.T, amplitude**2 * 3072 * torch.eye(16))
        assert torch.equal(F.avg_pool2d(torch.cat(same).float(), 4, 1), torch.zeros(16, 3, 29, 29))


def test_pattern_alone_gives_the_class_away() -> None:
    """A linear probe of pixels finds it at 3/255, and finds nothing like it without or after a blur."""
    probe = (shapes(n=16, pattern=1).x.float() - shapes(n=16, pattern=0).x.float())[shapes(n=16).y.argsort()]

    def found(pattern: int, blur: bool) -> float:
        images = shapes("test", n=320, pattern=pattern)
        x = images.float()
        x = F.avg_pool2d(x, 4, 1) if blur else x
        kernel = F.avg_pool2d(probe, 4, 1) if blur else probe
        return ((x.flatten(1) @ kernel.flatten(1).T).argmax(1) == images.y).float().mean().item()

    assert found(3, blur=False) > 0.99
    assert found(0, blur=False) < 0.2
    assert found(3, blur=True) < 0.2


def _subclass_accuracy(cues: str, blur: int) -> float:
    """Of nearest means of blurred images among the four subclasses, the superclass given, without the pattern."""
    options: dict[str, Any] = {"cues": cues, "pattern": 0, "difficulty": 0.5}
    train, test = (shapes(split, n=800, **options) for split in ("train", "test"))
    right = 0
    for group in SHAPES.groups():
        a, b = train.select(group), test.select(group)
        predicted = _nearest_mean(F.avg_pool2d(a.float(), blur), a.y, F.avg_pool2d(b.float(), blur))
        right += int((predicted == b.y).sum())
    return right / len(test)


def test_robust_cue_survives_a_blur() -> None:
    assert _subclass_accuracy("robust", blur=4) > 0.5


def test_thin_cue_does_not() -> None:
    assert abs(_subclass_accuracy("thin", blur=4) - 0.25) < 0.07


def _direction(images: Images) -> Tensor:
    """Power at the period of the stripes for each of their four directions, the images being windowed."""
    axis = torch.arange(32.0) - 15.5
    angle = torch.tensor([0.0, 30, -30, 60, -60, 90]).deg2rad()
    phase = 2 * torch.pi / 4 * (angle.cos()[:, None, None] * axis - angle.sin()[:, None, None] * axis[:, None])
    window = torch.exp(-(axis**2 + axis[:, None] ** 2) / 100)
    x = images.x.float().mean(1)
    x = (x - x.mean((1, 2), keepdim=True)) * window
    power = torch.einsum("nhw,khw->nk", x.to(torch.cfloat), torch.polar(torch.ones_like(phase), phase)).abs()
    return torch.stack([power[:, 0], power[:, 1:3].amax(1), power[:, 3:5].amax(1), power[:, 5]], 1)


def test_stripes_tell_the_subclass_by_their_direction() -> None:
    thin, robust = (shapes("test", n=640, cues=cues, pattern=0, difficulty=0.5) for cues in ("thin", "robust"))
    accuracy = [(_direction(images).argmax(1) == images.y % 4).float().mean() for images in (thin, robust)]
    assert accuracy[0] > 0.6 > 0.35 > accuracy[1]


def test_thin_changes_an_image_by_the_stripes_alone_where_the_form_is_its_own() -> None:
    """Scenes stay: of the images whose random form is the class's own, none moves by more than 8 levels or so."""
    a, b = (shapes(n=640, pattern=0, difficulty=0.0, cues=cues).x.int() for cues in ("robust", "thin"))
    moved = (a - b).abs().flatten(1).amax(1)
    own = (moved <= 8).float().mean()
    assert 0.2 < own < 0.3


def test_difficulty_brings_clutter_and_noise() -> None:
    def roughness(difficulty: float) -> float:
        corner = shapes(n=256, pattern=0, difficulty=difficulty).x.float()[:, :, :6, :6]
        return (corner.diff(dim=-1) ** 2).mean().sqrt().item()

    assert roughness(0.0) < 2 < roughness(0.5) < roughness(1.0) < roughness(2.0)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"split": "tset"}, "train, validation, test"),
        ({"cues": "weak"}, "robust, thin"),
        ({"n": 0}, "n is 0"),
        ({"size": 4}, "size is 4"),
        ({"difficulty": -0.1}, "difficulty is -0.1"),
        ({"difficulty": float("nan")}, "difficulty is nan"),
        ({"pattern": 17}, "pattern is 17"),
        ({"pattern": -1}, "expected a whole number, 0 to 16"),
    ],
)
def test_bad_arguments(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        shapes(**options)
    assert "\n" not in str(caught.value)


def test_ten_thousand_images_in_five_seconds_of_one_core() -> None:
    def seconds() -> float:
        start = time.process_time()
        shapes(n=1280)
        return time.process_time() - start

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert min(seconds() for _ in range(3)) * 10000 / 1280 < 5
    finally:
        torch.set_num_threads(threads)
