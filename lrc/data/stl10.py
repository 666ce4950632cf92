"""STL-10: found on disk or downloaded; at its own size, or at that of CIFAR-10."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from lrc.data import cache
from lrc.data.images import Images
from lrc.hierarchy import CIFAR10, STL10
from lrc.utils.errors import InputError
from lrc.utils.files import sha256

SIDE = 96
FOLDER = "stl10_binary"


def stl10(split: str = "train", *, root: str | Path | None = None, size: int = SIDE, shared: bool = False) -> Images:
    """STL-10: 5,000 or 8,000 colour images of 96x96 pixels in 10 classes; or of 32x32, for networks of CIFAR-10.

    Looked for as the folder `stl10_binary`, where `lrc.data.cifar10` looks for its own, and last downloaded by
    torchvision (2.6 GB, as the archive has 100,000 unlabelled images besides; of an unpacked one, `train_X.bin` and
    `train_y.bin`, or the two of the test, suffice). The pixels are memory-mapped; those of 32x32 are kept in the cache.

    Args:
        split: "train" or "test".
        root: where to look instead, and then nowhere else.
        size: side in pixels, 96 or 32. For the latter, each pixel is the mean of 3x3, rounded.
        shared: only the nine classes that CIFAR-10 has too, labelled and named as there, so that a network of CIFAR-10
            can be tested on them: `car` is "automobile", no image is a "frog", and monkeys are left out.

    Raises:
        InputError: the set is nowhere to be had, incomplete or damaged; or another split or size.

    Source: Coates, Ng & Lee, *An Analysis of Single-Layer Networks in Unsupervised Feature Learning* (2011).
    """
    if split not in ("train", "test"):
        raise InputError(f"split {split!r}, expected 'train' or 'test'")
    if size not in (32, SIDE):
        raise InputError(f"size {size}, expected 96 or 32")
    pixels, labels = _files(split, root)
    y = _labels(labels)
    x = _pixels(pixels, len(y))
    if size < SIDE:
        x = _small(f"stl10-{split}-{size}", pixels, x)
    images = Images(x.permute(0, 1, 3, 2), y, STL10.classes, STL10)  # column after column in the file
    return _as_cifar10(images) if shared else images


def _files(split: str, root: str | Path | None) -> tuple[Path, Path]:
    """Images and labels, downloaded if need be."""
    base = cache.base_folder(root)
    if found := _find(split, base) if base else None:
        return found
    wanted = f"{FOLDER}/{split}_X.bin"
    if root is not None:
        raise InputError(f"stl10 ({split}) is not in {base}: it should hold {wanted}")
    if not (found := _find(split, cache.folder())):
        cache.download("STL10", FOLDER, what=f"stl10 ({split})", layouts=wanted)
        found = _find(split, cache.folder())
    if not found:
        raise InputError(f"{cache.folder() / wanted} is missing: remove its folder, to have it downloaded anew")
    return found


def _find(split: str, base: Path) -> tuple[Path, Path] | None:
    """Images and labels, or nothing. Raises InputError where only one of the two files is there."""
    for folder in cache.folders_of(base, FOLDER):
        pixels, labels = folder / f"{split}_X.bin", folder / f"{split}_y.bin"
        if pixels.exists() and labels.exists():
            return pixels, labels
        if pixels.exists() or labels.exists():
            gone = labels if pixels.exists() else pixels
            raise InputError(f"{gone} is missing: copy it too, or unpack the archive again")
    return None


def _labels(path: Path) -> Int64[Tensor, " n"]:
    """Classes from 0; the file has a byte an image, and counts from 1."""
    labels = np.fromfile(path, np.uint8)
    if not labels.size:
        raise InputError(f"{path} is empty: copy or download it again")
    wrong = np.flatnonzero((labels < 1) | (labels > len(STL10.classes)))
    if wrong.size:
        row = wrong[0]
        raise InputError(f"{path}: label {labels[row]} in row {row}, expected 1..10: copy or download it again")
    return torch.from_numpy(labels.astype(np.int64) - 1)


def _pixels(path: Path, n: int) -> UInt8[Tensor, "n 3 width height"]:
    """Mapped from the file. (torchvision's reader insists on all files as published, the unlabelled ones too.)"""
    size, each = path.stat().st_size, 3 * SIDE * SIDE
    if size != n * each:
        raise InputError(f"{path} has {size} bytes, expected {each} for each of {n} labels: copy or download it again")
    return torch.from_numpy(np.memmap(path, np.uint8, mode="c", shape=(n, 3, SIDE, SIDE)))


def _small(name: str, file: Path, x: UInt8[Tensor, "n 3 96 96"]) -> UInt8[Tensor, "n 3 32 32"]:
    """The mean of each 3x3 pixels, rounded; from the cache where it was made of this file before."""
    source = sha256(file)
    if kept := cache.load(name, source=source):
        return kept["x"]
    sums = x.numpy().reshape(len(x), 3, 32, 3, 32, 3).sum((3, 5), dtype=np.uint16)
    small = torch.from_numpy(((sums + 4) // 9).astype(np.uint8))
    cache.store(name, {"x": small}, source=source)
    return small


def _as_cifar10(images: Images) -> Images:
    """Without the monkeys, labelled as CIFAR-10."""
    named = ["automobile" if name == "car" else name for name in images.classes]
    of = torch.tensor([CIFAR10.classes.index(name) if name in CIFAR10.classes else -1 for name in named])
    y = of[images.y]
    return Images(images.x[y >= 0], y[y >= 0], CIFAR10.classes, CIFAR10)
