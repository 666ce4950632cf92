"""Is this the same run? The one answer, for all that is kept in a folder and goes on from there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrc.utils.errors import InputError


def differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Names of the entries that differ, within mappings with a dot; an entry that is missing counts as None.

    >>> differences({"epochs": 2, "data": {"name": "cifar10"}}, {"epochs": 2, "data": {"name": "shapes"}, "ema": None})
    ['data.name']
    """
    found = []
    for name in sorted({*there, *wanted}):
        old, new = there.get(name), wanted.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [f"{name}.{inner}" for inner in differences(old, new)]
        elif old != new:
            found.append(name)
    return found


def same_run(
    there: Mapping[str, Any], wanted: Mapping[str, Any], *, place: str | Path, mend: str = "name another folder"
) -> None:
    """Raises InputError, which names what differs, unless both runs depend on the same plain values by name.

    `place`, the folder or file of the run that is there, and what the user can do are said in the message.
    """
    if differ := differences(there, wanted):
        raise InputError(f"{place} holds another run, which differs in {', '.join(differ)}: {mend}")
