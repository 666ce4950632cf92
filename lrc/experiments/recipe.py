"""How each network is made: recipes, as they stand in `recipes.toml`, and what is read off them.

>>> recipe("cifar10-resnet8-at")["objective"]["eps"]
'8/255'
"""

import math
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lrc.utils.errors import InputError

__all__ = [
    "EPS",
    "PARTITIONS",
    "Change",
    "Recipe",
    "essence",
    "names",
    "number",
    "radius",
    "recipe",
    "recipes",
    "seed_of",
    "without_groups",
]

EPS = 8 / 255
PARTITIONS = ("groups", "within")  # options of objectives that name groups of classes

Recipe = dict[str, Any]
Change = Mapping[str, Mapping[str, Any]]
"""Other values for some entries of a recipe, by section: {"training": {"seed": 1}}."""


@cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name, as they stand in `recipes.toml`, with what they take over from others filled in."""
    written = tomllib.loads(Path(__file__).with_name("recipes.toml").read_text())
    return {name: _whole(name, written) for name in written}


def _whole(name: str, written: dict[str, Recipe]) -> Recipe:
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
        limit: for trials, at most so many images of each part, and one epoch; a teacher's too.

    Raises:
        InputError: no recipe of that name, or no such section; the message lists those there are.
    """
    if name not in recipes():
        raise InputError(f"the zoo has no {name!r}; there are {', '.join(names())}")
    given: Recipe = {k: dict(v) if isinstance(v, dict) else v for k, v in recipes()[name].items()}
    sections = [section for section, entries in given.items() if isinstance(entries, dict)]
    for section, entries in (change or {}).items():
        if section not in sections:
            raise InputError(f"a recipe has no section {section!r}; there are {', '.join(sections)}")
        given[section] |= entries
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} images leaves none: give at least 1")
    if limit is not None:
        given["data"]["limit"] = min(limit, given["data"].get("limit", limit))
        given["trial"] = limit
        given["training"] |= {"epochs": 1, "batch_size": min(limit, given["training"]["batch_size"])}
    return given


def radius(wanted: Recipe) -> float:
    """The Linf radius at which the recipe's network is validated and judged, in units of a pixel.

    That which the recipe names for it, else that of its objective, else 8/255.
    """
    return float(number(wanted.get("eps", wanted["objective"].get("eps", EPS))))


def seed_of(wanted: Recipe) -> int:
    """Seed of the training."""
    return int(wanted["training"].get("seed", 0))


def number(value: Any) -> Any:
    """A number, or text of one, where a fraction may be written out: "8/255"; None stays.

    Raises:
        InputError: text that is no finite number, or something else.
    """
    if value is None or isinstance(value, int | float):
        return value
    if not isinstance(value, str):
        raise InputError(f"{value!r} is no number: write 0.03 or 8/255")
    above, slash, below = value.partition("/")
    try:
        found = float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"{value!r} is no number: write 0.03 or 8/255")
    return found


def essence(wanted: Recipe) -> Recipe:
    """What of a recipe bears on the network, the recipe of its teacher included."""
    made = {k: v for k, v in wanted.items() if k not in ("about", "shipped")}
    if "teacher" not in made["objective"]:
        return made
    teacher = essence(recipe(made["objective"]["teacher"], limit=made.get("trial")))
    return made | {"teacher": teacher}


def without_groups(wanted: Recipe) -> dict[str, Any]:
    """The section objective of a recipe, less all that has to do with groups of classes."""
    of_groups = ("clustering", "on", "reduction", "found_after", "smoothing", *PARTITIONS)
    return {k: v for k, v in wanted["objective"].items() if k not in of_groups}
