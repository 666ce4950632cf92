import hashlib
import io
import os
import pickle
import socket
import struct
import time
import urllib.error
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
import torchvision
from damaging import outcomes
from PIL import Image

from lrc.data import as_superclasses, cache, cifar, cifar10, cifar100
from lrc.hierarchy import CIFAR10, CIFAR100
from lrc.utils.errors import InputError
from lrc.utils.files import load_tensors, save_tensors, tensor_metadata

pytestmark = pytest.mark.filterwarnings("ignore:.*holds other images or labels:UserWarning")

N = 12
COARSE = np.array(CIFAR100.levels[0].of)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """An empty cache, no LRC_DATA, no network."""
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LRC_DATA", raising=False)
    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", offline)


def offline(*arguments, **options):
    raise urllib.error.URLError("no network")


def pixels(seed=0, n=N):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def encode(image, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    return file.getvalue()


def write_parquet(path, encoded, **labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    img = [{"bytes": one, "path": f"{i}.png"} for i, one in enumerate(encoded)]
    pyarrow.parquet.write_table(pyarrow.table({"img": img, **labels}), path)
    return path


def hub10(root, kind="PNG", x=None, labels=None, shard="test-00000-of-00001"):
    x = pixels() if x is None else x
    labels = list(np.arange(len(x)) % 10) if labels is None else labels
    return write_parquet(root / "cifar10" / f"{shard}.parquet", [encode(i, kind) for i in x], label=labels)


def hub100(root, fine, coarse, folder="cifar100"):
    encoded = [encode(i) for i in pixels(n=len(fine))]
    return write_parquet(root / folder / "test-00000-of-00001.parquet", encoded, fine_label=fine, coarse_label=coarse)


@pytest.fixture
def published(monkeypatch):
    """Makes what lies in a folder the published archive, as far as torchvision knows."""

    def publish(folder, name="CIFAR10"):
        known = getattr(torchvision.datasets, name)
        for listed in ("train_list", "test_list"):
            files = [folder / batch for batch, _ in getattr(known, listed)]
            sums = [[f.name, hashlib.md5(f.read_bytes()).hexdigest() if f.exists() else ""] for f in files]
            monkeypatch.setattr(known, listed, sums)
        meta = folder / known.meta["filename"]
        meta.write_bytes(pickle.dumps({known.meta["key"]: ["a", "b"]}))
        monkeypatch.setattr(known, "meta", known.meta | {"md5": hashlib.md5(meta.read_bytes()).hexdigest()})

    return publish


def write_batch(path, x, **labels):
    """As Python 2 wrote them: texts and bytes alike are its strings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    Python2Pickler(file, 2).dump({"data": x.transpose(0, 3, 1, 2).reshape(len(x), -1), **labels})
    path.write_bytes(file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    return path


class Python2Pickler(pickle._Pickler):
    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        raw = text if isinstance(text, bytes) else text.encode()
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)

    dispatch[str] = dispatch[bytes] = save_string


def batches10(root, x=None):
    x = pixels(n=50) if x is None else x
    folder = root / "cifar-10-batches-py"
    for i, part in enumerate(np.array_split(x, 5), 1):
        write_batch(folder / f"data_batch_{i}", part, labels=[i - 1] * len(part))
    write_batch(folder / "test_batch", pixels(1), labels=[9] * N)
    return folder


def nhwc(images):
    return images.x.permute(0, 2, 3, 1).numpy()


def refused(path, *words, split="test", load=cifar10):
    """The message, which names the file and is one line."""
    with pytest.raises(InputError) as caught:
        load(split)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    assert all(word in message for word in words), message
    return message


@pytest.fixture
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("LRC_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


# what is read


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_parquet_of_the_hub(data, kind):
    hub10(data, kind)
    images = cifar10("test")
    assert np.array_equal(nhwc(images), pixels())
    assert images.y.tolist() == [i % 10 for i in range(N)]
    assert (images.classes, images.hierarchy) == (CIFAR10.classes, CIFAR10)


def test_shards_are_read_in_order(data):
    hub10(data, x=pixels(1), shard="train-00001-of-00002")
    hub10(data, x=pixels(0), shard="train-00000-of-00002")
    assert np.array_equal(nhwc(cifar10("train")), np.concatenate([pixels(0), pixels(1)]))


@pytest.mark.parametrize("folder", ["cifar100", "cifar100/cifar100", "hub/cifar100", "cifar100/data"])
def test_cifar100_fine_and_coarse(data, folder):
    fine = np.arange(100)
    hub100(data, fine, COARSE[fine], folder)
    images = cifar100("test")
    assert images.y.tolist() == list(fine) and images.hierarchy == CIFAR100
    coarse = as_superclasses(images)
    assert coarse.y.tolist() == COARSE.tolist()
    assert coarse.classes == CIFAR100.levels[0].names and coarse.hierarchy is None


def test_folder_of_the_set_itself(monkeypatch, data):
    hub10(data)
    monkeypatch.setenv("LRC_DATA", str(data / "cifar10"))
    assert len(cifar10("test")) == N


@pytest.mark.parametrize("below", ["", "cifar10", "downloads"])
def test_torchvision_folder_of_cifar10(data, published, below):
    published(batches10(data / below))
    assert np.array_equal(nhwc(cifar10("train")), pixels(n=50))
    assert cifar10("train").y.tolist() == [i for i in range(5) for _ in range(10)]
    assert np.array_equal(nhwc(cifar10("test")), pixels(1))


def test_torchvision_folder_of_cifar100(data, published):
    labels = {"fine_labels": list(range(100)), "coarse_labels": COARSE.tolist()}
    for part in ("train", "test"):
        write_batch(data / "cifar-100-python" / part, pixels(n=100), **labels)
    published(data / "cifar-100-python", "CIFAR100")
    assert cifar100("test").y.tolist() == list(range(100))


def test_root_is_looked_at_instead_of_lrc_data(data, tmp_path):
    hub10(data)
    hub10(tmp_path / "other", x=pixels(7))
    assert np.array_equal(nhwc(cifar10("test", root=tmp_path / "other")), pixels(7))
    with pytest.raises(InputError, match=r"is not in .*empty.*cifar10/test-\*.parquet"):
        (tmp_path / "empty").mkdir()
        cifar10("test", root=str(tmp_path / "empty"))


# bad input


def test_truncated_parquet(data):
    path = hub10(data)
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "no whole Parquet file", "download it again")


def test_foreign_file_named_parquet(data):
    path = hub10(data)
    path.write_text("not found")
    refused(path, "no whole Parquet file", "download it again")


def test_missing_columns(data):
    path = hub100(data, [0], [4], "cifar10")
    refused(path, "lacks the column 'label'", "img, fine_label, coarse_label")


@pytest.mark.parametrize("img", [[b"raw"], [{"path": "0.png"}]])
def test_images_of_another_layout(data, img):
    (data / "cifar10").mkdir()
    path = data / "cifar10" / "test-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"img": img, "label": [0]}), path)
    refused(path, "expected struct<bytes, path>")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([*range(9), 10, 0, 0], "label 10 in row 9, expected 0..9"),
        ([-1, *range(10), 0], "label -1 in row 0"),
        ([0.5] * N, "type double"),
        ([None] + [0] * (N - 1), "1 missing"),
    ],
)
def test_labels_out_of_range(data, labels, words):
    refused(hub10(data, labels=labels), words)


@pytest.mark.parametrize("coarse", [0, 20])
def test_cifar100_with_other_superclasses(data, coarse):
    path = hub100(data, [0, 1], [COARSE[0], coarse])
    refused(path, "superclasses are not the standard ones" if coarse == 0 else "label 20", load=cifar100)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (encode(np.zeros((16, 32, 3), np.uint8)), "row 2 is 32x16, expected 32x32"),
        (encode(np.zeros((32, 32), np.uint8)), "row 2 is greyscale, expected colour"),
        (encode(np.zeros((32, 32, 4), np.uint8)), "row 2 is of mode RGBA"),
        (encode(pixels()[0])[:-500], "row 2 cannot be decoded"),
        (b"no image", "row 2 cannot be decoded"),
        (None, "row 2 cannot be decoded"),
        (encode(np.zeros((20_000, 20_000), bool)), "row 2 cannot be decoded"),
    ],
)
def test_images_that_cannot_be_used(data, image, words):
    good = [encode(i) for i in pixels(n=2)]
    path = write_parquet(data / "cifar10" / "test-00000-of-00001.parquet", [*good, image], label=[0, 0, 0])
    refused(path, words)


def test_equal_images_take_memory_once(data):
    """And large ones are refused before they are read: a few kilobytes on disk may be gigabytes in memory."""
    small, path = encode(pixels()[0]), data / "cifar10" / "test-00000-of-00001.parquet"
    write_parquet(path, [small] * N, label=[0] * N)
    assert np.array_equal(nhwc(cifar10("test")), np.stack([pixels()[0]] * N))
    write_parquet(path, [small + bytes(2_000_000)] * N, label=[0] * N)
    refused(path, "would take", f"bytes for {N} rows, far more than images of 32x32")
    write_parquet(path, [small] * 100_001, label=[0] * 100_001)
    refused(path, "for 100,001 rows")


def test_missing_shard(data):
    hub10(data, shard="train-00001-of-00002")
    refused(data / "cifar10" / "train-00000-of-00002.parquet", "missing", split="train")


def test_shards_of_two_versions(data):
    hub10(data, shard="train-00000-of-00001")
    hub10(data, shard="train-00000-of-00002")
    refused(data / "cifar10", "two sets", split="train")


def test_missing_batch(data):
    batches10(data)
    (data / "cifar-10-batches-py" / "data_batch_3").unlink()
    refused(data / "cifar-10-batches-py" / "data_batch_3", "missing", split="train")


@pytest.mark.parametrize("damage", [lambda b: b[:-2000], lambda b: b[:500] + b"!" + b[501:], lambda b: b""])
def test_damaged_batches_are_refused(data, published, damage):
    published(folder := batches10(data))
    (folder / "test_batch").write_bytes(damage((folder / "test_batch").read_bytes()))
    for split in ("train", "test"):
        refused(folder, "not the published archive of cifar10", "unpack or download it again", split=split)


@pytest.mark.parametrize("layout", ["hub", "batches"])
def test_no_damage_of_the_published_images_goes_unseen(data, published, monkeypatch, layout):
    """What decodes all the same, to other pixels or labels, is said to be another set than the published one."""
    if layout == "hub":
        path = hub10(data, "WEBP")
    else:
        published(folder := batches10(data))
        path = folder / "test_batch"
    images = cifar10("test", root=data)
    content = cifar._content(images.x.permute(0, 2, 3, 1), images.y)
    monkeypatch.setitem(cifar._CIFAR10.content, "test", content)

    def read():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                return cifar10("test", root=data).digest()
            except UserWarning as warning:
                raise InputError(str(warning)) from warning

    assert outcomes(path, read, layout)["refused"]


def test_a_pickle_that_would_run_code_is_not_opened(data, published, tmp_path):
    published(folder := batches10(data))
    (folder / "test_batch").write_bytes(b"cos\nmkdir\n(S'" + str(tmp_path / "ran").encode() + b"'\ntR.")
    refused(folder, "not the published archive")
    assert not (tmp_path / "ran").exists()


def test_lrc_data_that_is_no_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LRC_DATA", str(tmp_path / "typo"))
    refused(tmp_path / "typo", "LRC_DATA", "no folder")


def test_unknown_split(data):
    with pytest.raises(InputError, match="'train' or 'test'"):
        cifar10("valid")


# cache


@pytest.fixture
def decodings(monkeypatch):
    """The files read so far."""
    read, files = cifar._read_parquet, []
    monkeypatch.setattr(cifar, "_read_parquet", lambda file, what: (files.append(file), read(file, what))[1])
    return files


def test_decoded_once(data, decodings):
    path = hub10(data)
    first, second = cifar10("test"), cifar10("test")
    assert decodings == [path]
    assert torch.equal(first.x, second.x) and torch.equal(first.y, second.y)
    assert [f.name for f in cache.folder().iterdir()] == ["cifar10-test.safetensors"]


def test_other_bytes_are_decoded_again(data, tmp_path):
    """Though name, size and time of change of the file are the same."""
    path = hub10(data)
    os.utime(path, ns=(0, 0))
    before, size = cifar10("test"), path.stat().st_size
    hub10(data, x=255 - pixels())
    assert path.stat().st_size == size  # noise does not compress, whatever its sign
    os.utime(path, ns=(0, 0))
    assert np.array_equal(nhwc(cifar10("test")), 255 - pixels())
    assert np.array_equal(nhwc(before), pixels())  # a map of the old file stays what it was


def test_two_copies_take_turns(data, tmp_path):
    hub10(data)
    hub10(tmp_path / "other", x=pixels(7))
    for _ in range(2):
        assert np.array_equal(nhwc(cifar10("test")), pixels())
        assert np.array_equal(nhwc(cifar10("test", root=tmp_path / "other")), pixels(7))


def test_any_damage_of_the_cache_is_decoded_again(data, decodings):
    hub10(data)
    cifar10("test")
    (file,) = cache.folder().iterdir()
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for _ in range(30):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(content)
        assert np.array_equal(nhwc(cifar10("test")), pixels())
    assert len(decodings) == 31


def test_a_cache_with_fewer_rows_is_decoded_again(data, decodings):
    hub10(data)
    cifar10("test")
    (file,) = cache.folder().iterdir()
    tensors, facts = load_tensors(file), tensor_metadata(file)
    save_tensors(file, {name: tensor[:5] for name, tensor in tensors.items()}, facts)
    assert len(cifar10("test")) == N and len(decodings) == 2


def test_other_images_than_the_published_ones_are_told(data, monkeypatch):
    hub10(data)
    for _ in range(2):  # decoded, and from the cache
        with pytest.warns(UserWarning, match="cifar10 holds other images or labels than the published cifar10"):
            kept = cifar10("test")
    monkeypatch.setitem(cifar._CIFAR10.content, "test", cifar._content(kept.x.permute(0, 2, 3, 1), kept.y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cifar10("test")


@pytest.mark.parametrize("damage", [lambda b: b[:-10], lambda b: b[:4], lambda b: b"", lambda b: b"\xff" * len(b)])
def test_damaged_cache_is_decoded_again(data, decodings, damage):
    hub10(data)
    cifar10("test")
    (file,) = cache.folder().iterdir()
    file.write_bytes(damage(file.read_bytes()))
    for _ in range(2):
        assert np.array_equal(nhwc(cifar10("test")), pixels())
    assert len(decodings) == 2


def test_a_write_cut_short_leaves_nothing_behind(data, monkeypatch):
    def full(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    hub10(data)
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.warns(UserWarning, match="no space left"):
        assert np.array_equal(nhwc(cifar10("test")), pixels())
    assert not list(cache.folder().iterdir())


def test_without_a_writable_cache(data, monkeypatch, tmp_path):
    hub10(data)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match=r"cifar10-test is not cached in .*below.*set LRC_CACHE"):
        assert np.array_equal(nhwc(cifar10("test")), pixels())


def test_two_at_once(data):
    hub10(data)
    with ThreadPoolExecutor(4) as pool:
        for images in pool.map(cifar10, ["test"] * 8):
            assert np.array_equal(nhwc(images), pixels())
    assert [f.name for f in cache.folder().iterdir()] == ["cifar10-test.safetensors"]


def test_the_cache_alone_serves_the_genuine_set_and_no_excerpt(data, monkeypatch):
    hub10(data)
    kept = cifar10("test")
    monkeypatch.delenv("LRC_DATA")
    with pytest.raises(InputError, match="neither in LRC_DATA"):
        cifar10("test")
    genuine = {"test": cifar._content(kept.x.permute(0, 2, 3, 1), kept.y)}
    monkeypatch.setitem(cifar._CIFAR10.content, "test", genuine["test"])
    assert torch.equal(cifar10("test").x, kept.x)


def test_content_knows_the_set_in_any_order_and_no_other():
    x, y = torch.from_numpy(pixels()), torch.arange(N) % 10
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    assert cifar._content(x[order], y[order]) == cifar._content(x, y)
    assert cifar._content(x[order], y) != cifar._content(x, y)
    assert cifar._content(255 - x, y) != cifar._content(x, y)
    assert cifar._content(x[1:], y[1:]) != cifar._content(x, y)


def test_user_cache_folder_without_lrc_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("LRC_CACHE")
    monkeypatch.setattr(cache.platformdirs, "user_cache_dir", lambda name: str(tmp_path / "home" / name))
    assert cache.folder() == tmp_path / "home" / "lrc"


# download


def test_offline_says_where_it_looked_and_what_to_do(tmp_path, monkeypatch):
    message = refused(tmp_path / "cache", "LRC_DATA (not set)", "no network", "set LRC_DATA to", "connect")
    assert "cifar10/test-*.parquet or cifar-10-batches-py/test_batch" in message
    monkeypatch.setenv("LRC_DATA", str(tmp_path))
    refused(tmp_path / "cache", f"LRC_DATA ({tmp_path})", load=cifar100)


def fake_archive(calls, publish, folder_of_batches=batches10):
    def fetch(url, root, *, filename, md5):
        calls.append((filename, socket.getdefaulttimeout()))
        print("Extracting")
        publish(folder_of_batches(Path(root)))

    return fetch


def test_download_into_the_cache(monkeypatch, capsys, published):
    calls = []
    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", fake_archive(calls, published))
    assert np.array_equal(nhwc(cifar10("test")), pixels(1))
    assert np.array_equal(nhwc(cifar10("train")), pixels(n=50))
    ((filename, timeout),) = calls
    assert filename == "cifar-10-python.tar.gz"
    assert 0 < timeout <= 30 and socket.getdefaulttimeout() is None
    assert capsys.readouterr().out == ""
    assert not [f for f in cache.folder().iterdir() if f.name.startswith(".")]


def test_download_while_another_process_does_the_same(monkeypatch, published):
    def both(root):
        batches10(root)
        return batches10(cache.folder())

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", fake_archive([], published, both))
    assert np.array_equal(nhwc(cifar10("test")), pixels(1))


def test_download_with_nowhere_to_put_it(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "file"))
    refused(tmp_path / "file", "set LRC_DATA")


def test_torchvision_still_has_what_the_download_needs():
    for name in ("CIFAR10", "CIFAR100"):
        known = getattr(torchvision.datasets, name)
        assert known.url.endswith(known.filename) and len(known.tgz_md5) == 32
    for spec in (cifar._CIFAR10, cifar._CIFAR100):
        assert getattr(torchvision.datasets, spec.torchvision).base_folder == spec.folder


# the real thing

REAL = {name: os.environ[name] for name in ("LRC_DATA", "LRC_CACHE") if name in os.environ}


@pytest.mark.skipif("LRC_DATA" not in REAL, reason="LRC_DATA is not set")
@pytest.mark.parametrize(
    ("load", "split", "n", "mean"),
    [
        (cifar10, "train", 50_000, (0.4914, 0.4822, 0.4465)),
        (cifar10, "test", 10_000, (0.4942, 0.4851, 0.4504)),
        (cifar100, "test", 10_000, (0.5088, 0.4874, 0.4419)),
    ],
)
def test_real_data(load, split, n, mean, monkeypatch):
    monkeypatch.delenv("LRC_CACHE")  # the user's own, so that a machine decodes once
    for name, value in REAL.items():
        monkeypatch.setenv(name, value)
    first = load(split)
    start = time.perf_counter()
    second = load(split)
    assert time.perf_counter() - start < 5
    assert first.x.shape == (n, 3, 32, 32)
    assert first.y.bincount().tolist() == [n // len(first.classes)] * len(first.classes)
    assert torch.allclose(second.x.sum((0, 2, 3)) / (n * 32 * 32 * 255), torch.tensor(mean), atol=1e-4)
    monkeypatch.delenv("LRC_DATA")
    assert torch.equal(load(split).x, first.x)  # genuine, so the cache alone serves
