"""Recipes: how each network is made, as typed values that are checked when they are read.

>>> recipe("cifar10-resnet8-at").objective.options["eps"]
'8/255'
"""

import inspect
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from lrc.utils.errors import InputError

__all__ = [
    "EPS",
    "Change",
    "Data",
    "Network",
    "Objective",
    "Recipe",
    "Training",
    "checked",
    "identity",
    "names",
    "number",
    "read",
    "recipe",
    "recipes",
    "without_groups",
    "worked_out",
]

EPS = 8 / 255
PARTITIONS = ("groups", "within")  # options of objectives that name groups of classes
OF_CLUSTERING = ("on", "reduction", "groups", "found_after")
OF_RECIPES = ("teacher", "found_after", *PARTITIONS)  # options of objectives that a recipe gives in words of its own
FREE = ("compile", "tensorboard", "checkpoint_every")  # may differ where a training goes on
LEAST = {
    "validation": 1, "limit": 1, "trial": 1, "epochs": 1, "batch_size": 1, "checkpoint_every": 1, "width": 1,
    "classes": 1, "steps": 0, "eps": 0, "lr": 0, "weight_decay": 0, "momentum": 0, "ema": 0,
}  # fmt: skip

Change = Mapping[str, Mapping[str, Any]]
"""Other values for some entries of a recipe, by section: {"training": {"seed": 1}}."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a network is trained, validated and tested on.

    Attributes:
        name: a data set, or the path of a folder: see `lrc.data.named`.
        validation: training images that are held out to choose the epoch.
        limit: at most so many images of each part.
        labels: "classes" or "superclasses".
        options: of the data set.
    """

    name: str
    validation: int
    limit: int | None = None
    labels: str = "classes"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Network:
    """Name of an architecture as `lrc.models.build` takes it, and its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Name of a method in `lrc.objectives`, and its options: those of the method, and these.

    `teacher` is a recipe; `groups` and `within` are lists of classes or a word, see `lrc.zoo.partition`; groups that
    are to be found are looked for after `found_after` epochs.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Arguments of `lrc.train`; instead of a schedule `milestones`, shares of the training: see `lrc.training`."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    milestones: Sequence[float] | None = None
    precision: str = "float32"
    augment: bool = True
    seed: int
    momentum: float = 0.9
    ema: float | None = None
    compile: bool = False
    checkpoint_every: int | None = None
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a network depends on.

    Attributes:
        about: what it is, in a line.
        shipped: whether its weights go into the package.
        eps: Linf radius at which it is validated and judged, in units of a pixel; by default that of its objective.
        trial: the limit of images of a trial.
    """

    data: Data
    network: Network
    objective: Objective
    training: Training
    about: str = ""
    shipped: bool = False
    eps: float | str | None = None
    trial: int | None = None

    @property
    def radius(self) -> float:
        """The Linf radius of validation and judgement: its own, else that of its objective, else 8/255."""
        return float(number(self.objective.options.get("eps", EPS) if self.eps is None else self.eps))

    def written(self) -> dict[str, Any]:
        """The recipe as it stands in a file: what is needed, and what is not the default."""
        sections = {name: _written(getattr(self, name)) for name in SECTIONS}
        return {k: v for k, v in _written(self).items() if k not in SECTIONS} | sections


SECTIONS = {"data": Data, "network": Network, "objective": Objective, "training": Training}


def _written(value: Any) -> dict[str, Any]:
    kept = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}
    return kept | dict(kept.pop("options", {}))


def read(given: Mapping[str, Any], *, where: str) -> Recipe:
    """The recipe that a file of TOML or JSON holds; `checked` looks at the options of data, network and objective too.

    Args:
        given: what the file holds.
        where: what to call it in messages.

    Raises:
        InputError: a section or an entry that is missing, unknown or of a wrong type.
    """
    if missing := [name for name in SECTIONS if not isinstance(given.get(name), Mapping)]:
        raise InputError(f"{where} is no recipe, it has no section {missing[0]!r}: there are {', '.join(SECTIONS)}")
    sections = {name: _section(kind, given[name], where=f"{where}: {name}.") for name, kind in SECTIONS.items()}
    rest = {k: v for k, v in given.items() if k not in ("teacher", *SECTIONS)}  # `identity` adds the teacher
    _fits(rest | sections, Recipe, where=f"{where}: ")
    _check(rest.get("eps"), float | None, "eps", f"{where}: ")
    return Recipe(**sections, **rest)


def _section(kind: type, given: Mapping[str, Any], *, where: str) -> Any:
    own = {f.name for f in fields(kind) if f.name != "options"}
    entries = {k: v for k, v in given.items() if k in own}
    options = {k: v for k, v in given.items() if k not in own}
    if kind is Training:
        _fits(entries | options, kind, where=where)
        return kind(**entries)
    _fits(entries, kind, where=where)
    return kind(**entries, options=options)


