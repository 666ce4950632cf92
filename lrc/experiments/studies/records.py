"""What is recorded of studies: a line of JSON a row, in the package."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from lrc.experiments import fitting, store
from lrc.experiments.recipe import Recipe, identity, recipe
from lrc.experiments.studies.plan import Row, rows, study_called
from lrc.utils.errors import InputError
from lrc.utils.files import read_json, read_lines, write_json, write_lines

__all__ = ["Figures", "asked", "check", "kept", "left", "options", "record", "recorded"]

RECORDS = Path(__file__).parent / "records"

Figures = dict[str, Any]


def recorded(study: str) -> dict[str, Figures]:
    """What is recorded of a study: figures by the name of the row. Rows made or measured otherwise are left out.

    Raises:
        InputError: no study of that name, or a damaged record.
    """
    wanted = {each.name: _made_by(each) for each in rows(study)}
    return {name: line for name, line in _lines(study).items() if wanted.get(name) == _alike(line["made_by"])}


def _lines(study: str) -> dict[str, Figures]:
    """The lines of the file by the name of the row, those made or measured otherwise too."""
    path = RECORDS / f"{study}.jsonl"
    if not path.exists():
        return {}
    lines = read_lines(path)
    try:
        return {line["row"]: line for line in lines if _alike(line["made_by"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}): install the package again") from error


def left(study: str) -> list[str]:
    """Names of the rows of a study that are not recorded yet."""
    there = recorded(study)
    return [each.name for each in rows(study) if each.name not in there]


def check(study: str) -> None:
    """Refuses records that could not be added to.

    Raises:
        InputError: they are damaged or cannot be written.
    """
    if not os.access(RECORDS if RECORDS.exists() else RECORDS.parent, os.W_OK):
        raise InputError(f"{RECORDS} cannot be written: studies are recorded in a copy of the package of one's own")
    recorded(study)


def record(wanted: Row, figures: Figures, *, seconds: float, versions: dict[str, str] | None = None) -> None:
    """Puts the row in its place in the file of its study; other rows stay, also those that were made otherwise.

    Args:
        seconds: that the training took.
        versions: as `lrc.experiments.fitting.versions` gives them where it was made, by default those of this process.
    """
    path = RECORDS / f"{wanted.study}.jsonl"
    line = {
        "row": wanted.name,
        "made_by": {"recipe": store.noted(_recipe(wanted))} | options(wanted),
        "figures": _rounded(figures),
        "seconds": round(seconds),
        "versions": versions or fitting.versions(),
    }
    path.parent.mkdir(exist_ok=True)
    with FileLock(f"{path}.lock"):
        there = _lines(wanted.study) | {wanted.name: line}
        write_lines(path, [there[each.name] for each in rows(wanted.study) if each.name in there])


def kept(wanted: Row, measure: Callable[[], Figures], *, limit: int | None) -> Figures:
    """The figures of a row that is not recorded, measured once on this machine: see `lrc.experiments.store.VERSION`."""
    path = store.cached("studies", wanted.name, _made_by(wanted), limit).with_suffix(".json")
    if not path.exists():
        write_json(path, measure())
    return read_json(path)


def _rounded(value: Any) -> Any:
    """The same with four digits after the point, which is more than the images carry; None for what is no number."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def options(wanted: Row) -> dict[str, Any]:
    """How a row is measured: how many images, and where they are attacked by name, by what."""
    study = study_called(wanted.study)
    attacks = [*study.get("attacks", ()), *(study.get("judged", ()) if wanted.main else ())]
    return {"images": study["images"]} | ({"attacks": attacks} if attacks else {})


def _made_by(wanted: Row) -> Figures:
    """What bears on the figures: the recipe, and how the network is measured."""
    return {"recipe": identity(_recipe(wanted))} | options(wanted)


def asked(wanted: Sequence[Row]) -> list[Figures]:
    """All that the figures of each row depend on, the images too. Raises InputError: they are not to be had."""
    digests: dict[str, list[str]] = {}  # of what rows have in common but once
    for made in map(_recipe, wanted):
        if str(made.data) not in digests:
            digests[str(made.data)] = [part.digest() for part in fitting.split_images(made)]
    return [_made_by(e) | {"version": store.VERSION, "data": digests[str(_recipe(e).data)]} for e in wanted]


def _alike(made_by: Figures) -> Figures:
    """The same of a line in the file."""
    return made_by | {"recipe": identity(made_by["recipe"])}


def _recipe(wanted: Row) -> Recipe:
    return recipe(wanted.recipe, change=wanted.change)
