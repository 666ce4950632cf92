"""Sub-populations: superclasses seen in some of their subclasses, and met again in others."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from lrc.data.cifar import cifar100
from lrc.data.images import Images, check_set
from lrc.hierarchy import Hierarchy
from lrc.utils.errors import InputError

OFFICIAL = ("fish", "flowers", "household_electrical_devices", "people")
"""The superclasses of the paper's split of CIFAR-100: numbers 1, 2, 5 and 14."""

PARTS = ("source", "target")


def subpopulations(
    images: Images, *, held_out: int = 1, choice: int | None = None, superclasses: Sequence[str] | None = None
) -> tuple[Images, Images]:
    """(source, target): the images of some subclasses of each superclass, and those of the others.

    Both parts have the same superclasses in the same order, as the one level of their hierarchies; their classes are
    labelled anew, superclass by superclass.

    Args:
        images: with a hierarchy, whose first level gives the superclasses.
        held_out: subclasses of each superclass that make the target.
        choice: seed by which they are drawn; absent, they are the last of each superclass, in the order of the classes.
        superclasses: names of those to take; absent, all.

    Raises:
        InputError: images without superclasses, an unknown one or one twice, or a superclass with too few subclasses.

    Source: the setting is that of Santurkar et al., *BREEDS: Benchmarks for subpopulation shift* (2021).

    >>> from lrc.data import shapes
    >>> source, target = subpopulations(shapes("test", n=160))
    >>> target.classes, target.hierarchy.levels[0].names
    (('bungalow', 'palm', 'puffer', 'racer'), ('house', 'tree', 'fish', 'car'))
    >>> len(source), len(target)
    (120, 40)
    """
    if type(held_out) is not int or not (choice is None or (type(choice) is int and 0 <= choice < 2**63)):
        raise InputError(f"held_out {held_out!r} and choice {choice!r}, expected whole numbers, not below 0")
    groups = _groups(images, superclasses)
    generator = None if choice is None else Generator().manual_seed(choice)
    kept: list[int] = []
    out: list[int] = []
    for name, members in groups:
        if not 0 < held_out < len(members):
            raise InputError(f"{held_out} subclasses to hold out of the {len(members)} of {name!r}: leave at least one")
        order = range(len(members)) if generator is None else torch.randperm(len(members), generator=generator).tolist()
        held = {members[i] for i in list(order)[-held_out:]}
        kept += [k for k in members if k not in held]
        out += [k for k in members if k in held]
    return _part(images, kept), _part(images, out)


def as_superclasses(images: Images) -> Images:
    """The same images, labelled by the superclass, which the first level of their hierarchy gives.

    Raises:
        InputError: images without superclasses.

    >>> from lrc.data import shapes
    >>> as_superclasses(shapes("test", n=16)).classes
    ('house', 'tree', 'fish', 'car')
    """
    level = _hierarchy(images).levels[0]
    of = torch.tensor(level.of, device=images.y.device)
    return replace(images, y=of[images.y], classes=level.names, hierarchy=None)


def cifar20(
    part: str = "source",
    split: str = "train",
    *,
    superclasses: Sequence[str] | str = OFFICIAL,
    held_out: int = 1,
    choice: int | None = None,
    root: str | Path | None = None,
) -> Images:
    """CIFAR-100 parted into sub-populations, by default as the paper does: four superclasses, 4 subclasses and a fifth.

    The official split takes fish, flowers, household electrical devices and people; the first four classes of each, in
    alphabetical order, are the source (16 classes, 8,000 and 1,600 images), the last (trout, tulip, television, woman)
    the target (4 classes, 2,000 and 400 images). The images are CIFAR's own, where those of the official code are
    colour-inverted by accident.

    Args:
        part: "source" or "target".
        split: "train" or "test".
        superclasses: names of those to take, or "all" for the 20.
        held_out, choice: as in `subpopulations`.
        root: as in `cifar100`.

    Raises:
        InputError: as `subpopulations` and `cifar100`, or another part.

    Source: Bai et al. (2021), section 4.1, after the official code.
    """
    chosen = None if superclasses == "all" else superclasses
    return parted(cifar100(split, root=root), part, superclasses=chosen, held_out=held_out, choice=choice)


def parted(images: Images, part: str, **options: Any) -> Images:
    """The part of `subpopulations`, with its options, that is called "source" or "target".

    Raises InputError: as `subpopulations`, or another part.
    """
    if part not in PARTS:
        raise InputError(f"no part {part!r} of the sub-populations: there are source and target")
    return subpopulations(images, **options)[PARTS.index(part)]


def _groups(images: Images, superclasses: Sequence[str] | None) -> list[tuple[str, list[int]]]:
    """Names and members of the superclasses, in their own order."""
    hierarchy = _hierarchy(images)
    names = hierarchy.levels[0].names
    wanted = names if superclasses is None else superclasses
    listed = isinstance(wanted, list | tuple) and all(isinstance(name, str) for name in wanted)
    if not listed or not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= set(names):
        raise InputError(f"superclasses {superclasses!r}, expected some of {', '.join(names)}, each once")
    return [(name, group) for name, group in zip(names, hierarchy.groups(), strict=True) if name in wanted]


def _part(images: Images, classes: list[int]) -> Images:
    """Images of these classes, with the superclasses as their only level."""
    some = images.select(classes)
    chosen = _hierarchy(some)
    return replace(some, hierarchy=Hierarchy(chosen.classes, chosen.levels[:1], chosen.source))


def _hierarchy(images: Images) -> Hierarchy:
    check_set(images)
    if images.hierarchy is None or not images.hierarchy.levels:
        raise InputError("the images have no superclasses: give them a hierarchy")
    return images.hierarchy
