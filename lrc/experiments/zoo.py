"""Trained networks: each one a recipe, and for those that were made figures, with weights where these are small.

`load` gives a shipped network; `obtain` gives any, and where it is not shipped trains it first, once on a machine;
`make` trains, measures and records one anew.

    >>> import lrc
    >>> "cifar10-resnet8-at" in lrc.zoo.names()
    True
    >>> lrc.zoo.recipe("cifar10-resnet8-at").objective.options["eps"]
    '8/255'
"""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Generator, Tensor, nn

from lrc.data import Images
from lrc.evaluation import Report, evaluate
from lrc.experiments import fitting, store
from lrc.experiments.fitting import fit, objective, partition
from lrc.experiments.recipe import Change, names, recipe
from lrc.experiments.store import WEIGHTS_FILE, Metrics, info
from lrc.utils.errors import InputError
from lrc.utils.files import load_tensors, locked, save_tensors, write, write_json
from lrc.utils.workers import side_by_side

__all__ = [
    "fit",
    "images",
    "info",
    "linear_part",
    "load",
    "make",
    "metrics",
    "names",
    "objective",
    "obtain",
    "obtain_all",
    "partition",
    "recipe",
]


def linear_part(name: str) -> dict[str, Tensor]:
    """W of a network that was made, [classes, channels, height, width], and its C, raw and centred, [classes, classes].

    Raises:
        InputError: an unknown name, or a network that neither is shipped nor was recorded.
    """
    recorded = store.WEIGHTS / f"{name}.linear.safetensors"
    if recorded.exists() and not info(name)["shipped"]:
        return load_tensors(recorded)
    return fitting.linear_part(load(name))


def load(name: str) -> nn.Module:
    """The shipped network called `name`, in eval mode, on the CPU, in float32.

    Raises:
        InputError: an unknown name, a recipe whose weights are not shipped, or weights that are not those recorded.
    """
    wanted = recipe(name)
    return fitting.restore(wanted, store.weights(name))


def obtain(name: str, *, change: Change | None = None, limit: int | None = None, progress: bool = False) -> nn.Module:
    """The network called `name`, in eval mode, on this machine's device: shipped, or trained now and kept in the cache.

    What is kept goes by the recipe, and by `lrc.experiments.store.VERSION`. Two processes that want the same network
    train it once. `metrics` gives the curves of either kind.

    Args:
        name, change, limit: as in `recipe`; with a change it is shipped if it then is what another recipe makes.
        progress: where it has to be trained, say so on stderr, and show a progress bar.
    """
    wanted = recipe(name, change=change, limit=limit)
    return fitting.obtain(wanted, name=name, progress=progress)


def obtain_all(wanted: Sequence[tuple[str, Change]], *, limit: int | None = None) -> list[nn.Module]:
    """The networks of several recipes with their changes, as `obtain` gives them, trained side by side on a CPU.

    Args:
        wanted: pairs of name and change.
        limit: as in `recipe`.

    Raises:
        InputError: as `obtain`; or a process was killed.
    """
    missing = [(n, change) for n, change in wanted if not store.there(recipe(n, change=change, limit=limit))]
    with side_by_side(partial(_train, limit=limit), missing) as trained:
        for _, check in trained:
            check()
    return [obtain(name, change=change, limit=limit) for name, change in wanted]


def _train(wanted: tuple[str, Change], *, limit: int | None) -> None:
    obtain(wanted[0], change=wanted[1], limit=limit)


def metrics(name: str, *, change: Change | None = None, limit: int | None = None) -> Metrics:
    """What training measured after each epoch, of a network that is shipped or has been obtained on this machine.

    Args: as in `obtain`.

    Raises:
        InputError: it is neither.
    """
    wanted = recipe(name, change=change, limit=limit)
    if shipped := store.shipped(wanted):
        return list(info(shipped)["metrics"])
    if not (store.kept(wanted) / WEIGHTS_FILE).exists():
        raise InputError(f"{name!r} has not been trained here: lrc.zoo.obtain({name!r}) does that")
    return store.metrics(store.kept(wanted))


def images(name: str, *, change: Change | None = None, limit: int | None = None) -> tuple[Images, Images, Images]:
    """Training, validation and test images of the recipe.

    Args: as in `recipe`.
    """
    return fitting.split_images(recipe(name, change=change, limit=limit))


def make(
    name: str, *, work: str | Path, images: int = 1000, judged: int = 1000, progress: bool = False
) -> dict[str, Any]:
    """Trains the network of the recipe, measures it on the test set, and writes the record into the package.

    With it go the weights if the recipe says that they are shipped, else W and C (`linear_part`).

    Args:
        name: of a recipe.
        work: folder for checkpoints and verdicts; what was broken off goes on from there, what is finished stays.
        images: test images that it is measured on.
        judged: of these, how many AutoAttack is run on, and the signs of masking looked for.
        progress: show a progress bar.

    Returns:
        What `info` gives from then on.

    Raises:
        InputError: the folder holds what another recipe made.
    """
    wanted, place = recipe(name), Path(work) / name
    with locked(place):
        network, history = fitting.trained(wanted, place=place, progress=progress)  # of rounded weights
        test = fitting.split_images(wanted)[2]
        test = test.subset(min(images, len(test)))
        report = evaluate(
            network, test.subset(min(judged, len(test))), attacks="autoattack", eps=wanted.radius,
            batch_size=fitting.at_once(), generator=Generator().manual_seed(0), out=place / "evaluation",
            progress=progress,
        )  # fmt: skip
    record = {
        "sha256": store.sha256(place / WEIGHTS_FILE),
        "made_by": wanted.written(),
        "figures": fitting.figures(network, test, eps=wanted.radius) | _judgement(report),
        "versions": fitting.versions(),
        "metrics": history,
    }
    if wanted.shipped:
        write(store.WEIGHTS / f"{name}.safetensors", partial(shutil.copyfile, place / WEIGHTS_FILE))
    else:
        save_tensors(store.WEIGHTS / f"{name}.linear.safetensors", fitting.linear_part(network))
    write_json(store.WEIGHTS / f"{name}.json", record)
    return info(name)


def _judgement(report: Report) -> dict[str, Any]:
    """What is kept of an evaluation: robust accuracy with its interval, and the flags that are up."""
    robust = report.accuracy("autoattack")
    found = {"images": len(report), "robust": robust.value, "interval": [round(v, 4) for v in robust.interval]}
    return {"autoattack": found, "flags": list(report.raised)}
