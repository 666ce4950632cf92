"""`lrc inspect`: any network in, one page out."""

import json as json_module
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrc.cli.commands import NETWORK, WEIGHTS, Device, subject
from lrc.experiments.recipe import number
from lrc.utils.errors import InputError

if TYPE_CHECKING:
    from lrc.inspection import Inspection

DATA = (
    "Test images: a data set (lrc data), a folder with a folder a class, arrays x and y (.npz), or a data set of "
    "Hugging Face on disk; the recipe's by default."
)
GROUPS = "Superclasses: data, wordnet, found, none, or a TOML or JSON file of name = [classes]."


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
    grey: Annotated[bool, typer.Option("--grey", help="The network takes one channel: the brightness.")] = False,
    groups: Annotated[str, typer.Option(help=GROUPS)] = "data",
    eps: Annotated[str, typer.Option(help="Radius of the attacks, Linf, in units of a pixel in [0, 1].")] = "8/255",
    attack: Annotated[bool, typer.Option("--attack", help="Run AutoAttack too: minutes to hours.")] = False,
    seed: Annotated[int, typer.Option(help="Of the attacks' random choices.")] = 0,
    device: Device = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the verdict alone.")] = False,
    html: Annotated[Path | None, typer.Option(help="File for the page.")] = None,
    json: Annotated[Path | None, typer.Option(help="File for all numbers.")] = None,
    csv: Annotated[Path | None, typer.Option(help="File for C of W, or of the local map where there is no W.")] = None,
    npz: Annotated[Path | None, typer.Option(help="File for the maps and their C.")] = None,
) -> None:
    """Is it robust, or does it only look so? Several networks are compared.

    Example: lrc inspect timm:resnet18 --weights best.pth --data pictures/

    The verdict, signs of gradient masking, and how its classes cluster; with --html all of it on one page.
    """
    from torch import Generator

    from lrc.inspection import inspect as look
    from lrc.utils import devices

    where = devices.device()

    for path in (html, json, csv, npz):
        _writable(path)
    if weights is not None and len(networks) > 1:
        raise InputError("--weights goes with one network: give the others as folders or files")
    found: list[Inspection] = []
    for name in networks:
        network, test, source = subject(
            name, weights, data, images, size=size, grey=grey, arguments=_arguments(arg or []), pretrained=pretrained,
            mean=_numbers("--mean", mean), std=_numbers("--std", std),
        )  # fmt: skip
        seen = look(
            network.model.to(where), test, name=name, source=source, groups=_groups(groups), eps=number(eps),
            attack=attack, notes=network.notes, generator=Generator().manual_seed(seed),
            progress=sys.stderr.isatty() and not quiet,
        )  # fmt: skip
        found.append(seen)
        _print(seen, quiet=quiet)
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


def _groups(groups: str) -> str | dict[str, list[str]]:
    """What `lrc.inspect` is to take: a word, or what the file says."""
    if groups in ("data", "wordnet", "found", "none"):
        return groups
    path = Path(groups)
    try:
        text = path.read_text()
        read = tomllib.loads(text) if path.suffix == ".toml" else json_module.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"--groups {groups} cannot be read ({error}): data, wordnet, found, none, or a file"
        ) from error
    if not isinstance(read, dict) or not all(isinstance(v, list) for v in read.values()):
        raise InputError(f"--groups {groups}: expected names of groups with lists of classes, animals = [...]")
    return read


def _writable(path: Path | None) -> None:
    """Refuses before hours of attacks what could not be written after them."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise InputError(f"{path} cannot be written: name a file in a folder that exists")


def _print(found: "Inspection", *, quiet: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    console.print(f"{found.name} on {len(found.report)} images of {found.source}: {found.verdict}")
    if quiet:
        return
    console.print(", ".join(f"{name} {found.report.accuracy(name)}" for name in found.report.names))
    table = Table(box=None)
    table.add_column("")
    for head in ("contrast", "rank", "p", "p given means", "likeness"):
        table.add_column(head, justify="right")
    floors = set()
    for name, f in found.figures().items():
        rank = "-" if f["rank"] is None else f"{f['rank']}/{f['n_splits']}"
        floors |= {f["n_splits"]} - {None}
        given = f["given_class_means"] and f["given_class_means"]["p"]
        shown = ("-" if v is None else f"{v:.3g}" for v in (f["p_value"], given, f["likeness"]))
        table.add_row(name, "-" if f["contrast"] is None else f"{f['contrast']:.2f}", rank, *shown)
    console.print(table)
    for n in floors:
        console.print(f"note: the smallest p that can come out is 1/{n}, of {n} ways to deal out the classes")
    for note in found.notes:
        console.print(f"note: {note}")


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
        arrays = {
            f"{key}_{what}": getattr(m, what).float().numpy() for key, m in maps.items() for what in ("rows", "C")
        }

        def save(path: Path) -> None:
            with path.open("wb") as file:
                np.savez_compressed(file, **arrays)

        write(npz, save)
