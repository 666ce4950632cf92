"""CIFAR-10 and CIFAR-100: found on disk or downloaded, decoded once, then loaded memory-mapped."""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from lrc.data import cache
from lrc.data.decoding import GREY, opened
from lrc.data.images import Images
from lrc.hierarchy import CIFAR10, CIFAR100, Hierarchy
from lrc.utils.errors import InputError
from lrc.utils.files import sha256

SIDE = 32
MOST = 100_000  # rows of a file, twice those of the whole set
ROOM = 16 * 1024  # bytes of a row, five times those of its pixels: what takes more in memory is refused unread
HOMES = ("", "plain_text", "cifar100", "data")  # folders of a set in which copies of the hub keep the shards


@dataclass(frozen=True)
class _Set:
    """How one data set is called in each of the layouts."""

    name: str
    hierarchy: Hierarchy
    columns: dict[str, int]  # of labels in Parquet, with their number of classes
    folder: str
    batches: dict[str, tuple[str, ...]]
    torchvision: str  # the class there that knows address and checksums, and reads the batches
    content: dict[str, str]  # see `_content`


_CIFAR10 = _Set(
    name="cifar10",
    hierarchy=CIFAR10,
    columns={"label": 10},
    folder="cifar-10-batches-py",
    batches={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    torchvision="CIFAR10",
    content={
        "train": "6a3b2c04d0a79ce272dcdacaf0bc440275db5a8cbe3717521a28fada2ea0d2ed",
        "test": "65a6ffe079453e514083f99356b35e02cbfd581b4951e3937fae188974b79f39",
    },
)
_CIFAR100 = _Set(
    name="cifar100",
    hierarchy=CIFAR100,
    columns={"fine_label": 100, "coarse_label": 20},
    folder="cifar-100-python",
    batches={"train": ("train",), "test": ("test",)},
    torchvision="CIFAR100",
    content={
        "train": "640c97a4012a8aebfcaf57fd82a33dd43b37d2e397a02cb9b0a3d89e6d6d936d",
        "test": "a6a97df7b61bc7420bc44268696e8963d33129bc050978f2a63d8fe3420989fa",
    },
)


def cifar10(split: str = "train", *, root: str | Path | None = None) -> Images:
    """CIFAR-10: 50,000 or 10,000 colour images of 32x32 pixels in 10 classes.

    Looked for in LRC_DATA (or in `root` instead, and then nowhere else) and in the cache (LRC_CACHE, or else
    the user's cache folder), and last downloaded by torchvision. It reads Parquet files as on the Hugging
    Face hub (`cifar10/train-*.parquet`), and by torchvision the folder `cifar-10-batches-py` as published. The pixels
    are decoded once, kept in the cache with the SHA-256 of the files they come from, and memory-mapped from there.

    Raises:
        InputError: the set is nowhere to be had, incomplete or damaged.

    Warns:
        UserWarning: these are other images or labels than the published ones, as in an excerpt.

    Source: A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images* (2009).
    """
    return Images(*_load(_CIFAR10, split, root), CIFAR10.classes, CIFAR10)


def cifar100(split: str = "train", *, root: str | Path | None = None) -> Images:
    """CIFAR-100: as `cifar10`, in 100 classes with the 20 superclasses, and kinds of these, as hierarchy.

    `lrc.data.as_superclasses` labels it by superclass. Raises, Warns: as `cifar10`.
    """
    return Images(*_load(_CIFAR100, split, root), CIFAR100.classes, CIFAR100)


def _load(what: _Set, split: str, root: str | Path | None) -> tuple[Tensor, Tensor]:
    """Pixels and labels."""
    if split not in ("train", "test"):
        raise InputError(f"split {split!r}, expected 'train' or 'test'")
    base, name, known = cache.base_folder(root), f"{what.name}-{split}", what.content[split]
    files = _find(what, split, base) if base else []
    kept = None
    if not files and root is None:
        kept = cache.load(name, content=known)  # what was decoded from files now gone, if it is the published set
        if kept is None and not (files := _find(what, split, cache.folder())):
            cache.download(what.torchvision, what.folder, what=f"{what.name} ({split})", layouts=_layouts(what, split))
            files = _find(what, split, cache.folder())
    if kept is None:
        if not files:
            raise InputError(f"{what.name} ({split}) is not in {base}: it should hold {_layouts(what, split)}")
        kept = _of_files(what, split, files)
    return kept["x"].permute(0, 3, 1, 2), kept["y"]


def _of_files(what: _Set, split: str, files: list[Path]) -> cache.Tensors:
    """What is in the files; from the cache where these very bytes were decoded before."""
    name, source, known = f"{what.name}-{split}", sha256(*files), what.content[split]
    if kept := cache.load(name, source=source, content=known):
        return kept
    if (kept := cache.load(name, source=source)) is None:
        kept = _decode(what, split, files)
        cache.store(name, kept, source=source, content=(content := _content(**kept)))
        if content == known:
            return kept
    warnings.warn(
        f"{files[0].parent} holds other images or labels than the published {what.name} ({split}), an excerpt or a "
        "damaged copy: figures cannot be compared with those of others",
        stacklevel=2,
    )
    return kept


def _find(what: _Set, split: str, base: Path) -> list[Path]:
    """The files of the split, in order, or none. Raises InputError where only some of them are there."""
    for folder in cache.folders_of(base, what.name):
        if files := sorted(f for home in HOMES for f in (folder / home).glob(f"{split}-*-of-*.parquet")):
            return _whole(files, split)
    for folder in cache.folders_of(base, what.folder):
        files = [folder / batch for batch in what.batches[split]]
        there = [file.exists() for file in files]
        if any(there):
            if not all(there):
                raise InputError(f"{files[there.index(False)]} is missing: copy it too, or unpack the archive again")
            return files
    return []


def _whole(files: list[Path], split: str) -> list[Path]:
    """The shards of one set, when each of them is there once."""
    total = files[0].stem.split("-of-")[1].split("-")[0]
    if not total.isdigit():
        raise InputError(f"{files[0]} is named otherwise than on the hub: rename it {split}-00000-of-00001.parquet")
    wanted = [f"{split}-{i:05d}-of-{total}" for i in range(min(int(total), len(files) + 1))]
    missing = [w for w in wanted if not any(f.name.startswith(w) for f in files)]
    if missing:
        raise InputError(f"{files[0].parent / missing[0]}.parquet is missing: copy it too")
    if len(files) > len(wanted):
        raise InputError(f"{files[0].parent} holds shards of two sets of {split}: keep {wanted[0]} and its fellows")
    return files


def _layouts(what: _Set, split: str) -> str:
    return f"{what.name}/{split}-*.parquet or {what.folder}/{what.batches[split][0]}"


def _decode(what: _Set, split: str, files: list[Path]) -> cache.Tensors:
    if files[0].suffix != ".parquet":
        return _read_batches(what, split, files[0].parent)
    parts = [_read_parquet(file, what) for file in files]
    return {key: torch.from_numpy(np.concatenate([part[key] for part in parts])) for key in ("x", "y")}


def _content(x: Tensor, y: Tensor) -> str:
    """What tells the whole, unchanged set, whatever the order of its rows: SHA-256 of those of the images."""
    rows = zip(x.flatten(1).numpy(), y.tolist(), strict=True)
    hashes = sorted(hashlib.sha256(pixels.tobytes() + bytes([label])).digest() for pixels, label in rows)
    return hashlib.sha256(b"".join(hashes)).hexdigest()


def _read_batches(what: _Set, split: str, folder: Path) -> cache.Tensors:
    """The batches of the published archive. They are pickles, which torchvision opens once their checksums are right.

    Raises InputError, naming the folder, for others.
    """
    from torchvision import datasets

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, about the old pickles
            found = getattr(datasets, what.torchvision)(folder.parent, train=split == "train")
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{folder} is not the published archive of {what.name}, or not all of it, by torchvision's checksums: "
            "unpack or download it again"
        ) from error
    return {"x": torch.from_numpy(found.data), "y": torch.tensor(found.targets)}


