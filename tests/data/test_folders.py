"""Images in folders: the same as the same images kept whole, whatever is asked of them."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from lrc.attacks import pgd
from lrc.data import Images, batches, folder, named
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
    with pytest.raises(InputError, match="holds no images of 'empty': put some there"):
        folder(path, size=32)
    with pytest.raises(InputError, match="the side of images, in pixels, must be a whole number >= 1, not 0"):
        folder(path, size=0)


def test_two_folders_are_joined_with_their_files(path):
    first, second = folder(path, size=32, hierarchy=GROUPS).subset([3, 20]), folder(path, size=32, hierarchy=GROUPS)
    both = first.joined(second)
    assert len(both) == 38 and torch.equal(both.float(), torch.cat([first.float(), second.float()]))
    assert torch.equal(both.y, torch.cat([first.y, second.y]))
    assert torch.equal(both.subset([1, 2, 37]).float(), torch.stack([first.float()[1], *second.float()[[0, 35]]]))
    with pytest.raises(InputError, match="differ in kind or size: they cannot be joined"):
        first.joined(whole(path))


def saved(root, name, image, **options):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(root / name, **options)


def levels(root, size=4):
    """The red channel of the one image, in levels of 1/255."""
    return (255 * folder(root, size=size, workers=0).float()[0, 0]).round().int().tolist()


def test_what_is_hidden_is_neither_class_nor_image(path):
    before = folder(path, size=32, workers=0)
    for hidden in (".ipynb_checkpoints/1.png", "cat/.ipynb_checkpoints/1.png", "cat/._00.png", ".1.png"):
        saved(path, hidden, np.zeros((32, 32, 3), np.uint8))
    after = folder(path, size=32, workers=0)
    assert after.classes == NAMES and torch.equal(after.float(), before.float()) and torch.equal(after.y, before.y)


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_16_bits_are_brought_to_8(tmp_path, ending):
    deep = np.array([[0, 257, 65535, 32896]] * 4, dtype=np.uint16)
    saved(tmp_path, f"a/1.{ending}", deep)
    assert levels(tmp_path) == [[0, 1, 255, 128]] * 4


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_range_are_refused(tmp_path, dtype):
    saved(tmp_path, "a/1.tiff", np.ones((4, 4), dtype=dtype))
    with pytest.raises(InputError, match=r"a/1\.tiff holds (32-bit|floating-point).*: convert it to 8 or 16 bits"):
        folder(tmp_path, size=4, workers=0).float()


@pytest.mark.parametrize("ending", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_data_say(tmp_path, ending, deep, orientation):
    if deep and ending not in ("png", "tiff"):
        return
    picture = np.zeros((8, 8), np.uint16 if deep else np.uint8)
    picture[:2, :6] = 65535 if deep else 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"quality": 100} if ending == "jpg" else {"lossless": True} if ending == "webp" else {}
    saved(tmp_path, f"a/1.{ending}", picture, exif=exif, **lossless)
    turn = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
            7: "TRANSVERSE", 8: "ROTATE_90"}.get(orientation)  # fmt: skip
    eight = Image.fromarray((picture >> 8 if deep else picture).astype(np.uint8))
    expected = np.asarray(eight.transpose(Image.Transpose[turn]) if turn else eight).astype(int)
    assert np.abs(np.array(levels(tmp_path, 8)) - expected).max() <= 2


def test_the_size_is_that_of_the_images_or_asked_for(path):
    assert str(folder(path)) == "Folder(36 of 3x32x32, 3 classes)"
    saved(path, "cow/99.png", np.zeros((32, 33, 3), np.uint8))
    with pytest.raises(InputError, match=r"not square and of one size .*00\.png is 32x32, .*99\.png is 33x32"):
        folder(path)
    assert folder(path, size=16).x.shape[1:] == (3, 16, 16)


@pytest.fixture
def parts(tmp_path):
    for part in ("train", "test"):
        for i, name in enumerate(("ant", "bee")):
            saved(tmp_path / part, f"{name}/1.png", np.full((8, 8, 3), i, np.uint8))
    return tmp_path


def test_parts_of_a_folder_agree_in_classes(parts):
    assert [named(str(parts), part).classes for part in ("train", "test")] == [("ant", "bee")] * 2
    (parts / "test" / ".ipynb_checkpoints").mkdir()
    assert len(named(str(parts), "test")) == 2
    (parts / "test" / "ant").rename(parts / "test" / "cat")
    for part in ("train", "test"):
        with pytest.raises(InputError, match="not of the same classes: 'ant' is only in .*train: give each"):
            named(str(parts), part)


def test_parts_of_a_folder_agree_in_size_unless_it_is_given(parts):
    saved(parts / "test", "ant/1.png", np.zeros((9, 9, 3), np.uint8))
    for part in ("train", "test"):
        with pytest.raises(InputError, match="is 8x8, .*is 9x9"):
            named(str(parts), part)
        assert named(str(parts), part, size=8).x.shape[1:] == (3, 8, 8)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_decompression_bomb_is_one_line(tmp_path, side):
    """A warning and an error of Pillow's."""
    saved(tmp_path, "a/1.png", Image.new("1", (side, side)))
    with pytest.raises(InputError, match=r"a/1\.png cannot be decoded .*bomb") as caught:
        folder(tmp_path, size=4, workers=0).float()
    assert "\n" not in str(caught.value)


def test_any_damage_of_an_image_is_an_image_or_one_line(path):
    file, rng = path / "cat" / "00.png", np.random.default_rng(0)
    for ending in ("png", "jpg", "tiff", "webp", "bmp"):
        Image.open(path / "cow" / "00.png").save(file.with_suffix(f".{ending}"))
    images = folder(path, size=32, workers=0)
    damaged = [row for row, i in enumerate(images.rows.tolist()) if "cat/00" in images.files[i]]
    for row in damaged * 10:
        file = Path(images.files[images.rows[row]])
        whole = file.read_bytes()
        content = bytearray(whole)
        for place in rng.integers(0, len(content), 5):
            content[place] = rng.integers(256)
        file.write_bytes(content[: rng.integers(1, len(content))] if rng.random() < 0.3 else content)
        try:
            assert images.float([row]).shape == (1, 3, 32, 32)
        except InputError as error:
            assert str(file) in str(error) and "\n" not in str(error)
        file.write_bytes(whole)
