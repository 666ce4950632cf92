"""The studies: which networks are trained for which seeds and held-out classes.

>>> row = rows("subpopulations")[0]
>>> row.name, row.model
('cifar20-small-standard.choice-official.seed-0', 'S')
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from lrc.utils.errors import InputError

__all__ = ["Row", "names", "row", "rows", "study_called"]

OFFICIAL = "official"


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
    return tomllib.loads(Path(__file__).with_name("studies.toml").read_text())


def names() -> list[str]:
    """Names of the studies."""
    return list(_studies())


def study_called(name: str) -> dict[str, Any]:
    """The section of a study.

    Raises:
        InputError: no study of that name.
    """
    if name not in _studies():
        raise InputError(f"no study is called {name!r}; there are {', '.join(_studies())}")
    return _studies()[name]


def rows(study: str) -> list[Row]:
    """The trainings of a study, those it is about before the controls.

    Raises:
        InputError: no study of that name.
    """
    given = study_called(study)
    choices, seeds = given.get("choices", [None]), given["seeds"]
    every = [(c, s) for c, s in product(choices, seeds)]
    some = [(choices[i % len(choices)], s) for i, s in enumerate(seeds)]
    main = [Row(study, model, name, s, c, True) for c, s in every for model, name in given["main"].items()]
    controls = given.get("controls", {}).items()
    return main + [Row(study, model, name, s, c, False) for c, s in some for model, name in controls]


def row(name: str) -> Row:
    """The row called `name`, of whatever study; `STUDY/NAME` where several studies have one of that name.

    Raises:
        InputError: there is none, or more than one.
    """
    study, _, last = str(name).rpartition("/")
    found = [each for every in ([study] if study else names()) for each in rows(every) if each.name == last]
    if not found:
        there = f"the studies are {', '.join(names())}, and `lrc study NAME --list` shows the rows of one"
        raise InputError(f"there is no study or row {name!r}; {there}")
    if len(found) > 1:
        ways = " or ".join(f"{each.study}/{each.name}" for each in found)
        raise InputError(f"{len(found)} studies have a row {name!r}: say {ways}")
    return found[0]
