"""`lrc train`: a recipe from the command line, trained, measured, and kept in a folder of its own."""

import inspect
import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import lrc
from lrc.data import Images
from lrc.experiments import zoo
from lrc.experiments.recipe import Recipe, radius
from lrc.models import build
from lrc.training import distributed
from lrc.training.checkpoints import LAST, PREVIOUS
from lrc.utils.devices import device
from lrc.utils.errors import InputError
from lrc.utils.files import write_text

DEFAULTS: Recipe = {
    "data": {"name": "cifar10", "validation": 1000},
    "network": {"name": "resnet18"},
    "objective": {"name": "adversarial"},
    "training": {"epochs": 30, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4, "precision": "float32", "seed": 0},
}
NAMES = {"data": "data", "arch": "network", "method": "objective"}
SECTIONS = {
    "data": ("validation", "limit", "size"),
    "network": ("width",),
    "objective": ("eps", "steps", "step", "beta", "clustering", "awp"),
    "training": ("epochs", "batch_size", "lr", "weight_decay", "precision", "seed", "ema", "compile", "tensorboard"),
}
FREE = ("compile", "tensorboard", "checkpoint_every")  # may differ where a training goes on


FIXED = ("model", "data", "objective", "validation", "attack", "schedule", "watch", "stop", "out", "progress")
"""Arguments of `lrc.train` that no recipe holds: what they are follows from it, or from the command."""


def option(text: str, *names: str, **limits: Any) -> Any:
    """An option that is left to the recipe where it is not given."""
    return typer.Option(*names, help=text, show_default=False, **limits)


def train(
    out: Annotated[Path, typer.Option(help="Folder for all that comes of it; a broken-off training goes on there.")],
    config: Annotated[Path | None, option("config.json of another training, for what is not given here.")] = None,
    method: Annotated[str | None, option("adversarial (the default), trades, mart, fast, standard, ...")] = None,
    data: Annotated[
        str | None, option("cifar10 (the default), cifar20, cifar100, shapes, or a folder with train/ and test/.")
    ] = None,
    arch: Annotated[str | None, option("resnet18 (the default), resnet8 or vgg6.")] = None,
    width: Annotated[int | None, option("Channels of the first stage.", min=1)] = None,
    epochs: Annotated[int | None, option("Passes over the data (30).", min=1)] = None,
    eps: Annotated[str | None, option("Radius of the attack, in units of a pixel in [0, 1] (8/255).")] = None,
    steps: Annotated[int | None, option("Steps of the attack (10).", min=0)] = None,
    step: Annotated[str | None, option("Length of a step (0.007).")] = None,
    beta: Annotated[float | None, option("Weight of the robust part, in TRADES (6) and MART (5).")] = None,
    clustering: Annotated[
        float | None, option("Weight of the paper's clustering term (0; the paper's is 0.1).")
    ] = None,
    awp: Annotated[float | None, option("Size of the adversarial weight perturbation (0).")] = None,
    lr: Annotated[float | None, option("Learning rate at its highest (0.1).")] = None,
    weight_decay: Annotated[float | None, option("Weight decay (5e-4).")] = None,
    batch_size: Annotated[int | None, option("Images a step, over all processes (128).", min=1)] = None,
    precision: Annotated[str | None, option("float32 (the default) or bf16.")] = None,
    ema: Annotated[float | None, option("Decay of a moving average of the weights, such as 0.999.")] = None,
    seed: Annotated[int | None, option("Of initial weights, order, augmentation and random starts (0).")] = None,
    validation: Annotated[int | None, option("Training images held out to choose the epoch (1000).", min=1)] = None,
    limit: Annotated[int | None, option("At most so many images of each part, for trials.", min=1)] = None,
    size: Annotated[int | None, option("Side of the images in a folder, in pixels (32).", min=1)] = None,
    compile: Annotated[bool | None, option("Run the network through torch.compile.", "--compile")] = None,
    tensorboard: Annotated[bool | None, option("Write a TensorBoard log too.", "--tensorboard")] = None,
    set: Annotated[list[str] | None, option("Any other entry of the recipe: training.momentum=0.8, say.")] = None,
) -> None:
    """Train a network, on one or several processes (torchrun), and keep weights, figures, metrics and the recipe.

    OUT holds config.json (which --config takes), metrics.jsonl (a line an epoch), weights.safetensors and
    figures.json; lrc evaluate OUT and lrc inspect OUT go on from there.
    """
    given = dict(locals())  # the options, by name
    fabric = distributed.join(device())
    recipe = _recipe(DEFAULTS if config is None else _read(config), given, set or [])
    test = _complete(recipe)
    _check_folder(out, recipe)
    zoo.objective(
        recipe, test.hierarchy
    )  # may be refused, or train a teacher: before there is a trace of this training
    if fabric.is_global_zero:
        _write(out / "config.json", recipe)
    model, history = zoo.fit(recipe, out=out, progress=sys.stdout.isatty())
    within = radius(recipe)
    figures = zoo.figures(model, test, eps=within, measure=partial(distributed.shared_accuracy, fabric=fabric)) | {
        "eps": within
    }
    if fabric.is_global_zero:
        _keep(out, model, figures, epochs=len(history))
        stopped = f"stopped: {history[-1]['stopped']}; " if "stopped" in history[-1] else ""
        attacked = f"PGD-20 (Linf {255 * within:g}/255) {figures['pgd20']:.1%}"
        print(f"{out}: {stopped}clean {figures['clean']:.1%}, {attacked} on {len(test)} test images")