def checked(wanted: Recipe, *, where: str) -> Recipe:
    """The recipe, its open options checked against the signatures of what they go to.

    Raises:
        InputError: no such data set, network or method, or an option that is unknown, missing or of a wrong type.
    """
    from lrc.data.folders import folder  # here: `lrc zoo list` needs no PyTorch
    from lrc.data.parts import subpopulations
    from lrc.data.sources import SOURCES, named
    from lrc.models.networks import BUILDERS, build
    from lrc.training.objectives import METHODS
    from lrc.training.objectives import named as method

    data, network, objective = wanted.data, wanted.network, wanted.objective
    own = {k: v for k, v in data.options.items() if k != "part"}  # which `named` looks at itself
    _fits(own, SOURCES.get(data.name, folder), named, subpopulations, where=f"{where}: data.", given=("split",))
    if network.name in BUILDERS:
        builder = BUILDERS[network.name]
        kind = inspect.signature(builder).return_annotation  # takes what the builder hands on
        _fits(network.options, kind, builder, build, where=f"{where}: network.", given=("blocks", "generator"))
    elif ":" not in network.name:  # FILE.py:NAME is the user's own
        raise InputError(f"{where}: no network is called {network.name!r}; there are {', '.join(BUILDERS)}")
    if objective.name not in METHODS:
        raise InputError(f"{where}: no method is called {objective.name!r}; there are {', '.join(METHODS)}")
    own = {k: v for k, v in objective.options.items() if k not in OF_RECIPES}
    _fits(own, METHODS[objective.name], method, where=f"{where}: objective.", given=("teacher", "name"))
    if idle := [k for k in OF_CLUSTERING if k in objective.options and "clustering" not in objective.options]:
        raise InputError(f"{where}: {idle[0]} is of the clustering term: give clustering, its weight, too")
    return wanted


def _fits(values: Mapping[str, Any], *functions: Callable[..., Any], where: str, given: Sequence[str] = ()) -> None:
    """Checks values by name against signatures: the first says if there may be others, the last what is needed.

    Args:
        given: parameters that come from elsewhere.

    Raises:
        InputError: an unknown name (with the nearest known one), a missing one, a wrong type, too small a number.
    """
    every = [p for f in reversed(functions) for p in inspect.signature(f).parameters.values()]
    possible = [p for p in every if p.kind is p.KEYWORD_ONLY or p.default is not p.empty]
    known = {p.name: p for p in possible if p.name not in given}
    more = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(functions[0]).parameters.values())
    for name, value in values.items():
        if name in known:
            _check(value, known[name].annotation, name, where)
        elif not more:
            near = "".join(f" (did you mean {close}?)" for close in get_close_matches(name, known, 1))
            raise InputError(f"{where}{name} is unknown{near}; there are {', '.join(known)}")
    needed = [
        n
        for n in inspect.signature(functions[-1]).parameters
        if n in known and known[n].default is inspect.Parameter.empty
    ]
    if missing := [name for name in needed if name not in values]:
        raise InputError(f"{where}{missing[0]} is missing: give it")


def _check(value: Any, annotation: Any, name: str, where: str) -> None:
    if not _is(value, annotation):
        raise InputError(f"{where}{name} = {value!r:.60}, expected {_called(annotation)}")
    least = LEAST.get(name, -math.inf)
    if isinstance(plain := _plain(value), float) and plain < least:
        raise InputError(f"{where}{name} = {value!r}, expected at least {least}")


def _is(value: Any, annotation: Any) -> bool:
    """Whether a value of a file may stand where this annotation does; what no file can hold is left to the function."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(_is(value, each) for each in inner)
    if annotation is float:
        return isinstance(_plain(value), float)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str, dict, None, NoneType):
        return isinstance(value, annotation or NoneType)
    if origin in (Sequence, list, tuple):
        return isinstance(value, list | tuple) and all(_is(each, inner[0]) for each in value)
    return True


def _called(annotation: Any) -> str:
    words = {int: "a whole number", float: "a number such as 0.03 or 8/255", bool: "true or false", str: "text"}
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_called(each) for each in get_args(annotation) if each is not NoneType)
    if get_origin(annotation) is Sequence:
        return "a list of numbers" if float in get_args(annotation) else "a list"
    return words.get(annotation, str(annotation))


def _plain(value: Any) -> Any:
    """Numbers, and texts of one, as floats; lists as lists; the rest as it is."""
    if isinstance(value, list | tuple):
        return [*map(_plain, value)]
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    try:
        return float(number(value))
    except InputError:
        return value


def worked_out(value: Any) -> Any:
    """A text that is a number as that number, the rest as it is: "8/255", but not "mean"."""
    return _plain(value) if isinstance(value, str) else value


def number(value: Any) -> Any:
    """A number, or text of one, where a fraction may be written out: "8/255"; None stays.

    Raises:
        InputError: text that is no finite number, or something else.
    """
    if value is None or isinstance(value, int | float):
        return value
    above, slash, below = value.partition("/") if isinstance(value, str) else ("", "", "")
    try:
        found = float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"{value!r} is no number: write 0.03 or 8/255")
    return found


@cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name, as they stand in `recipes.toml`, with what they take over from others filled in."""
    written = tomllib.loads(Path(__file__).with_name("recipes.toml").read_text(encoding="utf-8"))
    return {name: read(_whole(name, written), where=f"recipe {name}") for name in written}


