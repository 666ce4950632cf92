"""The commands that look at networks and data, and the entry point.

What a command needs is imported when it runs: help, lists and refusals do not wait for PyTorch.
"""

import os
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import lrc
from lrc.experiments.recipe import number, recipes
from lrc.utils.errors import InputError

if TYPE_CHECKING:
    from lrc.inspection import Subject

SOURCES = "cifar10, cifar20, cifar100, shapes, stl10, stl10-as-cifar10, entity13, entity30, living17, nonliving26"

app = typer.Typer(
    help="Linearize a classifier, and see whether its classes cluster by meaning.",
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
zoo_app = typer.Typer(help="The trained networks: list, show, remake.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"lrc {lrc.__version__}")
        raise typer.Exit
    return wanted


def _use(device: str) -> str:
    if device:
        os.environ["LRC_DEVICE"] = device  # where all that runs looks for it
    return device


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Linearize a classifier, and see whether its classes cluster by meaning."""


NETWORK = (
    "A network of the zoo, a folder of lrc train, torchvision:NAME, timm:NAME, transformers:FOLDER, FILE.py:FUNCTION, "
    "MODULE:FUNCTION, or a TorchScript or torch.export file."
)
WEIGHTS = "File of weights: safetensors, or what torch.save wrote; no code in it is run."
Device = Annotated[str, typer.Option(callback=_use, help="cpu, cuda, cuda:1, mps; by default the best there is.")]
Model = Annotated[str, typer.Argument(help=NETWORK)]
Weights = Annotated[Path | None, typer.Option(help=WEIGHTS)]
Count = Annotated[int, typer.Option("--images", min=1, help="Test images to attack.")]
Size = Annotated[int, typer.Option(min=0, help="Side of the images in a folder, in pixels.")]
Grey = Annotated[bool, typer.Option("--grey", help="The network takes one channel: the brightness.")]
Data = Annotated[str, typer.Option(help=f"Test images: {SOURCES}, or a folder; the recipe's by default.")]


@app.command()
def evaluate(
    model: Model,
    weights: Weights = None,
    data: Data = "",
    size: Size = 0,
    grey: Grey = False,
    attack: Annotated[list[str] | None, typer.Option(help="pgd and autoattack by default; repeat it for more.")] = None,
    eps: Annotated[str, typer.Option(help="Radius of the ball, in units of a pixel in [0, 1].")] = "8/255",
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    count: Count = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 250,
    seed: Annotated[int, typer.Option(help="Of the attacks' random choices.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder: what was broken off goes on from there.")] = None,
    json: Annotated[Path | None, typer.Option(help="File for the report, as JSON.")] = None,
    surrogate: Annotated[str, typer.Option(help="Another network, to transfer examples from.")] = "",
    masking: Annotated[bool, typer.Option(help="Look for signs of gradient masking.")] = True,
    precision: Annotated[
        str, typer.Option(help="Of the search: float32 or bf16. Verdicts are in float32.")
    ] = "float32",
    device: Device = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print accuracies alone, a line each.")] = False,
) -> None:
    """How robust is it? Accuracy under attacks, and signs of masking.

    Example: lrc evaluate cifar10-resnet8-at --attack pgd --images 500

    By class and superclass too, with what the attacks cost. Under torchrun (--nproc_per_node N -m lrc.cli evaluate ...)
    each process attacks an N-th of the images.
    """
    from rich.console import Console
    from torch import Generator

    from lrc.utils.files import write_text

    radius = number(eps)
    if json is not None and not json.absolute().parent.is_dir():  # before hours of attacks, not after
        raise InputError(f"{json} cannot be written: there is no folder {json.parent}")
    if json is not None and json.is_dir():
        raise InputError(f"{json} cannot be written: it is a folder, name a file in it")
    from lrc.utils import devices
    from lrc.utils.processes import join, launched

    where = devices.device()
    found, test, _ = subject(model, weights, data, count, size=size, grey=grey)
    fabric = join(where) if launched() else None
    where = where if fabric is None else fabric.device
    other = subject(surrogate, None, data, count)[0].model.to(where) if surrogate else None
    report = lrc.evaluate(
        found.model.to(where), test, attacks=attack or ("pgd", "autoattack"), eps=radius, norm=norm,
        batch_size=batch_size, generator=Generator().manual_seed(seed), out=out, masking=masking,
        surrogate=other, progress=sys.stderr.isatty() and not quiet, precision=precision, fabric=fabric,
    )  # fmt: skip
    if fabric is not None and not fabric.is_global_zero:
        return
    if quiet:
        print("\n".join(f"{name}: {report.accuracy(name)}" for name in report.names))
    else:
        Console().print(report)
        for note in found.notes:
            print(f"lrc: {note}", file=sys.stderr)
    if json is not None:
        write_text(json, report.to_json())


@app.command("data")
def data_command(name: Annotated[str, typer.Argument(help=f"{SOURCES}, or a folder.")]) -> None:
    """Find a data set, and say what is in it.

    It is downloaded and decoded if need be.
    """
    from lrc.data.cache import folder

    for split in ("train", "test"):
        found = lrc.data.named(name, split)
        print(f"{name} {split}: {found}")
    print(f"cache: {folder()}")


@zoo_app.command("list")
def list_command() -> None:
    """The networks there are recipes for, with recorded figures.

    Attacks are Linf, of the radius eps. Where the terminal is narrow `about` is cut: `show` has it whole.
    """
    from rich.console import Console
    from rich.table import Table

    from lrc.experiments.store import info

    table = Table(box=None, expand=True)
    table.add_column("name", no_wrap=True)
    for header in ("eps", "clean", "PGD-20", "AutoAttack"):
        table.add_column(header, justify="right")
    table.add_column("about", no_wrap=True, ratio=1)
    for name, recipe in recipes().items():
        figures = info(name).get("figures", {})
        found = [figures.get("clean"), figures.get("pgd20"), figures.get("autoattack", {}).get("robust")]
        shown = ("-" if share is None else f"{share:.1%}" for share in found)
        table.add_row(name, f"{255 * recipe.radius:.3g}/255", *shown, recipe.about)
    Console().print(table)


@zoo_app.command()
def show(name: str) -> None:
    """Recipe and figures of one network, as JSON."""
    from rich.console import Console

    from lrc.experiments.store import info

    Console().print_json(data=info(name))


@zoo_app.command()
def make(
    names: Annotated[list[str] | None, typer.Argument(help="Recipes; by default all to be shipped.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for checkpoints: what was broken off goes on from there.")] = Path(
        "_build/zoo"
    ),
    images: Annotated[int, typer.Option(min=1, help="Test images for accuracy, clean and under PGD-20.")] = 1000,
    judged: Annotated[int, typer.Option(min=1, help="Of these, images for AutoAttack and signs of masking.")] = 1000,
) -> None:
    """Train networks by their recipes, measure them, and ship them.

    Figures, and weights that are to be shipped, are written into the package.
    """
    from lrc.experiments import zoo

    for name in names or [name for name in zoo.names() if zoo.recipe(name).shipped]:
        figures = zoo.make(name, work=work, images=images, judged=judged, progress=sys.stderr.isatty())["figures"]
        print(f"{name}: clean {figures['clean']:.1%}, PGD-20 {figures['pgd20']:.1%} on {figures['images']} test images")


def subject(
    model: str, weights: Path | None, data: str, count: int | None, *, size: int = 0, grey: bool = False, **options: Any
) -> "tuple[Subject, lrc.Images, str]":
    """The network that the user named, some test images for it, and the name of their data set.

    Args:
        model, weights, options: as in `lrc.inspection.load`.
        data: name of a data set, a folder or a file; by default that of the recipe, else CIFAR-10.
        count: of images, at most; None: 1,000, and five of each class that has fewer among them.
        size: side of the images in a folder, in pixels; 0 for theirs, or that which the network was made for.
        grey: give the network one channel.
    """
    from lrc.inspection import data_of, load, usual_side

    known = data_of(model)
    if data == "stl10" and known.get("name", data) != data:
        raise InputError(f"{model} knows other classes than stl10, or in another order: --data stl10-as-cifar10")
    section: dict[str, Any] = {"name": data} if data else dict(known) or {"name": "cifar10"}
    source, said = str(section.pop("name")), []
    section |= {"size": size} if size else {}
    try:
        test = lrc.data.named(source, "test", **section)
    except InputError as error:
        side = 0 if size or "size" not in str(error) else usual_side(model)
        if not side:
            _check_named(model, weights, options)
            raise InputError(f"{error}" + ": --size 64, say" * ("give the size" in str(error))) from error
        test = lrc.data.named(source, "test", **section, size=side)
        said.append(f"images were brought to {side} x {side} pixels, for which {model} was made: --size has others")
    if not len(test):
        raise InputError(f"{source} holds no images to classify: give at least one")
    test = _enough(test) if count is None else test.subset(min(count, len(test)))
    test = lrc.data.grey(test) if grey else test
    load_for = partial(load, model, weights=weights, classes=len(test.classes), **options)
    try:
        found = load_for(shape=tuple(test.x.shape[1:]))
    except InputError as error:
        if "1 channel" not in str(error) or test.x.shape[1] == 1:
            raise
        test = lrc.data.grey(test)
        found = load_for(shape=tuple(test.x.shape[1:]))
        said.append("images were made grey, as the network takes one channel")
    classes = found.model(test.float([0]).contiguous()).shape[1]
    if classes > len(test.classes) and test.classes == _numbers(test):
        test = replace(test, classes=tuple(map(str, range(classes))))  # of arrays, whose last classes have no images
    if classes != len(test.classes):
        raise InputError(f"{model} has {classes} classes, {source} has {len(test.classes)}: give its --data")
    return replace(found, notes=(*found.notes, *said)), test, source


def _check_named(model: str, weights: Path | None, options: dict[str, Any]) -> None:
    """Where there are no images: what is wrong with the network is said first, unless it wants them to tell."""
    from lrc.inspection import load

    try:
        load(model, weights=weights, **options)
    except InputError as error:
        if "does not take images" not in str(error):
            raise


def _enough(images: "lrc.Images", count: int = 1000, each: int = 5) -> "lrc.Images":
    """The first images, and of each class that has few of them its first."""
    import torch

    y, n = images.y.cpu(), len(images)
    order, members, place = y.argsort(stable=True), y.bincount(), torch.empty_like(y)
    place[order] = torch.arange(n) - (members.cumsum(0) - members)[y[order]]  # of an image among those of its class
    rows = ((torch.arange(n) < count) | (place < each)).nonzero()[:, 0]
    return images.subset(len(rows) if len(rows) <= count else rows)


def _numbers(test: "lrc.Images") -> tuple[str, ...]:
    return tuple(map(str, range(len(test.classes))))


def main() -> None:
    """Entry point: what cannot be done becomes one line on stderr and exit status 2; a warning is one line too."""
    warnings.formatwarning = lambda message, *_, **__: f"lrc: {message}\n"
    try:
        app()
    except (InputError, FloatingPointError, OSError) as error:
        print(f"lrc: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        from lrc.utils.checks import out_of_memory

        if not out_of_memory(error):
            raise
        print("lrc: memory ran out: lower --batch-size, or free some of it", file=sys.stderr)
        sys.exit(2)
