"""Trained networks: each one a recipe, and for those that were made figures, with weights where these are small.

`load` gives a shipped network; `obtain` gives any, and where it is not shipped trains it first, once on a machine;
`make` trains, measures and records one anew.

    >>> import lrc
    >>> "cifar10-resnet8-at" in lrc.zoo.names()
    True
    >>> lrc.zoo.recipe("cifar10-resnet8-at")["objective"]["eps"]
    '8/255'
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from lrc import data as datasets
from lrc.attacks import pgd
from lrc.clustering import class_correlation, contrast, cut, tree
from lrc.data import Images
from lrc.data.cache import folder as cache_folder
from lrc.evaluation import Report, accuracy, evaluate
from lrc.experiments.recipe import (
    EPS,
    PARTITIONS,
    Change,
    Recipe,
    essence,
    names,
    number,
    radius,
    recipe,
    seed_of,
    without_groups,
)
from lrc.hierarchy import Hierarchy
from lrc.linearization import linear_map
from lrc.models import build
from lrc.training import milestones, train
from lrc.training.checkpoints import LAST, PREVIOUS
from lrc.training.objectives import Objective, collapsed, named, watch_collapse
from lrc.utils.devices import device
from lrc.utils.errors import InputError
from lrc.utils.files import write, write_text

__all__ = ["images", "info", "linear_part", "load", "make", "metrics", "names", "obtain", "obtain_all", "recipe"]

PACKAGE = Path(__file__).parents[1]
WEIGHTS = PACKAGE / "experiments" / "weights"
WEIGHTS_FILE = "weights.safetensors"
WORDS = ("on", "reduction", "random_start")  # options of objectives that are no numbers
OF_CLUSTERING = ("on", "reduction", "groups", "found_after")


def info(name: str) -> dict[str, Any]:
    """Recipe of the network, whether weights are shipped, and what was recorded when it was made, if it was.

    A record is the recipe it was made by, figures, metrics by epoch, versions and device; of shipped weights also the
    SHA-256; of others W and C, by `linear_part`.

    Raises:
        InputError: an unknown name.
    """
    made = WEIGHTS / f"{name}.json"
    record = {"name": name, "recipe": recipe(name), "shipped": (WEIGHTS / f"{name}.safetensors").exists()}
    return record | (json.loads(made.read_text()) if made.exists() else {})


def linear_part(name: str) -> dict[str, Tensor]:
    """W of a network that was made, [classes, channels, height, width], and its C, raw and centred, [classes, classes].

    Raises:
        InputError: an unknown name, or a network that neither is shipped nor was recorded.
    """
    recorded = WEIGHTS / f"{name}.linear.safetensors"
    if recorded.exists() and not info(name)["shipped"]:
        return load_file(recorded)
    return _linear_part(load(name))


def load(name: str) -> nn.Module:
    """The shipped network called `name`, in eval mode, on the CPU, in float32.

    Raises:
        InputError: an unknown name, a recipe whose weights are not shipped, or weights that are not those recorded.
    """
    record = info(name)
    path = WEIGHTS / f"{name}.safetensors"
    if not record["shipped"]:
        raise InputError(f"the weights of {name!r} are not shipped: lrc.zoo.obtain({name!r}) trains them")
    if sha256(path) != record["sha256"]:
        raise InputError(f"{path} is not the file that was recorded: install the package again")
    return _restore(record["recipe"], path)


def obtain(name: str, *, change: Change | None = None, limit: int | None = None, progress: bool = False) -> nn.Module:
    """The network called `name`, in eval mode, on this machine's device: shipped, or trained now and kept in the cache.

    What is kept goes by the recipe and by the code of the package: a change of either trains anew. Two processes that
    want the same network train it once. `metrics` gives the curves of either kind.

    Args:
        name, change, limit: as in `recipe`; with a change it is shipped if it then is what another recipe makes.
        progress: where it has to be trained, say so on stderr, and show a progress bar.
    """
    return _obtain(recipe(name, change=change, limit=limit), name=name, progress=progress)


def _obtain(wanted: Recipe, *, name: str, progress: bool = False, mend: str = "") -> nn.Module:
    """The network of any recipe, as `obtain` gives it; `mend` says how several processes come to have it."""
    if shipped := shipped_as(wanted):
        return load(shipped).to(device())
    place = _kept(wanted)
    weights = place / WEIGHTS_FILE
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{place} cannot be written ({error.strerror}): set LRC_CACHE to a folder that can") from error
    if not weights.exists() and int(os.environ.get("WORLD_SIZE", 1)) > 1:  # the others would wait for the lock for ever
        mend = mend or f"call lrc.zoo.obtain({name!r}) in one process first"
        raise InputError(f"{name} has not been trained here: {mend}")
    with FileLock(place / "lock"):
        if not weights.exists():
            if progress:
                print(f"{name} is not shipped: training it, once on this machine", file=sys.stderr)
            model, _ = fit(wanted, out=place, progress=progress)
            _write(model, weights)
        for checkpoint in (LAST, PREVIOUS):
            (place / checkpoint).unlink(missing_ok=True)
    return _restore(wanted, weights).to(device())


def obtain_all(wanted: Sequence[tuple[str, Change]], *, limit: int | None = None) -> list[nn.Module]:
    """The networks of several recipes with their changes, as `obtain` gives them, trained side by side on a CPU.

    A script that calls it needs the usual `if __name__ == "__main__":`, since it starts processes.

    Args:
        wanted: pairs of name and change.
        limit: as in `recipe`.

    Raises:
        InputError: as `obtain`; or a script without that line.
    """
    missing = [
        (name, change)
        for name, change in wanted
        if not shipped_as(it := recipe(name, change=change, limit=limit)) and not (_kept(it) / WEIGHTS_FILE).exists()
    ]
    if len(missing) > 1 and device().type == "cpu":  # not threads: torch.fx patches modules
        try:
            with ProcessPoolExecutor(
                min(cores(), len(missing)), get_context("spawn"), torch.set_num_threads, (1,)
            ) as pool:
                list(pool.map(_train, *zip(*missing, strict=True), repeat(limit)))
        except BrokenProcessPool as error:
            raise InputError(
                "training side by side starts processes, which read the script again: put its code under "
                'if __name__ == "__main__":'
            ) from error
    return [obtain(name, change=change, limit=limit) for name, change in wanted]


def shipped_as(wanted: Recipe) -> str | None:
    """The name of the shipped network that this recipe makes, whatever the name it was asked for by."""
    same = essence(wanted)
    alike = (name for name in names() if (WEIGHTS / f"{name}.safetensors").exists() and essence(recipe(name)) == same)
    return next(alike, None)


def _train(name: str, change: Change, limit: int | None) -> None:
    obtain(name, change=change, limit=limit)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def metrics(name: str, *, change: Change | None = None, limit: int | None = None) -> list[dict[str, Any]]:
    """What training measured after each epoch, of a network that is shipped or has been obtained on this machine.

    Args: as in `obtain`.

    Raises:
        InputError: it is neither.
    """
    wanted = recipe(name, change=change, limit=limit)
    if shipped := shipped_as(wanted):
        return list(info(shipped)["metrics"])
    place = _kept(wanted)
    if not (place / WEIGHTS_FILE).exists():
        raise InputError(f"{name!r} has not been trained here: lrc.zoo.obtain({name!r}) does that")
    return _read_metrics(place)


def _read_metrics(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


def images(name: str, *, change: Change | None = None, limit: int | None = None) -> tuple[Images, Images, Images]:
    """Training, validation and test images of the recipe.

    Args: as in `recipe`.
    """
    return split_images(recipe(name, change=change, limit=limit))


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
    made = place / WEIGHTS_FILE
    shipped, history = trained(wanted, place=place, progress=progress)  # the figures are those of the rounded weights
    test = _first(split_images(wanted)[2], images)
    report = evaluate(
        shipped, test.subset(min(judged, len(test))), attacks="autoattack", eps=radius(wanted),
        generator=Generator().manual_seed(0), out=place / "evaluation", progress=progress,
    )  # fmt: skip
    record: dict[str, Any] = {
        "sha256": sha256(made),
        "made_by": wanted,
        "figures": figures(shipped, test, eps=radius(wanted)) | _judgement(report),
        "versions": {"torch": torch.__version__.split("+")[0], "device": device_name()},
        "metrics": history,
    }
    if wanted.get("shipped"):
        write(WEIGHTS / f"{name}.safetensors", partial(shutil.copyfile, made))
    else:
        linear = {k: v.contiguous().cpu() for k, v in _linear_part(shipped).items()}
        write(WEIGHTS / f"{name}.linear.safetensors", partial(save_file, linear))
    write_text(WEIGHTS / f"{name}.json", json.dumps(record, indent=1) + "\n")
    return info(name)


def trained(wanted: Recipe, *, place: Path, progress: bool = False) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The network of a recipe with its weights rounded to half precision, and its metrics by epoch.

    Args:
        wanted: from `recipe`.
        place: folder for checkpoints and weights; what was broken off goes on from there, what is finished stays.
        progress: show a progress bar.

    Raises:
        InputError: the folder holds what another recipe made.
    """
    _claim(place, wanted)
    made = place / WEIGHTS_FILE
    if not made.exists():
        model, _ = fit(wanted, out=place, progress=progress)
        _write(model.half(), made)
    return _restore(wanted, made).to(device()), _read_metrics(place)


