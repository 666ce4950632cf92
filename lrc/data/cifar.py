"""CIFAR-10 and CIFAR-100: found on disk or downloaded, decoded once, then loaded memory-mapped."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrc.data import cache
from lrc.data.download import download
from lrc.data.images import Images
from lrc.data.readers import read_parquet, read_pickle
from lrc.hierarchy import CIFAR10, CIFAR100, Hierarchy
from lrc.utils.errors import InputError

HOMES = ("", "plain_text", "cifar100", "data")  # folders of a set in which copies of the hub keep the shards


@dataclass(frozen=True)
class _Set:
    """How one data set is called in each of the layouts; columns map to their number of classes."""

    name: str
    hierarchy: Hierarchy
    columns: dict[str, int]  # in Parquet
    keys: dict[str, int]  # in the pickles, in the same order
    folder: str
    batches: dict[str, tuple[str, ...]]
    torchvision: str  # the class there that knows the address and the checksum
    content: dict[str, str]  # see `_content`


_CIFAR10 = _Set(
    name="cifar10",
    hierarchy=CIFAR10,
    columns={"label": 10},
    keys={"labels": 10},
    folder="cifar-10-batches-py",
    batches={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    torchvision="CIFAR10",
    content={"train": "137951283562", "test": "27529756726"},
)
_CIFAR100 = _Set(
    name="cifar100",
    hierarchy=CIFAR100,
    columns={"fine_label": 100, "coarse_label": 20},
    keys={"fine_labels": 100, "coarse_labels": 20},
    folder="cifar-100-python",
    batches={"train": ("train",), "test": ("test",)},
    torchvision="CIFAR100",
    content={"train": "1263041914934", "test": "252523199324"},
)


def cifar10(split: str = "train", *, root: str | Path | None = None) -> Images:
    """CIFAR-10: 50,000 or 10,000 colour images of 32x32 pixels in 10 classes.

    Looked for in LRC_DATA (or in `root` instead, and then nowhere else) and in the cache (LRC_CACHE, or else
    the user's cache folder), and last downloaded by torchvision. It reads Parquet files as on the Hugging
    Face hub (`cifar10/train-*.parquet`) and torchvision's folder `cifar-10-batches-py`. The pixels are
    decoded once, kept in the cache, and memory-mapped from there ever after.

    Raises InputError when the set is nowhere to be had, incomplete or damaged. Source: A. Krizhevsky,
    Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    return Images(*_load(_CIFAR10, split, root), CIFAR10.classes, CIFAR10)


def cifar100(split: str = "train", *, root: str | Path | None = None) -> Images:
    """CIFAR-100: as `cifar10`, in 100 classes with the 20 superclasses, and kinds of these, as hierarchy.

    `lrc.data.as_superclasses` labels it by superclass. Raises InputError as `cifar10` does.
    """
    return Images(*_load(_CIFAR100, split, root), CIFAR100.classes, CIFAR100)


def _load(what: _Set, split: str, root: str | Path | None) -> tuple[Tensor, Tensor]:
    """Pixels and labels."""
    if split not in ("train", "test"):
        raise InputError(f"split {split!r}, expected 'train' or 'test'")
    tensors = _tensors(what, split, root)
    return tensors["x"].permute(0, 3, 1, 2), tensors["y"]


def _tensors(what: _Set, split: str, root: str | Path | None) -> cache.Tensors:
    name = f"{what.name}-{split}"
    base = base_folder(root)
    files = _find(what, split, base) if base else []
    if not files and root is None:
        # What was decoded from files now gone serves as well, unless these were an excerpt or a variant.
        kept = cache.load(name, content=what.content[split])
        if kept is not None:
            return kept
        files = _find(what, split, cache.folder()) or _download(what, split, base)
    if not files:
        raise InputError(f"{what.name} ({split}) is not in {base}: it should hold {_layouts(what, split)}")
    source = cache.signature(files)
    return cache.load(name, source=source) or _decode(what, files, name, source)


def base_folder(root: str | Path | None) -> Path | None:
    named = root if root is not None else os.environ.get("LRC_DATA")
    if named and not Path(named).is_dir():
        origin = "LRC_DATA" if root is None else "root"
        raise InputError(f"{origin} is {named}, which is no folder: let it name the folder that holds the data")
    return Path(named) if named else None


def _find(what: _Set, split: str, base: Path) -> list[Path]:
    """The files of the split, in order, or none. Raises InputError where only some of them are there."""
    for folder in folders_of(base, what.name):
        if files := sorted(f for home in HOMES for f in (folder / home).glob(f"{split}-*-of-*.parquet")):
            return _whole(files, split)
    for folder in folders_of(base, what.folder):
        files = [folder / batch for batch in what.batches[split]]
        there = [file.exists() for file in files]
        if any(there):
            if not all(there):
                raise InputError(f"{files[there.index(False)]} is missing: copy it too, or unpack the archive again")
            return files
    return []


def folders_of(base: Path, name: str) -> list[Path]:
    return [*([base] if base.name == name else []), base / name, *sorted(base.glob(f"*/{name}"))]


def _whole(files: list[Path], split: str) -> list[Path]:
    """The shards of one set, when each of them is there once."""
    total = files[0].stem.split("-of-")[1].split("-")[0]
    if not total.isdigit():
        raise InputError(f"{files[0]} is named otherwise than on the hub: rename it {split}-00000-of-00001.parquet")
    wanted = [f"{split}-{i:05d}-of-{total}" for i in range(int(total))]
    missing = [w for w in wanted if not any(f.name.startswith(w) for f in files)]
    if missing:
        raise InputError(f"{files[0].parent / missing[0]}.parquet is missing: copy it too")
    if len(files) > len(wanted):
        raise InputError(f"{files[0].parent} holds shards of two sets of {split}: keep {wanted[0]} and its fellows")
    return files


def _download(what: _Set, split: str, base: Path | None) -> list[Path]:
    try:
        download(what.torchvision, what.folder, cache.folder())
    except (OSError, RuntimeError) as error:
        looked = f"LRC_DATA ({base})" if base else "LRC_DATA (not set)"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{what.name} ({split}) is neither in {looked} nor in the cache ({cache.folder()}), and the "
            f"download failed ({reason}): set LRC_DATA to a folder that holds {_layouts(what, split)}, or "
            "connect to the internet"
        ) from error
    return _find(what, split, cache.folder())


