"""The data sets by name."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from lrc.data.breeds import BREEDS, breeds
from lrc.data.cifar import cifar10, cifar100
from lrc.data.colours import recoloured
from lrc.data.folders import TESTS, folder, part_of
from lrc.data.given import is_stored, stored
from lrc.data.images import Images, check_set
from lrc.data.parts import as_superclasses, cifar20, parted
from lrc.data.shapes import shapes
from lrc.data.stl10 import stl10
from lrc.utils.checks import check_choice
from lrc.utils.errors import InputError


def _cifar20(split: str, *, part: str = "source", **options: Any) -> Images:
    return cifar20(part, split, **options)


def _breeds(name: str, split: str, **options: Any) -> Images:
    return breeds(name, split=split, **options)


SOURCES: dict[str, Callable[..., Images]] = {
    "cifar10": cifar10,
    "cifar20": _cifar20,
    "cifar100": cifar100,
    "shapes": shapes,
    "stl10": stl10,
    "stl10-as-cifar10": partial(stl10, size=32, shared=True),
    **{name: partial(_breeds, name) for name in BREEDS},
}
PARTED = ("cifar20", *BREEDS)  # that have parts of their own
OF_PARTS = ("held_out", "choice", "superclasses")


def named(name: str, split: str, *, labels: str = "classes", colour: str | None = None, **options: Any) -> Images:
    """The part of the data set called `name`, with the options of its function.

    Of any set with superclasses the sub-populations can be had: `part` gives "source" or "target", parted by the
    options of `lrc.data.subpopulations`.

    Args:
        name: one of `SOURCES`; or the path of a folder in which `train` and `test` (or `val`) hold a folder of images
            for each class, the same classes in each: see `lrc.data.folder`. Without `size` the images of all parts
            have to be square and of one size. A folder without such parts is the test images itself. Or a file of
            arrays, or a data set of the hub: see `lrc.data.stored`.
        split: "train" or "test".
        labels: "classes", or "superclasses" to have these as the labels.
        colour: as `lrc.data.recoloured`, with the class means of the training images.

    Raises:
        InputError: there is no such data set, the message lists those there are; and as its function.
    """
    if not isinstance(labels, str) or labels != "classes":
        return labelled(named(name, split, colour=colour, **options), labels)
    if colour is not None:
        images = named(name, split, **options)
        train = images if split == "train" else named(name, "train", **options)
        return recoloured(images, colour, like=train)
    if not isinstance(name, str):
        raise InputError(f"the name of a data set must be a text, not {type(name).__name__}")
    if name not in PARTED and "part" in options:
        parting = {key: options.pop(key) for key in ("part", *OF_PARTS) if key in options}
        return parted(named(name, split, **options), **parting)
    try:
        return _source(name, split, **options)
    except TypeError as error:
        if not options:
            raise
        raise InputError(f"the data set {name} has no such option: {error}") from error


def _source(name: str, split: str, **options: Any) -> Images:
    if name in SOURCES:
        return SOURCES[name](split, **options)
    place = Path(name).expanduser()
    check_choice("split", split, ("train", "test"))
    if is_stored(place):
        return stored(place, split, **options)
    if not name or not place.is_dir():
        near = "".join(f"; the nearest: {', '.join(n)}" for n in [get_close_matches(name, SOURCES, n=3)] if n)
        there = f"there are {', '.join(SOURCES)}, or a folder of one's own, or arrays (.npz, or a folder of .npy)"
        raise InputError(f"no data set is called {name!r}{near}; {there}")
    if split == "test" and not any((place / part).is_dir() for part in ("train", *TESTS)):
        return folder(place, **options)  # of one part
    return part_of(place, split, **options)


def labelled(images: Images, by: str) -> Images:
    """The images, labelled by their "classes", as they are, or by their "superclasses".

    Raises:
        InputError: labelled by something else, or images without superclasses.
    """
    check_set(images)
    if not isinstance(by, str) or by not in ("classes", "superclasses"):
        raise InputError(f"labels {by!r}, expected 'classes' or 'superclasses'")
    return as_superclasses(images) if by == "superclasses" else images
