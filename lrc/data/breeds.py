"""BREEDS: superclasses of ImageNet, learnt from some of their subclasses and met again in others."""

import os
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from lrc.data.folders import Folder, check_side, of_files, samples_in
from lrc.hierarchy import Hierarchy, Level
from lrc.utils.errors import InputError

TABLE = Path(__file__).with_name("breeds.toml")
PAPER = "Santurkar, Tsipras & Madry, BREEDS: Benchmarks for subpopulation shift, ICLR 2021, arXiv:2008.04859"

BREEDS = ("entity13", "entity30", "living17", "nonliving26")
"""The data sets; the number is that of their superclasses."""


def breeds(
    name: str,
    root: str | Path | None = None,
    *,
    part: str = "source",
    split: str = "train",
    size: int = 224,
    workers: int | None = None,
) -> Folder:
    """One of the BREEDS data sets, read from your copy of ImageNet while it is used.

    The subclasses of a superclass are parted into two equal halves: a network is trained on those of the source, and
    tested on the target, whose subclasses it has never seen. The classes are these subclasses, superclass by
    superclass; the superclasses are the one level of the hierarchy, the same in the same order in both parts, and
    `lrc.data.as_superclasses` makes them the labels. Each superclass has in each part, in the

    - ``entity13``: 10 subclasses (13 superclasses),
    - ``entity30``: 4 (30, at a finer level),
    - ``living17``: 2 (17, animals),
    - ``nonliving26``: 2 (26, things).

    Superclasses, their order, subclasses and halves are the authors' own, of the kind of parting that they call
    random: `lrc/breeds.toml` lists them and says how they were obtained. Images are brought to `size` as by
    `lrc.data.folder`, and come in an order drawn once for all, so that the first n are a fair sample.

    Args:
        name: "entity13", "entity30", "living17" or "nonliving26".
        root: the folder of ImageNet, with `train/n01440764/*.JPEG` and `val/n01440764/*.JPEG`: one folder for each
            class, called by its WordNet id. Only those of the part asked for have to be there; no others are looked
            into. Absent, it is the folder `imagenet` in LRC_DATA.
        part: "source" or "target".
        split: "train" or "val"; "test" is another name for the latter, as nobody has labels of ImageNet's test images.
        size: side in pixels.
        workers: processes that decode, as in `lrc.data.folder`.

    Raises:
        InputError: no such data set, part or split; ImageNet is nowhere, lacks some of the classes, or has no images
            of one.

    Source: Santurkar, Tsipras & Madry (2021).
    """
    if name not in BREEDS:
        raise InputError(f"no data set of BREEDS is called {name!r}: there are {', '.join(BREEDS)}")
    if part not in ("source", "target"):
        raise InputError(f"part {part!r}, expected 'source' or 'target'")
    if split not in ("train", "val", "test"):
        raise InputError(f"split {split!r}, expected 'train' or 'val'")
    check_side(size)
    ids, hierarchy = _classes(name, part)
    path = _imagenet(root) / ("train" if split == "train" else "val")
    samples = _samples(path, ids, f"{name} ({part})")
    return of_files(samples, hierarchy.classes, size=size, hierarchy=hierarchy, workers=workers)


def _imagenet(root: str | Path | None) -> Path:
    if root is not None:
        return Path(root).expanduser()
    if not os.environ.get("LRC_DATA"):
        raise InputError("no folder of ImageNet: give root, or put or link it as `imagenet` into the folder LRC_DATA")
    return Path(os.environ["LRC_DATA"]) / "imagenet"


def _samples(path: Path, ids: tuple[str, ...], what: str) -> list[tuple[str, int]]:
    """File and class of each image; of these folders alone, which a scan of the whole of ImageNet would not be."""
    missing = [wnid for wnid in ids if not (path / wnid).is_dir()]
    if missing:
        named = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise InputError(
            f"{path} lacks {len(missing)} of the {len(ids)} folders of {what}: {named}: "
            "give a folder of ImageNet with one folder for each class, named by its WordNet id, in train and val"
        )
    return samples_in(path, {wnid: i for i, wnid in enumerate(ids)})


@cache
def _classes(name: str, part: str) -> tuple[tuple[str, ...], Hierarchy]:
    """WordNet ids of the subclasses, and their names with the superclasses."""
    superclasses = _table()[name]
    members = [(g, *entry.split(" ", 1)) for g, halves in enumerate(superclasses.values()) for entry in halves[part]]
    of, ids, names = zip(*members, strict=True)
    return ids, Hierarchy(names, (Level("superclass", tuple(superclasses), of),), PAPER)


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))
