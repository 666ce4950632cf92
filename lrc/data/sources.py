"""The data sets by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrc.data.cifar import cifar10, cifar100
from lrc.data.folders import folder
from lrc.data.images import Images
from lrc.data.shapes import shapes
from lrc.errors import InputError

__all__ = ["SOURCES", "named"]

SOURCES: dict[str, Callable[..., Images]] = {"cifar10": cifar10, "cifar100": cifar100, "shapes": shapes}


def named(name: str, split: str, **options: Any) -> Images:
    """The part of the data set called `name`, with the options of its function.

    Args:
        name: one of `SOURCES`; or the path of a folder in which `train` and `test` (or `val`) hold a folder of images
            for each class: see `lrc.data.folder`, whose side is 32 pixels here unless `size` says otherwise.
        split: "train" or "test".

    Raises:
        InputError: there is no such data set, the message lists those there are; and as its function.
    """
    if name in SOURCES:
        return SOURCES[name](split, **options)
    place = Path(name).expanduser()
    if not place.is_dir():
        raise InputError(f"no data set is called {name!r}; there are {', '.join(SOURCES)}, or a folder of one's own")
    part = place / ("val" if split == "test" and not (place / "test").exists() else split)
    return folder(part, **{"size": 32, **options})
