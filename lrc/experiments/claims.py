"""Claims: sentences about a number that a chapter stakes its name on, checked whenever the chapter runs."""

import json
import operator
import os
from typing import SupportsFloat

from lrc.experiments.profiles import current, limit
from lrc.utils.errors import InputError

__all__ = ["ClaimError", "claim"]


class ClaimError(AssertionError):
    """A claim that does not hold."""


def claim(
    text: str,
    value: SupportsFloat,
    *,
    at_least: SupportsFloat | None = None,
    at_most: SupportsFloat | None = None,
    chapter: str | None = None,
) -> None:
    """Checks `value` against a bound and prints a line that is the same in every profile.

    Each claim, whether it holds or not, is also appended as a line of JSON to the file that `LRC_SCORECARD` names, if
    it names one. Under `LRC_LIMIT` the figures mean nothing: claims are recorded and printed, but not enforced.

        >>> claim("two is more than one", 2, at_least=1.5)
        holds: two is more than one
        >>> claim("one is more than two", 1, at_least=2)
        Traceback (most recent call last):
        lrc.experiments.claims.ClaimError: does not hold: one is more than two: 1 where at least 2 was claimed ...

    Args:
        text: what is claimed, in words that are true of every profile.
        value: the number found; a tensor of one element will do. NaN satisfies no claim.
        at_least, at_most: the bound, one of the two.
        chapter: where the claim stands; by default the value of `LRC_CHAPTER`.

    Raises:
        ClaimError: the claim does not hold.
        InputError: not exactly one bound.
    """
    if (at_least is None) == (at_most is None):
        raise InputError(f"claim {text!r}: give it either at_least or at_most")
    relation, given = ("at least", at_least) if at_least is not None else ("at most", at_most)
    try:
        number, bound = float(value), float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"claim {text!r}: value and bound must be numbers ({error})") from error
    holds = (operator.ge if relation == "at least" else operator.le)(number, bound)
    record = {
        "chapter": chapter or os.environ.get("LRC_CHAPTER", ""),
        "claim": text,
        "value": number,
        "relation": relation,
        "bound": bound,
        "holds": holds,
        "enforced": limit() is None,
        "profile": current(),
    }
    _append(record)
    if not record["enforced"]:
        print(f"not tested (LRC_LIMIT): {text}")
    elif holds:
        print(f"holds: {text}")
    else:
        where = f"{number:.4g} where {relation} {bound:.4g} was claimed (profile {record['profile']})"
        raise ClaimError(f"does not hold: {text}: {where}")


def _append(record: dict[str, object]) -> None:
    """One write in append mode, so that chapters that run at once do not mix their lines."""
    if path := os.environ.get("LRC_SCORECARD"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