def _layouts(what: _Set, split: str) -> str:
    return f"{what.name}/{split}-*.parquet or {what.folder}/{what.batches[split][0]}"


def _decode(what: _Set, files: list[Path], name: str, source: str) -> cache.Tensors:
    """Reads the files, checks that superclasses are the standard ones, and keeps the result in the cache."""
    parquet = files[0].suffix == ".parquet"
    parts = [read_parquet(f, what.columns) if parquet else read_pickle(f, what.keys) for f in files]
    of = np.array(what.hierarchy.levels[0].of)
    for file, (_, labels) in zip(files, parts, strict=True):
        if len(labels) > 1 and (of[labels[0]] != labels[1]).any():
            raise InputError(f"{file}: superclasses are not the standard ones of {what.name}: download it again")
    x = torch.from_numpy(np.concatenate([pixels for pixels, _ in parts]))
    tensors = {"x": x, "y": torch.from_numpy(np.concatenate([labels[0] for _, labels in parts]))}
    cache.store(name, tensors, source=source, content=_content(**tensors))
    return tensors


def _content(x: Tensor, y: Tensor) -> str:
    """A number that tells the whole, unchanged set, whatever the order of its rows."""
    return str(int((x.flatten(1).sum(1) ** 2 % 1_000_003 * (y + 1)).sum()))
