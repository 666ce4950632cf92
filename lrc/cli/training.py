"""`lrc train`: a recipe from the command line, trained, measured, and kept in a folder of its own."""

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrc.experiments.recipe import Recipe, checked, read
from lrc.utils.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from lrc.data import Images

Sections = dict[str, Any]

DEFAULTS: Sections = {
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
    arch: Annotated[str | None, option("resnet18 (the default), resnet8, vgg6, or FILE.py:FUNCTION, your own.")] = None,
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
    size: Annotated[int | None, option("Side of the images in a folder, in pixels (theirs).", min=1)] = None,
    compile: Annotated[bool | None, option("Run the network through torch.compile.", "--compile")] = None,
    tensorboard: Annotated[bool | None, option("Write a TensorBoard log too.", "--tensorboard")] = None,
    set: Annotated[list[str] | None, option("Any other entry of the recipe: training.momentum=0.8, say.")] = None,
) -> None:
    """Train a network, and keep weights, figures and the recipe.

    One process does it, or several under torchrun. OUT holds config.json (which --config takes), metrics.jsonl (a line
    an epoch), weights.safetensors and figures.json; lrc evaluate OUT and lrc inspect OUT go on from there.
    """
    given = dict(locals())  # the options, by name
    from lrc.experiments import fitting, store, zoo
    from lrc.training.distributed import shared_accuracy
    from lrc.utils.devices import device
    from lrc.utils.files import locked
    from lrc.utils.processes import join

    fabric = join(device())
    recipe, test = _complete(_recipe(DEFAULTS if config is None else _read(config), given, set or []))
    zoo.objective(
        recipe, test.hierarchy
    )  # may be refused, or train a teacher: before there is a trace of this training
    with locked(out) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            store.claim(out, recipe)
        model, history = zoo.fit(recipe, out=out, progress=sys.stdout.isatty())
        figures = fitting.figures(model, test, eps=recipe.radius, measure=partial(shared_accuracy, fabric=fabric)) | {
            "eps": recipe.radius
        }
        if fabric.is_global_zero:
            _keep(out, model, recipe, figures, history)
    if fabric.is_global_zero:
        stopped = f"stopped: {history[-1]['stopped']}; " if "stopped" in history[-1] else ""
        attacked = f"PGD-20 (Linf {255 * recipe.radius:g}/255) {figures['pgd20']:.1%}"
        print(f"{out}: {stopped}clean {figures['clean']:.1%}, {attacked} on {len(test)} test images")


def _read(path: Path) -> Sections:
    """The recipe in a file that a training wrote."""
    from lrc.utils.files import read_json

    found = read_json(path, unsealed=True)
    read(found, where=str(path))
    return {entry: found[entry] for entry in (*DEFAULTS, "eps") if entry in found}


def _recipe(base: Sections, given: dict[str, Any], changes: list[str]) -> Sections:
    """The base with what was given on the command line; a section whose name is given anew begins anew."""
    recipe = base | {section: dict(base[section]) for section in DEFAULTS}
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
    except (ValueError, RecursionError):
        return text


def _complete(given: Sections) -> "tuple[Recipe, Images]":
    """The recipe, once it is seen that there is all that it names, with the number of classes; and the test images."""
    from lrc import data as datasets
    from lrc.experiments import fitting

    recipe = checked(read(given, where="lrc train"), where="lrc train")
    test = datasets.named(recipe.data.name, "test", labels=recipe.data.labels, **recipe.data.options)
    options = {"classes": len(test.classes)} | dict(recipe.network.options)
    if options["classes"] != len(test.classes):
        found = f"network.classes is {options['classes']}, the data have {len(test.classes)} classes"
        raise InputError(f"{found}: leave it out")
    recipe = replace(recipe, network=replace(recipe.network, options=options))
    fitting.untrained(recipe)
    return recipe, test.subset(min(recipe.data.limit or len(test), len(test)))


def _keep(
    out: Path, model: "nn.Module", recipe: Recipe, figures: dict[str, Any], history: list[dict[str, Any]]
) -> None:
    """Weights and figures."""
    from lrc.experiments import fitting, store
    from lrc.utils.files import write_json

    store.keep(out, model, recipe, history)
    digest = store.sha256(out / store.WEIGHTS_FILE)
    record = {"sha256": digest, "figures": figures, "epochs": len(history), "versions": fitting.versions()}
    write_json(out / "figures.json", record)
