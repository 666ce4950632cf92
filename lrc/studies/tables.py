"""Tables of trainings: the same networks for several seeds and held-out classes, compared cell by cell.

A study is a section of `studies.toml`. Its rows were trained and measured by `lrc study NAME`, and what came out is
recorded in the package; a row that is not is trained when it is asked for, and kept in the cache.

    >>> row = rows("subpopulations")[0]
    >>> row.name, row.model
    ('cifar20-small-standard.choice-official.seed-0', 'S')
"""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from lrc import zoo
from lrc.clustering import Interval, t_interval
from lrc.errors import InputError
from lrc.files import write_text
from lrc.studies.measures import MEASURES

__all__ = ["Row", "column", "left", "make", "names", "paired", "recorded", "row", "rows", "table"]

HERE = Path(__file__).parent
RECORDS = HERE / "records"
OFFICIAL = "official"

Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One training of a study.

    Attributes:
        study: its name.
        model: what the network is called in the table.
        recipe: its name in the zoo.
        seed: of the training.
        choice: of the held-out subclasses: a seed, "official", or None where none are held out.
        main: whether it is one of those that the study is about, not a control.
    """

    study: str
    model: str
    recipe: str
    seed: int
    choice: int | str | None
    main: bool

    @property
    def name(self) -> str:
        """Recipe, choice and seed."""
        choice = "" if self.choice is None else f".choice-{self.choice}"
        return f"{self.recipe}{choice}.seed-{self.seed}"

    @property
    def change(self) -> dict[str, dict[str, Any]]:
        """What it changes in the recipe."""
        chosen = {} if self.choice in (None, OFFICIAL) else {"data": {"choice": self.choice}}
        return {"training": {"seed": self.seed}} | chosen


@cache
def _studies() -> dict[str, dict[str, Any]]:
    return tomllib.loads((HERE / "studies.toml").read_text())


def names() -> list[str]:
    """Names of the studies."""
    return list(_studies())


def _study(name: str) -> dict[str, Any]:
    if name not in _studies():
        raise InputError(f"no study is called {name!r}; there are {', '.join(_studies())}")
    return _studies()[name]


def rows(study: str) -> list[Row]:
    """The trainings of a study, those it is about before the controls.

    Raises:
        InputError: no study of that name.
    """
    given = _study(study)
    choices, seeds = given.get("choices", [None]), given["seeds"]
    every = [(c, s) for c, s in product(choices, seeds)]
    some = [(choices[i % len(choices)], s) for i, s in enumerate(seeds)]
    main = [Row(study, model, name, s, c, True) for c, s in every for model, name in given["main"].items()]
    controls = given.get("controls", {}).items()
    return main + [Row(study, model, name, s, c, False) for c, s in some for model, name in controls]


def row(name: str) -> Row:
    """The row called `name`, of whatever study.

    Raises:
        InputError: there is none.
    """
    for each in (each for study in names() for each in rows(study)):
        if each.name == name:
            return each
    raise InputError(f"no study has a row {name!r}: `lrc study NAME --list` shows those of a study")


def recorded(study: str) -> dict[str, Figures]:
    """What is recorded of a study: figures by the name of the row. Rows made by another recipe are left out."""
    path = RECORDS / f"{study}.jsonl"
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    made = {line["row"]: line for line in lines}
    wanted = {each.name: _essence(each) for each in rows(study)}
    return {name: line for name, line in made.items() if wanted.get(name) == line["made_by"]}


def left(study: str) -> list[str]:
    """Names of the rows of a study that are not recorded yet."""
    there = recorded(study)
    return [each.name for each in rows(study) if each.name not in there]


def table(study: str, *, limit: int | None = None) -> list[Figures]:
    """All rows of a study that are recorded; or, where nothing is, all rows, trained now and kept in the cache.

    Args:
        limit: for trials, see `lrc.zoo.recipe`; nothing recorded is used then.

    Returns:
        For each row model, seed and choice, and what was measured: see `lrc.studies.measures`.
    """
    found = {} if limit is not None else recorded(study)
    if found:
        return [_labelled(each, found[each.name]["figures"]) for each in rows(study) if each.name in found]
    wanted = rows(study)
    networks = zoo.obtain_all([(each.recipe, each.change) for each in wanted], limit=limit)
    return [
        _labelled(each, _measured(each, network, limit=limit)) for each, network in zip(wanted, networks, strict=True)
    ]


def column(found: Sequence[Figures], model: str, figure: str) -> Tensor:
    """One figure of all the rows of a model, in the order of the table.

    Raises:
        InputError: the table has no such model or figure.
    """
    chosen = [each for each in found if each["model"] == model]
    if not chosen or figure not in chosen[0]:
        models = ", ".join(dict.fromkeys(each["model"] for each in found))
        raise InputError(f"the table has no {figure!r} of {model!r}; its models are {models}")
    return torch.tensor([each[figure] for each in chosen], dtype=torch.float64)


def paired(found: Sequence[Figures], model: str, other: str, figure: str) -> Interval:
    """By how much a figure of one model is above that of another, over the cells that both have: mean and t interval.

    A cell is a seed and a choice of held-out classes: what is hard about it is hard for both, and cancels.

    Raises:
        InputError: as `column`, or fewer than two cells in common.
    """
    first, second = ({_cell(each): each for each in found if each["model"] == m} for m in (model, other))
    common = [cell for cell in first if cell in second]
    if len(common) < 2:
        raise InputError(f"{model!r} and {other!r} have {len(common)} rows in common: a comparison takes at least 2")
    a, b = (column([rows_of[cell] for cell in common], m, figure) for rows_of, m in ((first, model), (second, other)))
    return t_interval(a - b)


def make(name: str, *, work: str | Path, progress: bool = False) -> Figures:
    """Trains and measures the row called `name`, and records it in the package. What was broken off goes on.

    Args:
        name: of a row.
        work: folder for checkpoints, weights and verdicts.
        progress: show a progress bar.

    Raises:
        InputError: no such row, or a folder that holds what another recipe made.
    """
    wanted = row(name)
    place = Path(work) / name
    recipe = zoo.recipe(wanted.recipe, change=wanted.change)
    network, history = zoo.trained(recipe, place=place, progress=progress)
    figures = _measured(wanted, network, out=place / "evaluation")
    _record(wanted, figures, seconds=sum(epoch["seconds"] for epoch in history))
    return figures


def _measured(wanted: Row, network: torch.nn.Module, *, limit: int | None = None, out: Path | None = None) -> Figures:
    study = _study(wanted.study)
    attacks = [*study.get("attacks", ()), *(study.get("judged", ()) if wanted.main else ())]
    recipe = zoo.recipe(wanted.recipe, change=wanted.change, limit=limit)
    options = {"attacks": attacks[:1] if limit else attacks, "images": study.get("images", 1000)} if attacks else {}
    return MEASURES[study["measure"]](network, recipe, out=out, **options)


def _record(wanted: Row, figures: Figures, *, seconds: float) -> None:
    """Puts the row in its place in the file of its study."""
    path = RECORDS / f"{wanted.study}.jsonl"
    line = {
        "row": wanted.name,
        "made_by": _essence(wanted),
        "figures": _rounded(figures),
        "seconds": round(seconds),
        "versions": {"torch": torch.__version__.split("+")[0], "device": zoo.device_name()},
    }
    path.parent.mkdir(exist_ok=True)
    with FileLock(f"{path}.lock"):
        there = recorded(wanted.study) | {wanted.name: line}
        lines = [json.dumps(there[each.name]) for each in rows(wanted.study) if each.name in there]
        write_text(path, "\n".join(lines) + "\n")


def _rounded(value: Any) -> Any:
    """The same with four digits after the point, which is more than the images carry."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value


def _essence(wanted: Row) -> Any:
    """What of the recipe bears on the network, as it comes back from JSON."""
    return json.loads(json.dumps(zoo.essence(zoo.recipe(wanted.recipe, change=wanted.change))))


def _labelled(each: Row, figures: Figures) -> Figures:
    return {"model": each.model, "seed": each.seed, "choice": each.choice} | figures


def _cell(figures: Figures) -> tuple[Any, Any]:
    return figures["choice"], figures["seed"]