def _claim(place: Path, wanted: Recipe) -> None:
    """Notes in a folder by which recipe its network is made, or refuses the folder of another.

    What lies there without a note, as weights that were trained elsewhere, is taken to be of this recipe.
    """
    note, made = place / "recipe.json", essence(wanted)
    if not note.exists():
        write_text(note, json.dumps(made, indent=1) + "\n")
        return
    try:
        there = json.loads(note.read_text())
    except ValueError as error:
        raise InputError(f"{note} is damaged: remove the folder to begin anew") from error
    if there != made:
        differ = [key for key in sorted({*made, *there}) if made.get(key) != there.get(key)]
        raise InputError(
            f"{place} was made by another recipe ({', '.join(differ)}): remove it, or name another work folder"
        )


def _judgement(report: Report) -> dict[str, Any]:
    """What is kept of an evaluation: robust accuracy with its interval, and the flags that are up."""
    robust = report.accuracy("autoattack")
    found = {"images": len(report), "robust": robust.value, "interval": [round(v, 4) for v in robust.interval]}
    return {"autoattack": found, "flags": list(report.raised)}


def fit(
    wanted: Recipe, *, out: str | Path | None = None, progress: bool = False
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Trains the network of a recipe, on the accelerator if there is one; returns it with its metrics.

    Args:
        wanted: from `recipe`.
        out: folder for the checkpoints; a training that was broken off goes on from there.
        progress: show a progress bar.
    """
    rest, validation, _ = split_images(wanted)
    model = _untrained(wanted).to(device())
    options = dict(wanted["training"])
    if "milestones" in options:
        options["schedule"] = milestones(*options.pop("milestones"))
    groups = rest.hierarchy.groups() if rest.hierarchy else None
    made = objective(wanted, rest.hierarchy)
    eps = radius(wanted)
    attack = partial(pgd, eps=eps, steps=10, step=eps / 4) if made.attack else None  # what is to be robust
    fast = eps if wanted["objective"]["name"] == "fast" else None  # the one that can collapse
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
        noted = _contrasts(model, groups=groups) if groups else {}
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
    contrasts = _contrasts(model, groups=test.hierarchy.groups()) if test.hierarchy else {}
    return {"images": len(test), "clean": measure(model, test), "pgd20": robust} | contrasts


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def split_images(wanted: Recipe) -> tuple[Images, Images, Images]:
    """Training, validation and test images of a recipe; which they are does not depend on what they are labelled by."""
    options = dict(wanted["data"])
    name, held_out, limit = options.pop("name"), options.pop("validation"), options.pop("limit", None)
    labels = options.pop("labels", "classes")
    rest, validation = datasets.named(name, "train", **options).split(held_out)
    test = datasets.named(name, "test", **options)
    parts = (_first(part, limit) for part in (rest, validation, test))
    rest, validation, test = (datasets.labelled(part, labels) for part in parts)
    return rest, validation, test


def _first(some: Images, n: int | None) -> Images:
    return some if n is None else some.subset(min(n, len(some)))


def _untrained(wanted: Recipe) -> nn.Module:
    """The network with its initial weights, which depend on the recipe's seed alone."""
    generator = Generator().manual_seed(seed_of(wanted))
    options = dict(wanted["network"])
    return build(options.pop("name"), generator=generator, **options)


def objective(wanted: Recipe, hierarchy: Hierarchy | None) -> Objective:
    """What the recipe lowers, the teacher it may need included; the superclasses are those of its data.

    Raises:
        InputError: as `lrc.objectives.named`, a value that is no number, or an option of a clustering term without one.
    """
    given = wanted["objective"]
    if idle := [option for option in OF_CLUSTERING if option in given and "clustering" not in given]:
        raise InputError(f"{idle[0]} is of the clustering term: give clustering, its weight, too")
    aside = ("name", "teacher", "found_after", *PARTITIONS)
    options = {k: v if k in WORDS else number(v) for k, v in wanted["objective"].items() if k not in aside}
    if "teacher" in wanted["objective"]:
        options["teacher"] = obtain(wanted["objective"]["teacher"], limit=wanted.get("trial"))
    if options.get("clustering"):
        options["groups"] = partition(wanted, hierarchy)
    if "within" in wanted["objective"]:
        options["within"] = partition(wanted, hierarchy, option="within")
    return named(wanted["objective"]["name"], **options)


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
    asked = wanted["objective"].get(option, "superclasses")
    if isinstance(asked, list | tuple) and all(_are_classes(group) for group in asked):
        return [list(group) for group in asked]
    if hierarchy is None:
        if option in wanted["objective"]:
            raise InputError(
                f"{option} = {asked!r} needs images with superclasses: give the groups as lists of classes"
            )
        return None
    groups = hierarchy.groups()
    if asked == "superclasses":
        return groups
    if asked == "all":
        return [sorted(k for group in groups for k in group)]
    if asked == "random":
        order = torch.randperm(len(hierarchy.classes), generator=Generator().manual_seed(seed_of(wanted))).tolist()
        return [sorted(order.pop() for _ in group) for group in groups]
    if asked == "found":
        return cut(tree(class_correlation(linear_map(_scout(wanted)), centre=True)), len(groups))
    raise InputError(f"{option} = {asked!r}, expected superclasses, random, all, found, or lists of classes")


def _are_classes(group: Any) -> bool:
    return isinstance(group, list | tuple) and all(isinstance(k, int) for k in group)


def _scout(wanted: Recipe) -> nn.Module:
    """The network of the same training, less the term, of as many epochs as groups are looked for after."""
    after = wanted["objective"].get("found_after")
    if not isinstance(after, int) or after < 1:
        raise InputError('groups = "found" needs found_after, the number of epochs after which they are looked for')
    training = wanted["training"] | {"epochs": min(after, wanted["training"]["epochs"])}
    return _obtain(
        wanted | {"objective": without_groups(wanted), "training": training},
        name="the network that groups are found in",
        mend="begin the same training in one process, and go on in several once it has found them",
    )


def _kept(wanted: Recipe) -> Path:
    """Where a trained network that is not shipped is kept: by its recipe and the code of the package."""
    code = sorted(path for path in PACKAGE.rglob("*.py") if _bears_on_training(path))
    digest = hashlib.sha256(json.dumps([essence(wanted), torch.__version__], sort_keys=True).encode())
    for path in code:
        digest.update(path.read_bytes())
    return cache_folder() / "zoo" / digest.hexdigest()[:20]


def _bears_on_training(path: Path) -> bool:
    """Whether a change of this file of the package could change what a training gives."""
    if path.parent.name == "evaluation":
        return path.name == "accuracy.py"
    return path.parent.name not in ("cli", "studies") and path.name not in ("plots.py", "claims.py")


def _write(model: nn.Module, path: Path) -> None:
    """Weights as safetensors."""
    weights = {k: v.contiguous().cpu() for k, v in model.state_dict().items()}
    write(path, partial(save_file, weights))


def _restore(wanted: Recipe, path: Path) -> nn.Module:
    model = _untrained(wanted)
    model.load_state_dict(load_file(path))
    return model.to(memory_format=torch.channels_last).eval()


def _linear_part(model: nn.Module) -> dict[str, Tensor]:
    """W of the linear sub-network and its C: raw as the paper takes it, and centred."""
    W = linear_map(model)
    return {"W": W, "C_raw": class_correlation(W), "C_centred": class_correlation(W, centre=True)}


def _contrasts(model: nn.Module, *, groups: list[list[int]]) -> dict[str, float]:
    """Contrast of both between superclasses."""
    part = _linear_part(model)
    return {f"contrast_{kind}": contrast(part[f"C_{kind}"], groups) for kind in ("raw", "centred")}


def device_name() -> str:
    """What the figures were measured on."""
    at = device()
    return torch.cuda.get_device_name(at) if at.type == "cuda" else at.type
