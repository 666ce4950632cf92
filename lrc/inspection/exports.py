"""Maps as files that other programs read; the ending of the name says which."""

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from torch import Tensor

from lrc.inspection.clusters import NAMES, Clusters, Maps
from lrc.utils.checks import check_choice
from lrc.utils.errors import InputError
from lrc.utils.files import save_tensors, write, write_text

__all__ = ["ENDINGS", "OF_ONE", "check_map", "check_name", "save"]


def check_name(path: Path) -> None:
    """Refuses a name that cannot be written to, or whose ending says nothing, before the work and not after it.

    Raises:
        InputError: a folder, one in a folder that is not there, or another ending than those of `ENDINGS`.
    """
    if path.suffix not in ENDINGS:
        raise InputError(f"{path} ends in none of {', '.join(ENDINGS)}, and the ending says what is written")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"{path} cannot be written: name a file in a folder that exists")


def check_map(of: str) -> None:
    """Raises InputError for a map of another name than W, local or means."""
    check_choice("map", of, NAMES)


def save(found: Maps, path: Path, *, of: str = "W") -> None:
    """Writes maps under a name whose ending says what of them; whole, or not at all.

    Args:
        found: maps, or an inspection.
        path: .csv has C, with the names of the classes; .npy the map, float32; .npz and .safetensors the maps that
            there are and their C, as W_rows, W_C, local_rows and so on; .json all numbers but the maps themselves;
            .md the table of contrasts and tests, and C.
        of: which map is meant where the file has one: "W", "local" or "means".

    Raises:
        InputError: as `check_name`; a map of another name; one that there is not, where the file is of that one.
    """
    check_name(path)
    check_map(of)
    ENDINGS[path.suffix](found, path, of)


def _one(found: Maps, of: str) -> Clusters:
    one = getattr(found, of)
    if one is None:
        others = ", ".join(key for key in NAMES if getattr(found, key) is not None) or "none"
        raise InputError(
            f"{found.name} has no {NAMES[of]} to write ({'; '.join(found.notes)}); maps there are: {others}"
        )
    return one


def _lines(found: Maps, of: str) -> list[list[str]]:
    """C with the names of its rows and columns."""
    names, C = found.classes, _one(found, of).C.tolist()
    return [["", *names], *([name, *map(str, row)] for name, row in zip(names, C, strict=True))]


def _csv(found: Maps, path: Path, of: str) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(_lines(found, of))  # names may have commas
    write_text(path, text.getvalue())


def _markdown(found: Maps, path: Path, of: str) -> None:
    shown = [[name, *(f"{float(c):.3f}" for c in row)] for name, *row in _lines(found, of)[1:]]
    tables = _table(found.rows()), _table([["", *found.classes], *shown])
    text = f"{found.name} on {found.source}\n\n{tables[0]}\n\nC of the {NAMES[of]}\n\n{tables[1]}\n"
    write_text(path, text)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([head, "|---" + "|--:" * (len(rows[0]) - 1) + "|", *rest])


def _json(found: Maps, path: Path, of: str) -> None:
    write_text(path, found.to_json())


def _npy(found: Maps, path: Path, of: str) -> None:
    write(path, lambda unfinished: _written(unfinished, _one(found, of).rows.float().numpy()))


def _written(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save would change a name without .npy
        np.save(file, array)


def _tensors(found: Maps) -> Iterator[tuple[str, Tensor]]:
    for key in NAMES:
        if (one := getattr(found, key)) is not None:
            yield from ((f"{key}_{what}", getattr(one, what).float()) for what in ("rows", "C"))


def _npz(found: Maps, path: Path, of: str) -> None:
    """One array at a time: three of 1,000 classes at 224 pixels have 1.8 GB."""

    def save(unfinished: Path) -> None:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
            names = [("classes", np.array(found.classes))]
            for name, array in chain(names, ((name, t.numpy()) for name, t in _tensors(found))):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)

    write(path, save)


def _safetensors(found: Maps, path: Path, of: str) -> None:
    save_tensors(path, dict(_tensors(found)), {"classes": json.dumps(found.classes)})


ENDINGS: dict[str, Callable[[Maps, Path, str], None]] = {
    ".csv": _csv, ".json": _json, ".md": _markdown, ".npy": _npy, ".npz": _npz, ".safetensors": _safetensors,
}  # fmt: skip
"""What is written, by the ending of the name."""

OF_ONE = (".csv", ".npy")
"""Endings of files that have one map alone."""