def _whole(name: str, written: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The recipe that is written `like` another, entry by entry; the objective it names anew, if any, as a whole."""
    given = dict(written[name])
    if "like" not in given:
        return given
    base = _whole(given.pop("like"), written)
    merged = {
        key: {**base.get(key, {}), **entries} if isinstance(entries, dict) and key != "objective" else entries
        for key, entries in given.items()
    }
    return {k: v for k, v in base.items() if k != "shipped"} | merged


def names() -> list[str]:
    """Names of all the recipes; `info` says of which there are weights, and of which recorded figures."""
    return list(recipes())


def recipe(name: str, *, change: Change | None = None, limit: int | None = None) -> Recipe:
    """The recipe called `name`: sections data, network, objective and training.

    Args:
        name: one of `names()`.
        change: other values for some entries.
        limit: for trials, at most so many images of each part, one epoch, and a network of width 8; a teacher's too.

    Raises:
        InputError: no recipe of that name, the message has the nearest; no such section, it lists those there are; an
            entry that is unknown or of a wrong type.
    """
    if not isinstance(name, str) or name not in recipes():
        near = get_close_matches(str(name), names(), n=3, cutoff=0.4)
        hint = f"the nearest are {', '.join(near)}" if near else "`lrc zoo list` has them all"
        raise InputError(f"the zoo has no {name!r}; {hint}")
    change = {} if change is None else change
    if not isinstance(change, Mapping) or not all(isinstance(entries, Mapping) for entries in change.values()):
        raise InputError(f"change must be a mapping of sections to mappings of entries, not {change!r:.60}")
    if unknown := [section for section in change if section not in SECTIONS]:
        raise InputError(f"a recipe has no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    written = recipes()[name].written()
    changed = written | {section: written[section] | dict(entries) for section, entries in change.items()}
    made = checked(read(changed, where=f"recipe {name}"), where=f"recipe {name}")
    return made if limit is None else _trial(made, limit)


def _trial(made: Recipe, limit: int) -> Recipe:
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise InputError(f"limit must be a number of images >= 1, not {limit!r:.60}")
    data = replace(made.data, limit=min(limit, made.data.limit or limit))
    training = replace(made.training, epochs=1, batch_size=min(limit, made.training.batch_size))
    network = replace(made.network, options={**made.network.options, "width": 8})
    return replace(made, data=data, network=network, training=training, trial=limit)


def identity(made: Recipe | Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe bears on the network, the recipe of its teacher included, alike however it is written.

    Numbers are worked out and defaults filled in. Left out are what it is called, and what may change while a training
    goes on. Two recipes, or what is recorded of them, make the same network where this is equal.

    Args:
        made: a recipe, or what a file holds of one.
    """
    kept = made.written() if isinstance(made, Recipe) else dict(made)
    for section, kind in SECTIONS.items():
        defaults = {f.name: f.default for f in fields(kind) if f.default not in (MISSING, None)}
        kept[section] = defaults | kept.get(section, {})
    kept["training"] = {k: v for k, v in kept["training"].items() if k not in FREE}
    if "teacher" in kept["objective"]:
        kept["teacher"] = identity(kept.get("teacher") or recipe(kept["objective"]["teacher"], limit=kept.get("trial")))
    return {
        name: {k: _plain(v) for k, v in entries.items()} if isinstance(entries, Mapping) else _plain(entries)
        for name, entries in kept.items()
        if name not in ("about", "shipped")
    }


def without_groups(wanted: Recipe) -> Recipe:
    """The recipe less all that has to do with groups of classes in its objective."""
    of_groups = ("clustering", "smoothing", *OF_CLUSTERING, *PARTITIONS)
    left = {k: v for k, v in wanted.objective.options.items() if k not in of_groups}
    return replace(wanted, objective=replace(wanted.objective, options=left))