def _read_parquet(path: Path, what: _Set) -> dict[str, Any]:
    """Pixels x (n, 32, 32, 3) and labels y of the hub's layout: `img` (a struct with encoded `bytes`), and labels.

    Raises InputError, naming the file, when this is no whole Parquet file of 32x32 colour images and such labels.
    """
    table = _table(path, what.columns)
    y, *coarse = (_labels(path, table[name], classes) for name, classes in what.columns.items())
    if coarse and (np.array(what.hierarchy.levels[0].of)[y] != coarse[0]).any():
        raise InputError(f"{path}: superclasses are not the standard ones of {what.name}: download it again")
    x = np.empty((len(y), SIDE, SIDE, 3), np.uint8)
    row = 0
    for chunk in table["img"].chunks:  # threads gain nothing: Pillow keeps the interpreter's lock
        encoded = chunk.field("bytes")
        values = encoded.dictionary.to_pylist()
        for place in encoded.indices.to_pylist():
            x[row] = _pixels(f"{path}: row {row}", b"" if place is None else values[place] or b"")
            row += 1
    return {"x": x, "y": y}


def _table(path: Path, columns: dict[str, int]) -> Any:
    """The columns, those of the images as a dictionary, so that equal ones take memory once."""
    from pyarrow import parquet

    try:
        _check_layout(path, parquet.read_schema(path), columns)
        file = parquet.ParquetFile(path, read_dictionary=["img.bytes"])
        facts = file.metadata
        size = sum(facts.row_group(i).total_byte_size for i in range(facts.num_row_groups))
        if facts.num_rows > MOST or size > ROOM * (facts.num_rows + 64):
            raise InputError(
                f"{path} would take {size:,} bytes for {facts.num_rows:,} rows, far more than images of 32x32: "
                "copy or download it again"
            )
        return file.read(columns=["img.bytes", *columns])
    except (InputError, MemoryError):
        raise
    except Exception as error:  # pyarrow's, Python's, the system's: damage leads to any
        reason = " ".join(str(error).split())[:120].rstrip(".") or type(error).__name__
        raise InputError(f"{path} is no whole Parquet file ({reason}): copy or download it again") from error