def _read(path: Path) -> Recipe:
    """The recipe in a file that a training wrote."""
    try:
        recipe = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): give the config.json of a training") from error
    if not isinstance(recipe, dict) or not all(isinstance(recipe.get(section), dict) for section in DEFAULTS):
        raise InputError(f"{path} is no recipe: it has the sections {', '.join(DEFAULTS)}, each an object")
    if unnamed := [section for section in NAMES.values() if not isinstance(recipe[section].get("name"), str)]:
        raise InputError(f"{path} is no recipe: its section {unnamed[0]} has no name")
    return {section: dict(recipe[section]) for section in DEFAULTS}


def _recipe(base: Recipe, given: dict[str, Any], changes: list[str]) -> Recipe:
    """The base with what was given on the command line; a section whose name is given anew begins anew."""
    recipe = {section: dict(entries) for section, entries in base.items()}
    for option, section in NAMES.items():
        if given[option] is not None and given[option] != recipe[section]["name"]:
            recipe[section] = DEFAULTS[section] | {"name": given[option]}
    for section, options in SECTIONS.items():
        recipe[section] |= {option: given[option] for option in options if given[option] is not None}
    for change in changes:
        place, _, value = change.partition("=")
        section, _, name = place.partition(".")
        if section not in DEFAULTS or not name or not value:
            raise InputError(f"--set {change}: expected SECTION.NAME=VALUE, with a section of {', '.join(DEFAULTS)}")
        recipe[section][name] = _value(value)
    if recipe["data"] != base["data"] and recipe["network"].get("classes") == base["network"].get("classes"):
        recipe["network"].pop("classes", None)  # those of the other data
    return recipe


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _complete(recipe: Recipe) -> Images:
    """Sees that there is all that the recipe names, enters the number of classes, and gives the test images."""
    possible = [*(name for name in inspect.signature(lrc.train).parameters if name not in FIXED), "milestones"]
    if unknown := [name for name in recipe["training"] if name not in possible]:
        raise InputError(f"the section training has no {unknown[0]!r}; there are {', '.join(sorted(possible))}")
    options = {k: v for k, v in recipe["data"].items() if k not in ("validation", "limit")}
    try:
        test = lrc.data.named(options.pop("name"), "test", **options)
        classes = recipe["network"].setdefault("classes", len(test.classes))
        build(**recipe["network"])
    except TypeError as error:  # an option that the function does not have
        raise InputError(f"a data set or network has no such option: {error}") from error
    if classes != len(test.classes):
        raise InputError(f"network.classes is {classes}, the data have {len(test.classes)} classes: leave it out")
    return test.subset(min(recipe["data"].get("limit", len(test)), len(test)))


def _check_folder(out: Path, recipe: Recipe) -> None:
    """Refuses to go on in the folder of another training; one that ended before its first checkpoint is none."""
    if not (out / "config.json").exists() or not any(
        (out / name).exists() for name in (LAST, PREVIOUS, zoo.WEIGHTS_FILE)
    ):
        return
    there, differ = _read(out / "config.json"), []
    for section, entries in recipe.items():
        names = sorted({*entries, *there[section]} - set(FREE))
        differ += [f"{section}.{name}" for name in names if entries.get(name) != there[section].get(name)]
    if differ:
        raise InputError(f"{out} holds a training of another recipe ({', '.join(differ)}): name another folder")


def _write(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def _keep(out: Path, model: torch.nn.Module, figures: dict[str, Any], *, epochs: int) -> None:
    """Weights and figures."""
    weights = out / zoo.WEIGHTS_FILE
    zoo._write(model, weights)
    versions = {"torch": torch.__version__.split("+")[0], "device": device().type}
    _write(
        out / "figures.json",
        {"sha256": zoo.sha256(weights), "figures": figures, "epochs": epochs, "versions": versions},
    )
