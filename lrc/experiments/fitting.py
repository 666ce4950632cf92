"""From a recipe to its network: the images, the objective, the training, and what is measured of it."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lrc.attacks import pgd
from lrc.clustering import class_correlation, contrast, cut, tree
from lrc.data import Images, labelled
from lrc.data import named as data_set
from lrc.evaluation import accuracy
from lrc.experiments import store
from lrc.experiments.recipe import EPS, OF_RECIPES, Recipe, recipe, without_groups, worked_out
from lrc.experiments.store import WEIGHTS_FILE, Metrics
from lrc.hierarchy import Hierarchy
from lrc.linearization import linear_map
from lrc.models import build
from lrc.training import milestones, train
from lrc.training.checkpoints import LAST, PREVIOUS
from lrc.training.objectives import Objective, collapsed, named, watch_collapse
from lrc.utils.devices import device
from lrc.utils.errors import InputError
from lrc.utils.files import locked

__all__ = [
    "at_once",
    "figures",
    "fit",
    "linear_part",
    "objective",
    "obtain",
    "partition",
    "restore",
    "split_images",
    "trained",
    "untrained",
    "versions",
]


def obtain(wanted: Recipe, *, name: str, progress: bool = False, mend: str = "") -> nn.Module:
    """The network of any recipe, in eval mode, on this machine's device: shipped, or trained now and kept in the cache.

    Args:
        wanted: from `recipe`.
        name: what to call it in messages.
        progress: where it has to be trained, say so on stderr, and show a progress bar.
        mend: how several processes come to have it; by default it is to be obtained in one first.
    """
    if (found := store.shipped(wanted)) is not None:
        return restore(wanted, store.weights(found)).to(device())
    place = store.kept(wanted)
    if (
        not (place / WEIGHTS_FILE).exists() and int(os.environ.get("WORLD_SIZE", 1)) > 1
    ):  # the others would wait for ever
        mend = mend or f"call lrc.zoo.obtain({name!r}) in one process first"
        raise InputError(f"{name} has not been trained here: {mend}")
    with locked(place, wait=True):
        if not (place / WEIGHTS_FILE).exists():
            if progress:
                print(f"{name} is not shipped: training it, once on this machine", file=sys.stderr)
            model, history = fit(wanted, out=place, progress=progress)
            store.keep(place, model, wanted, history)
        for checkpoint in (LAST, PREVIOUS):
            (place / checkpoint).unlink(missing_ok=True)
    return restore(wanted, place / WEIGHTS_FILE).to(device())


def trained(wanted: Recipe, *, place: Path, progress: bool = False) -> tuple[nn.Module, Metrics]:
    """The network of a recipe with its weights rounded to half precision, and its metrics by epoch.

    Args:
        wanted: from `recipe`.
        place: folder for checkpoints and weights; what was broken off goes on from there, what is finished stays.
        progress: show a progress bar.

    Raises:
        InputError: the folder holds what another recipe made.
    """
    store.claim(place, wanted)
    if not (place / WEIGHTS_FILE).exists():
        model, history = fit(wanted, out=place, progress=progress)
        store.keep(place, model.half(), wanted, history)
    return restore(wanted, place / WEIGHTS_FILE).to(device()), store.metrics(place)


def fit(wanted: Recipe, *, out: str | Path | None = None, progress: bool = False) -> tuple[nn.Module, Metrics]:
    """Trains the network of a recipe, on the accelerator if there is one; returns it with its metrics.

    Args:
        wanted: from `recipe`.
        out: folder for the checkpoints; a training that was broken off goes on from there.
        progress: show a progress bar.
    """
    rest, validation, _ = split_images(wanted)
    model = untrained(wanted).to(device())
    options = {f.name: getattr(wanted.training, f.name) for f in fields(wanted.training)}
    if (stages := options.pop("milestones")) is not None:
        options["schedule"] = milestones(*stages)
    groups = rest.hierarchy.groups() if rest.hierarchy else None
    made, eps = objective(wanted, rest.hierarchy), wanted.radius
    attack = partial(pgd, eps=eps, steps=10, step=eps / 4) if made.attack else None  # what is to be robust
    fast = eps if wanted.objective.name == "fast" else None  # the one that can collapse
    history = train(
        model, rest, made, validation=validation, attack=attack, watch=_watch(validation, groups, fast),
        stop=collapsed if fast is not None else None, out=out, progress=progress, **options,
    )  # fmt: skip
    return model, history


def _watch(
    validation: Images, groups: list[list[int]] | None, fast: float | None
) -> Callable[[nn.Module], dict[str, float]]:
    """What is noted after each epoch: contrasts between superclasses; with `fast`, a radius, what shows a collapse."""

    def watch(model: nn.Module) -> dict[str, float]:
        noted = _contrasts(model, validation, groups) if groups else {}
        if fast is not None:
            some = _first(validation, 500)
            noted |= watch_collapse(some.float(), some.y, eps=fast)(model)
        return noted

    return watch


def figures(
    model: nn.Module, test: Images, *, eps: float = EPS, measure: Callable[..., float] = accuracy
) -> dict[str, Any]:
    """Accuracy in [0, 1] on test images, clean and under PGD-20 (Linf, steps of eps / 4, random start); contrasts.

    Args:
        eps: radius of the attack, in units of a pixel.
        measure: `lrc.accuracy`, or what shares the work with other processes.
    """
    attack = partial(pgd, eps=eps, steps=20, step=eps / 4)
    robust = measure(model, test, attack=attack, generator=Generator().manual_seed(0))
    contrasts = _contrasts(model, test, test.hierarchy.groups()) if test.hierarchy else {}
    return {"images": len(test), "clean": measure(model, test), "pgd20": robust} | contrasts


def split_images(wanted: Recipe) -> tuple[Images, Images, Images]:
    """Training, validation and test images of a recipe; which they are does not depend on what they are labelled by."""
    rest, validation = _images(wanted, "train").split(wanted.data.validation)
    parts = (_first(part, wanted.data.limit) for part in (rest, validation, _images(wanted, "test")))
    rest, validation, test = (labelled(part, wanted.data.labels) for part in parts)
    return rest, validation, test


def _images(wanted: Recipe, split: str) -> Images:
    return data_set(wanted.data.name, split, **wanted.data.options)


def _first(some: Images, n: int | None) -> Images:
    return some if n is None else some.subset(min(n, len(some)))


def untrained(wanted: Recipe) -> nn.Module:
    """The network with its initial weights, which depend on the recipe's seed alone.

    Raises:
        InputError: as `lrc.models.build`.
    """
    generator = Generator().manual_seed(wanted.training.seed)
    return build(wanted.network.name, generator=generator, **wanted.network.options)


def restore(wanted: Recipe, weights: Path) -> nn.Module:
    """The network with the weights in a file, in eval mode, on the CPU.

    Raises:
        InputError: as `lrc.experiments.store.fill`.
    """
    network = store.fill(untrained(wanted), weights).eval()
    own = ":" in wanted.network.name  # code such as `x.view(n, -1)` would fail on what such weights give
    return network if own else network.to(memory_format=torch.channels_last)


def objective(wanted: Recipe, hierarchy: Hierarchy | None) -> Objective:
    """What the recipe lowers, the teacher it may need included; the superclasses are those of its data.

    Raises:
        InputError: as `lrc.objectives.named`, or as `partition`.
    """
    given = wanted.objective.options
    options = {k: worked_out(v) for k, v in given.items() if k not in OF_RECIPES}
    if "teacher" in given:
        options["teacher"] = obtain(recipe(given["teacher"], limit=wanted.trial), name=given["teacher"])
    if options.get("clustering"):
        options["groups"] = partition(wanted, hierarchy)
    if "within" in given:
        options["within"] = partition(wanted, hierarchy, option="within")
    return named(wanted.objective.name, **options)


def partition(wanted: Recipe, hierarchy: Hierarchy | None, *, option: str = "groups") -> list[list[int]] | None:
    """The groups of classes that the objective of a recipe speaks of.

    They are given as lists of classes or as a word: "superclasses" (the default), "random" groups of the same sizes,
    drawn by the seed of the training, "all" classes in one, or "found": those of the tree of the network's own C, cut
    into as many as there are superclasses, where it is trained for `found_after` epochs in all, without the term.

    Returns:
        The groups; None where none were asked for and the images have no superclasses.

    Raises:
        InputError: neither such lists nor such a word, or a word and images without superclasses.
    """
    asked = wanted.objective.options.get(option, "superclasses")
    if isinstance(asked, list | tuple) and all(_are_classes(group) for group in asked):
        return [list(group) for group in asked]
    if hierarchy is None:
        if option in wanted.objective.options:
            raise InputError(f"{option} = {asked!r} needs images with superclasses: give lists of classes")
        return None
    groups = hierarchy.groups()
    if asked == "superclasses":
        return groups
    if asked == "all":
        return [sorted(k for group in groups for k in group)]
    if asked == "random":
        generator = Generator().manual_seed(wanted.training.seed)
        order = torch.randperm(len(hierarchy.classes), generator=generator).tolist()
        return [sorted(order.pop() for _ in group) for group in groups]
    if asked == "found":
        return cut(tree(class_correlation(linear_map(_scout(wanted)), centre=True)), len(groups))
    raise InputError(f"{option} = {asked!r}, expected superclasses, random, all, found, or lists of classes")


def _are_classes(group: Any) -> bool:
    return isinstance(group, list | tuple) and all(isinstance(k, int) for k in group)


def _scout(wanted: Recipe) -> nn.Module:
    """The network of the same training, less the term, of as many epochs as groups are looked for after."""
    after = wanted.objective.options.get("found_after")
    if not isinstance(after, int) or after < 1:
        raise InputError('groups = "found" needs found_after, the number of epochs after which they are looked for')
    training = replace(wanted.training, epochs=min(after, wanted.training.epochs))
    return obtain(
        replace(without_groups(wanted), training=training),
        name="the network that groups are found in",
        mend="begin the same training in one process, and go on in several once it has found them",
    )


def linear_part(model: nn.Module, input_shape: Sequence[int] | None = None) -> dict[str, Tensor]:
    """W of the linear sub-network and its C: raw as the paper takes it, and centred."""
    W = linear_map(model, input_shape)
    return {"W": W, "C_raw": class_correlation(W), "C_centred": class_correlation(W, centre=True)}


def _contrasts(model: nn.Module, images: Images, groups: list[list[int]]) -> dict[str, float]:
    """Contrast of both between superclasses; none where a network of one's own cannot be linearized."""
    try:
        part = linear_part(model, _first(images, 1).float().shape[1:])
    except InputError:
        return {}
    return {f"contrast_{kind}": contrast(part[f"C_{kind}"], groups) for kind in ("raw", "centred")}


def at_once() -> int:
    """Images of CIFAR's size that attacks take at a time: on an accelerator so many that kernels start cheaply."""
    return 250 if device().type == "cpu" else 2500


def versions() -> dict[str, str]:
    """What figures were measured with: the release of PyTorch and the kind of device."""
    at = device()
    kind = torch.cuda.get_device_name(at) if at.type == "cuda" else at.type
    return {"torch": torch.__version__.split("+")[0], "device": kind}