def _check_layout(path: Path, schema: Any, columns: dict[str, int]) -> None:
    import pyarrow

    if missing := [name for name in ("img", *columns) if name not in schema.names]:
        there = ", ".join(schema.names)
        raise InputError(f"{path} lacks the column {missing[0]!r} (it has {there}): expected the hub's layout of CIFAR")
    image = schema.field("img").type
    if not pyarrow.types.is_struct(image) or image.get_field_index("bytes") < 0:
        raise InputError(f"{path}: the column 'img' is {image}, expected struct<bytes, path> as on the hub")


def _pixels(what: str, encoded: bytes) -> UInt8[np.ndarray, "32 32 3"]:
    with opened(io.BytesIO(encoded), what) as image:
        if image.size != (SIDE, SIDE):
            raise InputError(f"{what} is {image.width}x{image.height}, expected {SIDE}x{SIDE}: resize it")
        if image.mode != "RGB":
            kind = "greyscale" if image.mode in GREY else f"of mode {image.mode}"
            raise InputError(f"{what} is {kind}, expected colour: convert it to RGB")
        return np.asarray(image)


def _labels(path: Path, column: Any, classes: int) -> Int64[np.ndarray, " n"]:
    """One column as int64. Raises InputError, naming file and row, for a label outside 0..classes-1."""
    import pyarrow

    if not pyarrow.types.is_integer(column.type) or column.null_count:
        raise InputError(f"{path}: labels of type {column.type} with {column.null_count} missing, expected integers")
    labels = column.to_numpy()
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        row = wrong[0]
        raise InputError(f"{path}: label {labels[row]} in row {row}, expected 0..{classes - 1}: correct or remove it")
    return np.asarray(labels.astype(np.int64))
