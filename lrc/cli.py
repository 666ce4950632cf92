"""The `lrc` command: parses, calls the package, prints. What the package refuses is one line and exit status 2."""

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Generator, nn

import lrc
from lrc import zoo
from lrc.attacks import pgd
from lrc.data import Images
from lrc.data.cache import folder
from lrc.errors import InputError
from lrc.profiles import device

app = typer.Typer(
    help="Linearize a classifier, and see whether its classes cluster by meaning.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
zoo_app = typer.Typer(help="The trained networks: list, show, remake.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")

Data = Annotated[
    str, typer.Option(help="Test images: cifar10, cifar100 or shapes; that of the recipe, or cifar10, by default.")
]


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A network of the zoo, or MODULE:FUNCTION that builds one's own.")],
    weights: Annotated[Path | None, typer.Option(help="safetensors file with the weights of such a network.")] = None,
    data: Data = "",
    count: Annotated[int, typer.Option("--images", min=1, help="Test images to attack.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Steps of PGD.")] = 20,
) -> None:
    """Is it robust, and do its classes cluster? Accuracy, contrast of C, permutation test, and the tree cut in two."""
    network, source = _network(model, weights, data)
    test = _images(source, "test")
    test = test.subset(min(count, len(test)))
    if test.hierarchy is None:
        raise InputError(f"{source} has no superclasses to compare with")
    W, groups = lrc.linear_map(network, tuple(test.x.shape[1:])), test.hierarchy.groups()
    if len(W) != len(test.classes):
        raise InputError(f"{model} has {len(W)} classes, {source} has {len(test.classes)}: give its --data")
    attack = partial(pgd, eps=zoo.EPS, steps=steps, step=2 / 255)
    robust = lrc.accuracy(network, test, attack=attack, generator=Generator().manual_seed(0))

    table = Table(title=f"{model} on {len(test)} test images of {source}", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_row("clean accuracy", f"{lrc.accuracy(network, test):.1%}")
    table.add_row(f"accuracy under PGD-{steps}, Linf 8/255", f"{robust:.1%}")
    for kind, centre in (("raw", False), ("centred", True)):
        C = lrc.class_correlation(W, centre=centre)
        result = lrc.permutation_test(C, groups)
        table.add_row(f"contrast, {kind}", f"{result.statistic:.3f}")
        table.add_row(f"  rank of the true superclasses, {kind}", f"{result.rank} of {result.n_splits}")
        table.add_row(f"  p value, {kind}", f"{result.p_value:.4f}")
        found = lrc.cut(lrc.tree(C), len(groups))
        table.add_row(f"  adjusted Rand index of the tree, {kind}", f"{lrc.agreement(found, groups):.2f}")
    Console().print(table)


@app.command("data")
def data_command(name: Annotated[str, typer.Argument(help="cifar10, cifar100 or shapes.")]) -> None:
    """Find a data set (download and decode it if need be), and say what is in it."""
    for split in ("train", "test"):
        found = _images(name, split)
        print(f"{name} {split}: {found}")
    print(f"cache: {folder()}")


@zoo_app.command("list")
def list_command() -> None:
    """The networks there are recipes for, with their figures where they are shipped."""
    table = Table("name", "about", "clean", "PGD-20")
    for name in zoo.names():
        record = zoo.info(name)
        figures = record.get("figures")
        shown = (f"{figures['clean']:.1%}", f"{figures['pgd20']:.1%}") if figures else ("-", "-")
        table.add_row(name, record["recipe"]["about"], *shown)
    Console().print(table)


@zoo_app.command()
def show(name: str) -> None:
    """Recipe and figures of one network, as JSON."""
    Console().print_json(data=zoo.info(name))


@zoo_app.command()
def make(
    names: Annotated[list[str] | None, typer.Argument(help="Recipes; by default all to be shipped.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for checkpoints: what was broken off goes on from there.")] = Path(
        "_build/zoo"
    ),
) -> None:
    """Train networks by their recipes, measure them, and write weights and figures into the package."""
    for name in names or [name for name in zoo.names() if zoo.recipe(name).get("shipped")]:
        figures = zoo.make(name, work=work, progress=sys.stderr.isatty())["figures"]
        print(f"{name}: clean {figures['clean']:.1%}, PGD-20 {figures['pgd20']:.1%} on {figures['images']} test images")


def _network(model: str, weights: Path | None, data: str) -> tuple[nn.Module, str]:
    """The network that the user named, in eval mode, and the data set to test it on."""
    if ":" not in model:
        if weights is not None:
            raise InputError("--weights goes with one's own network, MODULE:FUNCTION")
        return zoo.obtain(model), data or zoo.recipe(model)["data"]["name"]
    module, _, function = model.partition(":")
    if not module or not function:
        raise InputError(f"{model!r} names no function: expected a network of the zoo, or MODULE:FUNCTION")
    sys.path.insert(0, ".")  # a module beside the user
    try:
        network: Any = getattr(importlib.import_module(module), function)()
    except Exception as error:  # the user's own code: anything
        reason = " ".join(str(error).split())
        raise InputError(f"cannot build {model}: {type(error).__name__}: {reason}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{model} gave a {type(network).__name__}, not a torch.nn.Module")
    if weights is not None:
        try:
            network.load_state_dict(load_file(weights))
        except Exception as error:  # missing, damaged, or of another network: the reader needs the first line only
            raise InputError(f"{weights}: {str(error).splitlines()[0]}") from error
    return network.to(device()).eval(), data or "cifar10"


def _images(name: str, split: str) -> Images:
    if name not in ("cifar10", "cifar100", "shapes"):
        raise InputError(f"no data set is called {name!r}; there are cifar10, cifar100, shapes")
    return getattr(lrc.data, name)(split)


def main() -> None:
    """Entry point: an InputError becomes one line on stderr and exit status 2."""
    try:
        app()
    except (InputError, FloatingPointError) as error:
        print(f"lrc: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
