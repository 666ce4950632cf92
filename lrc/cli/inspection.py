"""`lrc inspect`: any network in, one page out."""

import json as json_module
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrc.cli.commands import NETWORK, Device, Grey, Model, Size, Weights, subject
from lrc.experiments.recipe import number
from lrc.utils.errors import InputError

if TYPE_CHECKING:
    from lrc.data import Images
    from lrc.inspection import Inspection

DATA = (
    "Test images: a data set (lrc data), a folder with a folder a class, arrays x and y (.npz), or a data set of "
    "Hugging Face on disk; the recipe's by default."
)
IMAGES = "Test images; by default 1,000, of which as many pixels are attacked as 1,000 of 32 x 32 have."
OUT = (
    "File; repeat it for more. Its ending says what is written: .csv C, .npy the map, .npz and .safetensors all maps "
    "and their C, .json all other numbers, .md a table of them, and C."
)
GROUPS = "Superclasses: data, wordnet, found, none, or a TOML or JSON file of name = [classes]."


Argument = Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the function; repeat it for more.")]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Let the library download its weights.")]
Mean = Annotated[str, typer.Option(help="Of each channel, to normalize with: 0.49,0.48,0.45.")]
Std = Annotated[str, typer.Option(help="Likewise.")]
Data = Annotated[str, typer.Option(help=DATA)]
Count = Annotated[int | None, typer.Option(min=1, show_default=False, help=IMAGES)]
Groups = Annotated[str, typer.Option(help=GROUPS)]


def inspect(
    networks: Annotated[list[str], typer.Argument(help=NETWORK)],
    weights: Weights = None,
    arg: Argument = None,
    pretrained: Pretrained = False,
    mean: Mean = "",
    std: Std = "",
    data: Data = "",
    size: Size = 0,
    images: Count = None,
    grey: Grey = False,
    groups: Groups = "data",
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
    """Is it robust, or does it only look so?

    Example: lrc inspect timm:resnet18 --weights best.pth --data pictures/

    The verdict, signs of gradient masking, and how its classes cluster; with --html all of it on one page. Several
    networks are compared.
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
            name, weights, data, images, size=size, grey=grey, **_asked(arg, mean, std, pretrained=pretrained)
        )
        few, said = _few(test) if images is None else (None, [])
        seen = look(
            network.model.to(where), test, name=name, source=source, groups=_groups(groups), eps=number(eps),
            attack=attack, attacked=few, notes=[*network.notes, *said], generator=Generator().manual_seed(seed),
            progress=sys.stderr.isatty() and not quiet,
        )  # fmt: skip
        found.append(seen)
        _print(seen, quiet=quiet)
    _write(found, html, json, csv, npz)


def export(
    network: Model,
    out: Annotated[list[Path], typer.Option(help=OUT)],
    of: Annotated[str, typer.Option("--map", help="W, local or means: which map .csv, .npy and .md have.")] = "W",
    weights: Weights = None,
    arg: Argument = None,
    pretrained: Pretrained = False,
    mean: Mean = "",
    std: Std = "",
    data: Data = "",
    size: Size = 0,
    images: Count = None,
    grey: Grey = False,
    groups: Groups = "data",
    device: Device = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Write its maps, and C, the correlation of their rows.

    Example: lrc export cifar10-resnet8-at --out C.csv --out maps.npz

    Nothing is attacked: lrc inspect does that. Maps are W, of the linear sub-network, that of the whole network near
    images (local), and the mean images of the classes (means), which take no network.
    """
    from lrc.inspection import maps
    from lrc.inspection.exports import OF_ONE, check_map, check_name, save
    from lrc.utils import devices

    check_map(of)
    for path in out:
        check_name(path)
    grouping, where = _groups(groups), devices.device()
    found, test, source = subject(
        network, weights, data, images, size=size, grey=grey, **_asked(arg, mean, std, pretrained=pretrained)
    )
    few: dict[str, Any] = {"only": (of,), "groups": "none"} if {path.suffix for path in out} <= {*OF_ONE} else {}
    seen = maps(
        found.model.to(where), test, name=network, source=source, notes=found.notes, **{"groups": grouping} | few
    )
    for path in out:
        save(seen, path, of=of)
        if not quiet:
            print(path)
    for note in () if quiet else seen.notes:
        print(f"lrc: {note}", file=sys.stderr)


def _few(test: "Images") -> tuple[int, list[str]]:
    """How many images to attack, and what to say of it where these are fewer than usual."""
    side = test.x.shape[-1]
    few = min(1000, max(1, 1000 * 32**2 // (test.x.shape[-2] * side)))
    if few >= min(1000, len(test)):
        return few, []
    return few, [f"{few} images of {side} x {side} are attacked, as many pixels as 1,000 of 32 x 32: --images has more"]


def _asked(arg: list[str] | None, mean: str, std: str, *, pretrained: bool) -> dict[str, Any]:
    """Options of `lrc.inspection.load`."""
    return {
        "arguments": _arguments(arg or []),
        "pretrained": pretrained,
        "mean": _numbers("--mean", mean),
        "std": _numbers("--std", std),
    }


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
    (_, *heads), *rows = found.rows()
    table = Table("", box=None)
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for n in {one.test.n_splits for one in found.maps.values() if one.test is not None}:
        console.print(f"note: the smallest p that can come out is 1/{n}, of {n} ways to deal out the classes")
    for note in found.notes:
        console.print(f"note: {note}")


def _write(found: "list[Inspection]", html: Path | None, json: Path | None, csv: Path | None, npz: Path | None) -> None:
    """The files that were asked for; the table is C of W, or of the first map that the last network has."""
    from lrc.inspection.clusters import NAMES
    from lrc.inspection.exports import ENDINGS
    from lrc.inspection.page import page
    from lrc.utils.files import write_text

    last = found[-1]
    if html is not None:
        write_text(html, page(found))
    if json is not None:
        write_text(json, last.to_json() if len(found) == 1 else f"[{', '.join(f.to_json() for f in found)}]")
    if csv is not None:
        first = next((key for key in NAMES if getattr(last, key) is not None), "W")
        ENDINGS[".csv"](last, csv, first)
    if npz is not None:
        ENDINGS[".npz"](last, npz, "W")
