"""Colour variants of images: by hand on single pixels, and by what they must leave as it is."""

from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from lrc.data import COLOURS, Images, class_means, named, recoloured, shapes
from lrc.utils.errors import InputError


def _images(x: Tensor, y: list[int] | None = None) -> Images:
    labels = torch.zeros(len(x), dtype=torch.int64) if y is None else torch.tensor(y)
    return Images(x.to(torch.uint8), labels, ("first", "second"))


def _noise(n: int, size: int = 8, seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    return _images(torch.randint(256, (n, 3, size, size), generator=generator), [i % 2 for i in range(n)])


def test_class_means_by_hand() -> None:
    x = torch.zeros(3, 3, 2, 2)
    x[0, 0], x[1, 0, 0, 0], x[2, 2] = 51, 255, 102
    means = class_means(_images(x, [0, 0, 1]))
    assert torch.allclose(means[0, 0], torch.tensor([[0.6, 0.1], [0.1, 0.1]]))
    assert torch.allclose(means[1], torch.tensor([0.0, 0.0, 0.4])[:, None, None].expand(3, 2, 2))


def test_class_means_are_those_of_all_images_at_once() -> None:
    images = shapes(n=2400, size=8)  # more than are looked at at a time
    expected = torch.stack([images.float()[images.y == k].double().mean(0) for k in range(16)])
    assert torch.allclose(class_means(images).double(), expected, atol=1e-6)


def test_a_class_without_images_has_no_mean() -> None:
    with pytest.raises(InputError, match="'second' has no images"):
        class_means(_images(torch.zeros(2, 3, 2, 2)))


def test_grey_is_what_pillow_makes_of_it() -> None:
    from PIL import Image

    x = _noise(4).x
    ours = recoloured(_images(x), "grey").x
    theirs = torch.stack(
        [torch.tensor(list(Image.fromarray(i.permute(1, 2, 0).numpy()).convert("L").tobytes())) for i in x]
    ).view(4, 8, 8)
    assert torch.equal(ours[:, 0], ours[:, 1]) and torch.equal(ours[:, 0], ours[:, 2])
    assert (ours[:, 0].int() - theirs).abs().max() <= 1


def test_centred_images_have_one_mean_colour() -> None:
    dull = _images(_noise(6).x // 4 + torch.tensor([10, 60, 120])[:, None, None])  # far from 0 and 255: nothing clips
    centred = recoloured(dull, "centred").x.float()
    assert (centred.mean((2, 3)) - 127.5).abs().max() < 0.5
    before = dull.x.float() - dull.x.float().mean((2, 3), keepdim=True)
    assert (centred - 127.5 - before).abs().max() <= 0.5 + 1e-4


def test_scrambled_images_are_one_of_forty_eight_each() -> None:
    images = _noise(960)
    scrambled = recoloured(images, "scrambled").x
    found = torch.full((960,), -1)
    for k, (order, flips) in enumerate(product(permutations(range(3)), product((False, True), repeat=3))):
        x = images.x[:, list(order)]
        made = torch.where(torch.tensor(flips)[:, None, None], 255 - x, x)
        found[(made == scrambled).flatten(1).all(1)] = k
    counts = found.bincount(minlength=48)
    assert found.min() >= 0
    assert ((counts - 20) ** 2 / 20).sum() < 82.7  # chi-square of 47 degrees of freedom: one in a thousand is above


def test_scrambling_leaves_class_means_next_to_nothing() -> None:
    images = shapes(n=3200)
    before, after = (class_means(some) for some in (images, recoloured(images, "scrambled")))
    assert (after - after.mean(0)).norm() < 0.35 * (before - before.mean(0)).norm()


def test_equalised_classes_have_one_mean() -> None:
    images = _images(_noise(400).x // 4 + 90, [i % 2 for i in range(400)])
    images.x[images.y == 1] += 20
    means = class_means(recoloured(images, "equalised")) * 255
    assert (means[0] - means[1]).abs().max() <= 1  # each image is rounded
    assert (class_means(images)[1] - class_means(images)[0]).mean() * 255 > 15


def test_equalised_by_other_images() -> None:
    """Moved by what the class means of those differ, not by one's own."""
    flat = _images(torch.full((2, 3, 2, 2), 100), [0, 1])
    like = _images(torch.stack([torch.full((3, 2, 2), 50), torch.full((3, 2, 2), 70)]), [0, 1])
    assert recoloured(flat, "equalised", like=like).x[:, 0, 0, 0].tolist() == [110, 90]


@pytest.mark.parametrize("colour", COLOURS)
def test_an_image_is_recoloured_alike_in_whatever_company(colour: str) -> None:
    images = shapes(n=64)
    some = torch.tensor([63, 5, 17])
    whole = recoloured(images, colour)
    assert torch.equal(whole.subset(some).x, recoloured(images.subset(some), colour, like=images).x)
    assert torch.equal(whole.y, images.y) and whole.hierarchy is images.hierarchy
    assert whole.x.is_contiguous(memory_format=torch.channels_last)


def test_by_name_class_means_are_those_of_the_training_images() -> None:
    test = named("shapes", "test", n=64, colour="equalised")
    expected = recoloured(shapes("test", n=64), "equalised", like=shapes("train", n=64))
    assert torch.equal(test.x, expected.x)
    assert torch.equal(
        named("shapes", "test", n=64, colour="grey", labels="superclasses").x.float().std(1).max(), torch.tensor(0.0)
    )


def test_what_cannot_be_recoloured_is_refused() -> None:
    with pytest.raises(InputError, match="no colour is called 'red'; there are .*grey"):
        recoloured(_noise(2), "red")
    grey = Images(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), ("one",))
    with pytest.raises(InputError, match="three channels"):
        recoloured(grey, "grey")
