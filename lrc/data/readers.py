"""The file formats of CIFAR: the hub's Parquet and torchvision's pickles, each read into (x, labels)."""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from lrc.utils.errors import InputError

SIDE = 32
Pixels = UInt8[np.ndarray, "n 32 32 3"]
Labels = list[Int64[np.ndarray, " n"]]


def read_parquet(path: Path, columns: dict[str, int]) -> tuple[Pixels, Labels]:
    """Images of the column `img` (struct with encoded `bytes`), and the label columns in the order given.

    `columns` names the number of classes of each. Raises InputError, naming the file, when this is no whole
    Parquet file of 32x32 colour images and such labels.
    """
    table = _table(path, columns)
    images = table["img"].combine_chunks().field("bytes").to_pylist()
    labels = [_column(path, table[name], classes) for name, classes in columns.items()]
    x = np.empty((len(images), SIDE, SIDE, 3), np.uint8)
    for row, encoded in enumerate(images):  # threads gain nothing: Pillow keeps the interpreter's lock
        x[row] = _decode(path, row, encoded)
    return x, labels


def _table(path: Path, columns: dict[str, int]) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is no whole Parquet file ({_line(error)}): copy or download it again") from error
    missing = [name for name in ("img", *columns) if name not in table.column_names]
    if missing:
        raise InputError(
            f"{path} lacks the column {missing[0]!r} (it has {', '.join(table.column_names)}): "
            "expected the hub's layout of CIFAR"
        )
    image = table.schema.field("img").type
    if not pyarrow.types.is_struct(image) or image.get_field_index("bytes") < 0:
        raise InputError(f"{path}: the column 'img' is {image}, expected struct<bytes, path> as on the hub")
    return table


def _column(path: Path, column: Any, classes: int) -> Int64[np.ndarray, " n"]:
    import pyarrow

    if not pyarrow.types.is_integer(column.type) or column.null_count:
        raise InputError(f"{path}: labels of type {column.type} with {column.null_count} missing, expected integers")
    return check_labels(path, column.to_numpy(), classes)


def _decode(path: Path, row: int, encoded: bytes | None) -> UInt8[np.ndarray, "32 32 3"]:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(encoded or b""))
        image.load()
    except (OSError, SyntaxError, ValueError, TypeError) as error:
        raise InputError(f"{path}: row {row} holds no whole image: copy or download the file again") from error
    if image.size != (SIDE, SIDE):
        raise InputError(f"{path}: row {row} is {image.width}x{image.height}, expected {SIDE}x{SIDE}: resize it")
    if image.mode != "RGB":
        kind = "greyscale" if image.mode in ("1", "L", "LA", "I", "I;16", "F") else f"of mode {image.mode}"
        raise InputError(f"{path}: row {row} is {kind}, expected colour: convert it to RGB")
    return np.asarray(image)


def read_pickle(path: Path, columns: dict[str, int]) -> tuple[Pixels, Labels]:
    """Images and labels of one batch file of the original python version, as torchvision unpacks it.

    Only plain values and NumPy arrays are unpickled, so that a foreign file cannot run code.
    Raises InputError as `read_parquet` does.
    """
    try:
        with path.open("rb") as file:
            batch = _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(f"{path} is no batch of CIFAR ({_line(error)}): copy or download it again") from error
    missing = [key for key in ("data", *columns) if not isinstance(batch, dict) or key not in batch]
    if missing:
        raise InputError(f"{path} is no batch of CIFAR (no {missing[0]!r} in it): copy or download it again")
    x = np.asarray(batch["data"])
    if x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != 3 * SIDE * SIDE:
        raise InputError(f"{path}: data is {x.dtype} {x.shape}, expected uint8 (n, 3072): 32x32 colour images")
    labels = [check_labels(path, np.asarray(batch[name]), k) for name, k in columns.items()]
    if any(len(v) != len(x) for v in labels):
        raise InputError(f"{path} has {len(x)} images and another number of labels: copy or download it again")
    return np.ascontiguousarray(x.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), labels


class _Unpickler(pickle.Unpickler):
    """Knows the four names that a pickled NumPy array refers to, in old and new modules, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "multiarray._reconstruct": np.empty(0).__reduce__()[0],
            "numpy.ndarray": np.ndarray,
            "numpy.dtype": np.dtype,
            "_codecs.encode": _encode,
        }
        key = f"{re.sub(r'^numpy[.]_?core[.]', '', module)}.{name}"
        if key not in known:
            raise pickle.UnpicklingError(f"refers to {module}.{name}")
        return known[key]


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


def check_labels(path: Path, labels: np.ndarray, classes: int) -> Int64[np.ndarray, " n"]:
    """The labels as int64. Raises InputError, naming file and row, for one outside 0..classes-1."""
    if labels.ndim != 1 or (labels.size and not np.issubdtype(labels.dtype, np.integer)):
        raise InputError(f"{path}: labels are {labels.dtype} {labels.shape}, expected one integer an image")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        row = wrong[0]
        raise InputError(f"{path}: label {labels[row]} in row {row}, expected 0..{classes - 1}: correct or remove it")
    return labels.astype(np.int64)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120].rstrip(".") or type(error).__name__
