"""BREEDS: the table against what is published, and small folders in the place of ImageNet."""

import hashlib
import re

import pytest
import torch
from PIL import Image
from torchvision.models import ResNet50_Weights

from lrc.data import as_superclasses, batches
from lrc.data.breeds import BREEDS, _classes, breeds
from lrc.utils.errors import InputError

IMAGENET = [*ResNet50_Weights.IMAGENET1K_V1.meta["categories"]]
PARTS = ("source", "target")
LIVING17 = {  # numbers of the classes in ImageNet, as the authors' notebook prints them
    "salamander": ((27, 29), (26, 28)),
    "turtle": ((37, 34), (33, 35)),
    "lizard": ((41, 44), (47, 38)),
    "snake": ((60, 57), (65, 61)),
    "spider": ((76, 72), (74, 77)),
    "grouse": ((81, 83), (82, 80)),
    "parrot": ((88, 90), (87, 89)),
    "crab": ((118, 120), (119, 121)),
    "dog": ((163, 154), (257, 157)),
    "wolf": ((272, 271), (270, 269)),
    "fox": ((280, 279), (277, 278)),
    "domestic cat": ((282, 285), (283, 284)),
    "bear": ((297, 295), (296, 294)),
    "beetle": ((305, 306), (302, 303)),
    "butterfly": ((325, 321), (324, 322)),
    "ape": ((368, 365), (366, 367)),
    "monkey": ((377, 380), (381, 379)),
}


def number(name: str) -> int:
    """Of a class in ImageNet, which has two cranes: the bird's number is 134."""
    return 134 if name == "crane" else IMAGENET.index(name)


@pytest.fixture
def imagenet(tmp_path):
    """The classes of Living-17's source with two images each, of a grey that tells the class and the image."""
    ids, _ = _classes("living17", "source")
    for split in ("train", "val"):
        for i, wnid in enumerate(ids):
            (tmp_path / split / wnid).mkdir(parents=True)
            for j in range(2):
                Image.new("RGB", (12, 10), (i, j, split == "val")).save(tmp_path / split / wnid / f"{wnid}_{j}.png")
    (tmp_path / "train" / "n01440764").mkdir()  # empty, which nobody notices who does not look into it
    return tmp_path


@pytest.mark.parametrize("name", BREEDS)
def test_superclasses_have_halves_of_equal_size(name):
    (source, here), (target, there) = (_classes(name, part) for part in PARTS)
    superclasses, half = {"entity13": (13, 10), "entity30": (30, 4), "living17": (17, 2), "nonliving26": (26, 2)}[name]
    assert here.levels[0].names == there.levels[0].names and len(set(here.levels[0].names)) == superclasses
    assert here.levels[0].of == there.levels[0].of == tuple(g for g in range(superclasses) for _ in range(half))
    assert len({*source, *target}) == len({*here.classes, *there.classes}) == 2 * half * superclasses


@pytest.mark.parametrize("name", BREEDS)
def test_ids_and_names_are_those_of_imagenet(name):
    """Its classes are numbered in the order of their ids, so that names put into that order have rising numbers."""
    named = sorted((wnid, c) for part in PARTS for wnid, c in zip(*_of(name, part), strict=True))
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid, _ in named)
    numbers = [number(c) for _, c in named]
    assert numbers == sorted(set(numbers))


def _of(name, part):
    ids, hierarchy = _classes(name, part)
    return ids, hierarchy.classes


def test_no_digit_of_an_id_is_wrong():
    """The checksum is of the ids that another list of ImageNet's classes gives for these names."""
    pairs = {pair for name in BREEDS for part in PARTS for pair in zip(*_of(name, part), strict=True)}
    ids = sorted({wnid for wnid, _ in pairs})
    assert len(ids) == len(pairs) == 489
    assert hashlib.sha256(" ".join(ids).encode()).hexdigest().startswith("80b2a111fb48411f")


def test_living17_is_that_of_the_notebook():
    for half, part in enumerate(PARTS):
        _, hierarchy = _classes("living17", part)
        assert hierarchy.levels[0].names == tuple(LIVING17)
        assert [number(c) for c in hierarchy.classes] == [n for halves in LIVING17.values() for n in halves[half]]


def test_images_are_streamed_from_the_folders_of_the_part(imagenet):
    images = breeds("living17", imagenet, size=8, workers=0)
    assert str(images) == "Folder(68 of 3x8x8, 34 classes)"
    pixels = (255 * images.float()).round().long()
    assert torch.equal(pixels[:, 0, 3, 3], images.y) and not pixels[:, 2].any()
    assert images.y.bincount().tolist() == [2] * 34
    assert images.classes[:3] == ("eft", "axolotl", "box turtle")
    assert images.hierarchy.levels[0].names[16] == "monkey" and images.hierarchy.groups()[16] == [32, 33]
    assert len(images.subset(20).y.unique()) > 10  # a fair sample


@pytest.mark.parametrize("split", ["val", "test"])
def test_val_is_called_test_as_well(imagenet, split):
    images = breeds("living17", imagenet, split=split, size=8, workers=0)
    assert images.float()[:, 2].mul(255).eq(1).all()


def test_superclasses_can_be_the_labels(imagenet):
    images = as_superclasses(breeds("living17", imagenet, size=8, workers=0))
    assert images.classes == tuple(LIVING17)
    x, y = next(iter(batches(images, 68)))
    assert torch.equal((x[:, 0, 0, 0] * 255).round().long() // 2, y)


def test_imagenet_in_lrc_data(imagenet, tmp_path, monkeypatch):
    home = tmp_path / "data"
    home.mkdir()
    (home / "imagenet").symlink_to(imagenet)
    monkeypatch.setenv("LRC_DATA", str(home))
    assert len(breeds("living17", size=8)) == 68
    monkeypatch.delenv("LRC_DATA")
    with pytest.raises(InputError, match="no folder of ImageNet: give root"):
        breeds("living17")


def test_missing_folders_are_counted_and_named(imagenet):
    with pytest.raises(
        InputError, match=r"train lacks 34 of the 34 folders of living17 \(target\): n01630670, .* more"
    ):
        breeds("living17", imagenet, part="target")
    ids, _ = _classes("living17", "source")
    for wnid in ids[3:5]:
        (imagenet / "val" / wnid).rename(imagenet / "val" / f"{wnid}.old")
    with pytest.raises(InputError, match=rf"val lacks 2 of the 34 folders .*: {ids[3]}, {ids[4]}: give") as caught:
        breeds("living17", imagenet, split="val")
    assert "\n" not in str(caught.value)


def test_a_class_without_images_is_named(imagenet):
    wnid = _classes("living17", "source")[0][5]
    for file in (imagenet / "train" / wnid).iterdir():
        file.unlink()
    with pytest.raises(InputError, match=rf"train holds no images of '{wnid}': put some there") as caught:
        breeds("living17", imagenet)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "living18"}, "'living18': there are entity13, entity30, living17, nonliving26"),
        ({"part": "both"}, "part 'both'"),
        ({"split": "dev"}, "split 'dev'"),
        ({"size": 0}, "side of images, in pixels, must be a whole number >= 1, not 0"),
    ],
)
def test_bad_options(tmp_path, wrong, message):
    with pytest.raises(InputError, match=message):
        breeds(**({"name": "living17", "root": tmp_path} | wrong))
