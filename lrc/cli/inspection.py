"""`lrc inspect`: any network in, one page out."""

import json as json_module
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrc.cli.commands import NETWORK, WEIGHTS, subject
from lrc.experiments.recipe import number
from lrc.utils.errors import InputError

if TYPE_CHECKING:
    from lrc.data import Images
    from lrc.inspection import Inspection

DATA = "Test images: a data set (lrc data), or a folder with a folder a class; the recipe's by default."


def inspect(
    networks: Annotated[list[str], typer.Argument(help=NETWORK)],
    weights: Annotated[Path | None, typer.Option(help=WEIGHTS)] = None,
    arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the function; repeat it for more.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Let the library download its weights.")] = False,
    mean: Annotated[str, typer.Option(help="Of each channel, to normalize with: 0.49,0.48,0.45.")] = "",
    std: Annotated[str, typer.Option(help="Likewise.")] = "",
    data: Annotated[str, typer.Option(help=DATA)] = "",
    size: Annotated[int, typer.Option(min=0, help="Side of the images in a folder, in pixels.")] = 0,
    images: Annotated[int, typer.Option(min=1, help="Test images to look at.")] = 1000,
    groups: Annotated[
        str, typer.Option(help="Superclasses: data, found, none, or a TOML or JSON file of name = [classes].")
    ] = "data",
    eps: Annotated[str, typer.Option(help="Radius of the attacks, Linf, in units of a pixel in [0, 1].")] = "8/255",
    attack: Annotated[bool, typer.Option("--attack", help="Run AutoAttack too: minutes to hours.")] = False,
    seed: Annotated[int, typer.Option(help="Of the attacks' random choices.")] = 0,
    html: Annotated[Path | None, typer.Option(help="File for the page.")] = None,
    json: Annotated[Path | None, typer.Option(help="File for all numbers.")] = None,
    csv: Annotated[Path | None, typer.Option(help="File for C of W, or of the local map where there is no W.")] = None,
    npz: Annotated[Path | None, typer.Option(help="File for the maps and their C.")] = None,
) -> None:
    """Is it robust, or does it only look so, and do its classes cluster? Several networks are compared.

    Example: lrc inspect timm:resnet18 --weights best.pth --data pictures/ --size 64 --html report.html
    """
    from torch import Generator

    from lrc.inspection import inspect as look
    from lrc.utils.devices import device

    for path in (html, json, csv, npz):
        _writable(path)
    if weights is not None and len(networks) > 1:
        raise InputError("--weights goes with one network: give the others as folders or files")
    found: list[Inspection] = []
    for name in networks:
        network, test, source = subject(
            name, weights, data, images, size=size, arguments=_arguments(arg or []), pretrained=pretrained,
            mean=_numbers("--mean", mean), std=_numbers("--std", std),
        )  # fmt: skip
        test, kind = _grouped(test, groups)
        model = network.model.to(device())
        seeded = Generator().manual_seed(seed)
        seen = look(
            model, test, name=name, source=source, groups=kind, eps=number(eps), attack=attack,
            notes=network.notes, generator=seeded, progress=sys.stderr.isatty(),
        )  # fmt: skip
        found.append(seen)
        _print(found[-1])
    _write(found, html, json, csv, npz)


def _arguments(given: list[str]) -> dict[str, Any]:
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--arg {text}: expected NAME=VALUE")
        try:
            found[name] = json_module.loads(value)
        except ValueError:
            found[name] = value
    return found


def _numbers(option: str, text: str) -> list[float] | None:
    try:
        return [float(v) for v in text.split(",")] if text else None
    except ValueError as error:
        raise InputError(f"{option} {text}: expected a number a channel, 0.49,0.48,0.45") from error


def _grouped(test: "Images", groups: str) -> "tuple[Images, str]":
    """The images with the superclasses that were asked for, and what `lrc.inspect` is to take."""
    if groups in ("data", "found", "none"):
        return test, groups
    from lrc.hierarchy import Hierarchy

    path = Path(groups)
    try:
        text = path.read_text()
        read = tomllib.loads(text) if path.suffix == ".toml" else json_module.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--groups {groups} cannot be read ({error}): data, found, none, or a file") from error
    if not isinstance(read, Mapping) or not all(isinstance(v, list) for v in read.values()):
        raise InputError(f"--groups {groups}: expected names of groups with lists of classes, animals = [...]")
    return replace(test, hierarchy=Hierarchy.of(read, test.classes, source=groups)), "data"


def _writable(path: Path | None) -> None:
    """Refuses before hours of attacks what could not be written after them."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise InputError(f"{path} cannot be written: name a file in a folder that exists")


def _print(found: "Inspection") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{found.name}[/] on {len(found.report)} images of {found.source}: {found.verdict}")
    table = Table(box=None)
    table.add_column("")
    for head in ("contrast", "rank", "p", "likeness"):
        table.add_column(head, justify="right")
    for name, f in found.figures().items():
        rank = "-" if f["rank"] is None else f"{f['rank']}/{f['n_splits']}"
        shown = ("-" if f[key] is None else f"{f[key]:.3g}" for key in ("p_value", "likeness"))
        table.add_row(name, "-" if f["contrast"] is None else f"{f['contrast']:.2f}", rank, *shown)
    console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)


def _write(found: "list[Inspection]", html: Path | None, json: Path | None, csv: Path | None, npz: Path | None) -> None:
    """The files that were asked for; the table is C of W, or of the first map that the last network has."""
    import numpy as np

    from lrc.inspection.page import page
    from lrc.utils.files import write, write_text

    last = found[-1]
    if html is not None:
        write_text(html, page(found))
    if json is not None:
        write_text(json, last.to_json() if len(found) == 1 else f"[{', '.join(f.to_json() for f in found)}]")
    if csv is not None:
        C = next(iter(last.maps.values())).C.tolist()
        lines = [["", *last.classes], *([c, *map(str, row)] for c, row in zip(last.classes, C, strict=True))]
        write_text(csv, "".join(",".join(line) + "\n" for line in lines))
    if npz is not None:
        maps = {key: m for key, m in (("W", last.W), ("local", last.local), ("means", last.means)) if m is not None}
        arrays = {f"{key}_{what}": getattr(m, what).numpy() for key, m in maps.items() for what in ("rows", "C")}

        def save(path: Path) -> None:
            with path.open("wb") as file:
                np.savez_compressed(file, **arrays)

        write(npz, save)
