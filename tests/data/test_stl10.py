"""STL-10, in files of the published layout with few images."""

import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

import lrc
from lrc.cli import main
from lrc.data import batches
from lrc.data.stl10 import stl10
from lrc.hierarchy import CIFAR10, STL10
from lrc.models import resnet8
from lrc.utils.errors import InputError

N = 20
LABELS = np.arange(N) % 10 + 1  # as in the files


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """An empty cache, no LRC_DATA, no network."""
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LRC_DATA", raising=False)
    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", offline)


def offline(*arguments, **options):
    raise urllib.error.URLError("no network")


@pytest.fixture
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("LRC_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def pixels(seed=0):
    """(n, height, width, 3)"""
    return np.random.default_rng(seed).integers(0, 256, (N, 96, 96, 3), dtype=np.uint8)


def write(root, split="test", x=None, y=LABELS):
    """Channel after channel, in these column after column."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True, exist_ok=True)
    x = pixels() if x is None else x
    (folder / f"{split}_X.bin").write_bytes(b"".join(image[:, :, c].tobytes("F") for image in x for c in range(3)))
    (folder / f"{split}_y.bin").write_bytes(bytes(y.tolist()))
    return folder


def nhwc(images):
    return images.x.permute(0, 2, 3, 1).numpy()


def refused(*words, **options):
    with pytest.raises(InputError) as caught:
        stl10("test", **options)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_what_was_written_is_read(data):
    write(data)
    images = stl10("test")
    assert str(images) == "Images(20 of 3x96x96, 10 classes)"
    assert np.array_equal(nhwc(images), pixels())
    assert images.y.tolist() == [i % 10 for i in range(N)]
    assert (images.classes, images.hierarchy) == (STL10.classes, STL10)


@pytest.mark.parametrize("split", ["train", "test"])
def test_torchvision_reads_the_same(data, monkeypatch, split):
    """Its reader, but for the check that the files are the published ones."""
    write(data, split)
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
    theirs = torchvision.datasets.STL10(data, split)
    ours = stl10(split)
    assert np.array_equal(ours.x.numpy(), theirs.data) and ours.y.tolist() == theirs.labels.tolist()


def test_small_pixels_are_means(data):
    write(data)
    expected = torch.nn.functional.interpolate(stl10("test").x.double(), (32, 32), mode="area").round()
    assert torch.equal(stl10("test", size=32).x.double(), expected)


def test_small_pixels_are_kept_until_the_file_changes(data, tmp_path):
    write(data)
    first = stl10("test", size=32)
    kept = tmp_path / "cache" / "stl10-test-32.safetensors"
    written = kept.stat().st_mtime_ns
    assert torch.equal(stl10("test", size=32).x, first.x) and kept.stat().st_mtime_ns == written
    write(data, x=255 - pixels())
    assert (stl10("test", size=32).x.int() + first.x.int() - 255).abs().max() <= 1


@pytest.mark.parametrize("size", [32, 96])
def test_classes_shared_with_cifar10(data, size):
    write(data)
    every, shared = stl10("test", size=size), stl10("test", size=size, shared=True)
    assert (shared.classes, shared.hierarchy) == (CIFAR10.classes, CIFAR10)
    names = [STL10.classes[label] for label in every.y]
    kept = [i for i, name in enumerate(names) if name != "monkey"]
    renamed = [{"car": "automobile"}.get(names[i], names[i]) for i in kept]
    assert [CIFAR10.classes[label] for label in shared.y] == renamed and len(kept) == 18
    assert "frog" not in renamed and torch.equal(shared.x, every.x[kept])


def test_a_network_of_cifar10_takes_them(data):
    write(data)
    model = resnet8(10, width=4, generator=torch.Generator().manual_seed(0)).eval()
    x, y = next(iter(batches(stl10("test", size=32, shared=True), 18)))
    assert model(x).shape == (18, 10) and y.max() == 9


def test_the_command_gives_a_network_of_cifar10_the_classes_it_knows(data, monkeypatch, capsys):
    """Both have ten classes: an answer in the wrong order would be counted as wrong, unseen."""
    write(data)
    seen = []
    monkeypatch.setattr(lrc, "evaluate", lambda model, images, **_: seen.append(images) or "report")
    words = ["lrc", "evaluate", "cifar10-small-standard", "--images", "18", "--data"]
    monkeypatch.setattr("sys.argv", [*words, "stl10-as-cifar10"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None) and seen[0].classes == CIFAR10.classes and seen[0].x.shape == (18, 3, 32, 32)
    monkeypatch.setattr("sys.argv", [*words, "stl10"])
    with pytest.raises(SystemExit) as ended:
        main()
    expected = (
        "lrc: cifar10-small-standard knows other classes than stl10, or in another order: --data stl10-as-cifar10"
    )
    assert ended.value.code == 2 and capsys.readouterr().err == expected + "\n" and len(seen) == 1


@pytest.mark.parametrize("below", ["", "downloads"])
def test_where_it_is_looked_for(data, tmp_path, monkeypatch, below):
    write(data / below)
    assert len(stl10("test")) == N
    monkeypatch.setenv("LRC_DATA", str(data / below / "stl10_binary"))
    assert len(stl10("test")) == N
    monkeypatch.delenv("LRC_DATA")
    write(tmp_path / "cache", x=pixels(1))
    assert np.array_equal(nhwc(stl10("test")), pixels(1))
    assert np.array_equal(nhwc(stl10("test", root=data)), pixels())
    (tmp_path / "empty").mkdir()
    refused("is not in", "stl10_binary/test_X.bin", root=tmp_path / "empty")


def test_downloaded_where_it_is_nowhere(tmp_path, monkeypatch):
    def unpack(url, download_root, filename, md5):
        assert filename == "stl10_binary.tar.gz" and len(md5) == 32
        write(Path(download_root))

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", unpack)
    assert np.array_equal(nhwc(stl10("test")), pixels())
    assert (tmp_path / "cache" / "stl10_binary" / "test_X.bin").exists()
    with pytest.raises(InputError, match="train_X.bin is missing: remove its folder"):  # the cache has one without
        stl10("train")


def test_offline(data):
    refused(f"neither in LRC_DATA ({data}) nor in the cache", "no network", "stl10_binary/test_X.bin")


@pytest.mark.parametrize("gone", ["test_X.bin", "test_y.bin"])
def test_half_a_set(data, gone):
    (write(data) / gone).unlink()
    refused(f"{gone} is missing: copy it too")


def test_truncated_images(data):
    path = write(data) / "test_X.bin"
    path.write_bytes(path.read_bytes()[:-1])
    refused(f"{path} has 552959 bytes, expected 27648 for each of 20 labels")


@pytest.mark.parametrize("wrong", [0, 11])
def test_labels_out_of_range(data, wrong):
    folder = write(data, y=np.where(np.arange(N) == 7, wrong, LABELS))
    refused(f"{folder / 'test_y.bin'}: label {wrong} in row 7, expected 1..10")


def test_no_labels(data):
    write(data, x=pixels()[:0], y=LABELS[:0])
    refused("test_y.bin is empty")


def test_bad_options(data):
    refused("size 64, expected 96 or 32", size=64)
    with pytest.raises(InputError, match="split 'unlabeled'"):
        stl10("unlabeled")
