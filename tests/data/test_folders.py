"""Images in folders: the same as the same images kept whole, whatever is asked of them."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from lrc.attacks import pgd
from lrc.data import Images, batches, folder
from lrc.evaluation import accuracy
from lrc.hierarchy import Hierarchy, Level
from lrc.models import resnet8
from lrc.training import train
from lrc.training.objectives import adversarial
from lrc.utils.errors import InputError

NAMES = ("cat", "cow", "owl")
GROUPS = Hierarchy(NAMES, (Level("kind", ("beast", "bird"), (0, 0, 1)),), "the tests")


@pytest.fixture
def path(tmp_path):
    """Twelve images of noise a class, without loss, of the size that they are read in."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / name / f"{i:02}.png")
    return tmp_path


def whole(path) -> Images:
    """The same images in memory."""
    pixels = [np.asarray(Image.open(file)) for name in NAMES for file in sorted((path / name).iterdir())]
    images = Images.from_arrays(pixels, [i for i in range(3) for _ in range(12)], NAMES, hierarchy=GROUPS)
    return images.subset(torch.randperm(36, generator=Generator().manual_seed(0)))


def equal(a, b) -> bool:
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


def test_a_folder_holds_what_is_in_it(path):
    found = folder(path, size=32, hierarchy=GROUPS, workers=0)
    assert str(found) == "Folder(36 of 3x32x32, 3 classes)"
    assert found.classes == NAMES and found.hierarchy == GROUPS
    assert torch.equal(found.float(), whole(path).float()) and torch.equal(found.y, whole(path).y)
    assert torch.equal(found.float([7, 3]), whole(path).float([7, 3]))


def test_the_first_images_are_of_all_classes(path):
    first = folder(path, size=32, workers=0).subset(12)
    assert first.y.bincount(minlength=3).min() >= 2
    assert torch.equal(first.y, folder(path, size=32, workers=0).y[:12])  # the same ones every time


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"shuffle": True, "augment": True}, {"shuffle": True, "skip": 2},
                                     {"drop_last": True, "share": (1, 2)}])  # fmt: skip
def test_the_batches_are_those_of_the_images_in_memory(path, workers, options):
    images, files = whole(path), folder(path, size=32, workers=workers)
    state = torch.get_rng_state()
    got, expected = (
        list(batches(some, 5, generator=Generator().manual_seed(4), **options)) for some in (files, images)
    )
    assert equal(got, expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in got)


@pytest.mark.parametrize("kept", [lambda path: folder(path, size=32, workers=0), whole])
def test_shares_of_a_batch_make_up_the_batch(path, kept):
    """As processes take them; with a last batch of one image, of which there is nothing for the second."""
    options = {"shuffle": True, "augment": True}

    def taken(**more):
        return list(batches(kept(path), 7, generator=Generator().manual_seed(3), **options, **more))

    for (x, y), *shares in zip(taken(), taken(share=(0, 2)), taken(share=(1, 2)), strict=True):
        for i, (part, labels) in enumerate(shares):
            assert torch.equal(part, x[i::2]) and torch.equal(labels, y[i::2])
    assert equal(taken(skip=4), taken()[4:]) and taken(skip=9) == []


@pytest.mark.parametrize(
    "part",
    [
        lambda images: images.subset(5),
        lambda images: images.subset([3, 30, 4]),
        lambda images: images.subset(images.y == 1),
        lambda images: images.select(["owl", "cat"]),
        lambda images: images.split(9)[0],
        lambda images: images.split(9)[1].split(4, seed=1)[1].to("cpu"),
    ],
)
def test_parts_are_the_same_parts(path, part):
    got, expected = part(folder(path, size=32, hierarchy=GROUPS, workers=0)), part(whole(path))
    assert torch.equal(got.float(), expected.float()) and torch.equal(got.y, expected.y)
    assert (got.classes, got.hierarchy) == (expected.classes, expected.hierarchy)
    assert equal(batches(got, 2), batches(expected, 2))


def test_training_and_accuracy_are_the_same(path):
    results = []
    for images in (whole(path), folder(path, size=32, hierarchy=GROUPS, workers=1)):
        rest, held = images.split(9)
        model = resnet8(3, width=4, generator=Generator().manual_seed(0))
        metrics = train(model, rest, partial(adversarial, steps=1), epochs=2, batch_size=8, validation=held)
        attack = partial(pgd, eps=0.1, steps=2)
        results.append(([m["loss"] for m in metrics], accuracy(model, images, attack=attack, generator=Generator())))
    assert results[0] == results[1]


def test_images_of_any_kind_and_size_become_square_and_coloured(tmp_path):
    (tmp_path / "a").mkdir()
    wide = np.zeros((10, 40, 3), dtype=np.uint8)
    wide[:, 12:28, 0] = 255  # its middle is red, and a little more
    Image.fromarray(wide).save(tmp_path / "a" / "1.png")
    Image.fromarray(np.full((30, 20), 128, dtype=np.uint8)).save(tmp_path / "a" / "2.png")
    Image.new("RGBA", (8, 8), (0, 255, 0, 255)).save(tmp_path / "a" / "3.png")
    found = folder(tmp_path, size=5, workers=0)
    x = found.float(found.rows.argsort())  # as the files are sorted
    assert x.shape == (3, 3, 5, 5)
    assert torch.equal(x[0], torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 5, 5))
    assert torch.equal(x[1], torch.full((3, 5, 5), 128 / 255))
    assert torch.equal(x[2], torch.tensor([0, 1.0, 0]).view(3, 1, 1).expand(3, 5, 5))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_line(path, workers):
    damaged = path / "cow" / "03.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(InputError, match=r"cow/03\.png cannot be decoded \(.+\): replace or remove it") as caught:
        list(batches(folder(path, size=32, workers=workers), 8))
    assert "\n" not in str(caught.value)


def test_pixels_are_never_given_out_unread(path):
    """Whoever asks for them elsewhere gets an error, not an image of zeros."""
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        folder(path, size=32).x.float().sum().item()


def test_folders_without_images_are_named(tmp_path, path):
    with pytest.raises(InputError, match="nowhere holds no images"):
        folder(tmp_path / "nowhere", size=32)
    (path / "empty").mkdir()
    with pytest.raises(InputError, match="no images in one folder for each class.*empty"):
        folder(path, size=32)
    with pytest.raises(InputError, match="side 0"):
        folder(path, size=0)


def test_two_folders_are_joined_with_their_files(path):
    first, second = folder(path, size=32, hierarchy=GROUPS).subset([3, 20]), folder(path, size=32, hierarchy=GROUPS)
    both = first.joined(second)
    assert len(both) == 38 and torch.equal(both.float(), torch.cat([first.float(), second.float()]))
    assert torch.equal(both.y, torch.cat([first.y, second.y]))
    assert torch.equal(both.subset([1, 2, 37]).float(), torch.stack([first.float()[1], *second.float()[[0, 35]]]))
    with pytest.raises(InputError, match="differ in kind, size or classes: they cannot be joined"):
        first.joined(whole(path))
