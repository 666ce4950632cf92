"""Linearizes the classification networks of what is installed, compares with the tests' oracle: book/architectures.md.

python tools/architectures.py [NAME ...] [--again] [--minutes N] [--library NAME]

All builders of torchvision; where they are installed (`pip install -e '.[test,architectures]'`), the smallest member of
each family of timm and the image classifiers of transformers, small and from their configurations. Takes hours of one
core and up to 12 GB. Each row is appended to book/architectures.jsonl, so that a run that was broken off goes on where
it stopped, and rows of several machines may be put together; `--again` measures anew what was not taken, `--minutes 0`
only writes the page.
"""

import argparse
import copy
import json
import re
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lrc
from lrc.linearization import affine_map
from lrc.utils.errors import first_line

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))
from linearizing import lively  # noqa: E402
from oracle import backward_map, oracle_map  # noqa: E402

PAGE, ROWS = ROOT / "book" / "architectures.md", ROOT / "book" / "architectures.jsonl"
LIBRARIES = ("torchvision", "timm", "transformers")
SIDES = (64, 70, 96, 128, 224)
"""Sides of images, the first that a network takes is taken; 70 is for patches of 14."""
LARGEST = 150e6
"""Parameters of the largest networks of timm that are tried."""
SIZES = set(
    "atto femto pico nano zepto xxtiny xtiny tiny xxs xs xsmall small medium mediumd base large xlarge xxlarge huge "
    "giant giantopt gigantic enormous mini micro little dlittle wee dwee pwee dpwee betwixt big patch window distilled "
    "pruned legacy rw tf tv ti jx short tall wide plus".split()
)
"""Words of timm's names that say no more than how large a network is, or who trained it."""
LONGEST = 30.0
"""Minutes that one network may take."""
TINY = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "image_size": 64,
}
"""Of the configurations of transformers."""

Network = tuple[nn.Module, tuple[int, int, int]]
Builder = Callable[[int | None], nn.Module]
"""Builds a network for images of a side, or of the side that it was made for."""


# --- what there is ---------------------------------------------------------------------------------------------------


def of_torchvision() -> dict[str, Builder]:
    from torchvision import models

    def builder(name: str) -> Builder:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}

        def build(side: int | None) -> nn.Module:
            size = {"image_size": side} if side and name.startswith("vit") else {}
            return models.get_model(name, num_classes=5, **options, **size)

        return build

    return {name: builder(name) for name in models.list_models(models)}


def of_timm() -> dict[str, Builder]:
    import timm

    def builder(name: str) -> Builder:
        def build(side: int | None) -> nn.Module:
            if side is not None:
                try:
                    return timm.create_model(name, num_classes=5, img_size=side)
                except TypeError:  # a network for images of any size
                    pass
            return timm.create_model(name, num_classes=5)

        return build

    return {name: builder(name) for name in smallest(timm)}


def smallest(timm: Any) -> list[str]:
    """The smallest member of each family: of a module file, what begins with the same words. Counted once."""
    path = ROOT / "_build" / f"timm-{timm.__version__}.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        names = [name for name in timm.list_models() if not name.startswith("test_")]
        path.write_text(json.dumps(dict(parameters(timm, names))), encoding="utf-8")
    families: dict[tuple[str, ...], tuple[float, str]] = {}
    counts = json.loads(path.read_text(encoding="utf-8"))
    modules = {name: module for module in timm.list_modules() for name in timm.list_models(module=module)}
    for name, count in counts.items():
        words = [found.group() for word in name.split("_") if (found := re.match(r"[a-z]{2,}", word))]
        key = (modules[name], *[word for word in words if word not in SIZES][:2])
        families[key] = min(families.get(key, (LARGEST, "")), (count, name))
    return [name for _, name in sorted(families.values()) if name]


def parameters(timm: Any, names: Iterable[str]) -> Iterator[tuple[str, int]]:
    for name in names:
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception:  # its constructor computes with the values of tensors: another member of the family stands in
            continue
        yield name, count(model)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def of_transformers() -> dict[str, Builder]:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as NAMES

    def builder(name: str, cls: str) -> Builder:
        def build(side: int | None) -> nn.Module:
            config = transformers.CONFIG_MAPPING[name]()
            config.num_labels = 5
            for part in filter(None, (config, getattr(config, "vision_config", None))):
                own = {key for key, value in part.to_dict().items() if type(value) is int}
                for key in own & TINY.keys():
                    setattr(part, key, (TINY | {"image_size": side or 64})[key])
            return getattr(transformers, cls)(config)

        return build

    other = ("imagegpt", "shieldgemma2", "timm_wrapper", "dinat", "siglip2", "perceiver")  # need more than an image
    flat = {name: cls if isinstance(cls, str) else cls[0] for name, cls in NAMES.items()}
    return {name: builder(name, cls) for name, cls in flat.items() if name not in other}


# --- what becomes of it ----------------------------------------------------------------------------------------------


class Uninitialized(TorchFunctionMode):
    """Makes weights that all are drawn anew in no time: zeros, as initializers may draw again what is too large."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawing = func in (Tensor.normal_, Tensor.uniform_, Tensor.erfinv_)
        return args[0].zero_() if drawing else func(*args, **(kwargs or {}))


class Late(BaseException):
    """No Exception: what the linearizer catches on its way is not to stop it."""


@contextmanager
def limited(minutes: float) -> Iterator[None]:
    """Raises Late in what takes longer, once the operation that runs is done."""

    def stop(*_: Any) -> None:
        raise Late(f"took longer than {minutes:g} minutes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure(build: Builder, *, passes: bool, minutes: float = LONGEST) -> dict[str, Any]:
    """A row of the table, but for names."""
    row: dict[str, Any] = {"status": "no classifier"}
    try:
        with limited(minutes):
            fill(row, build, passes=passes)
    except lrc.InputError as error:
        row |= {"status": "refused", "reason": str(error)}
    except Late as error:
        row |= {"status": "failed", "reason": str(error)}
    except Exception as error:  # whatever the network, the package or the oracle raises is a result
        row |= {"status": "failed", "reason": f"{type(error).__name__}: {first_line(error)}"}
    return row


def fill(row: dict[str, Any], build: Builder, *, passes: bool) -> None:
    """Puts what is found into the row as it is found."""
    usual = fitting(build, (None,)) if passes else None
    row |= {} if usual is None else cost(*usual)
    found = fitting(build, SIDES, usual)
    if found is None:
        return
    model, shape = found
    row |= {"side": shape[-1], "parameters": count(model)}
    row["errors"] = [float(f"{error:.1e}") for error in errors(model, shape)]
    if max(row["errors"]) > 1e-8:
        row["rounding"] = float(f"{rounding(model, shape):.1e}")
    row["status"] = "taken" if right(row) else "wrong"


def right(row: dict[str, Any]) -> bool:
    """Are W and b those of the oracle, and the local maps too, as far as rounding lets them be told?"""
    return max(row["errors"][:2]) <= 1e-8 and max(row["errors"][2:], default=0.0) <= max(
        1e-8, 10 * row.get("rounding", 0.0)
    )


def fitting(build: Builder, sides: Iterable[int | None], usual: Network | None = None) -> Network | None:
    """The network with random weights for the first side of images that it takes; nothing if it gives no logits.

    The network for images of the usual side is taken where that takes others too.
    """
    for side in sides:
        for model in (*usual[:1], None) if usual else (None,):
            try:
                with Uninitialized():
                    model = (model or build(side)).eval()
                length = side or native(model)
                shape = (3, length, length)
                model = model if usual and model is usual[0] else lively(model).eval().requires_grad_(False)
                with torch.no_grad():
                    z = model(torch.rand(2, *shape, dtype=torch.double))
            except Exception:  # too small, or not of its kind
                continue
            z = getattr(z, "logits", z)
            return (model, shape) if isinstance(z, Tensor) and z.dim() == 2 else None
    return None


def native(model: nn.Module) -> int:
    """The side of the images that a network was made for."""
    config = getattr(model, "pretrained_cfg", {}) or {}
    side = 299 if type(model).__name__ == "Inception3" else getattr(getattr(model, "config", None), "image_size", 224)
    return int(config.get("input_size", (3, side if isinstance(side, int) else side[-1]))[-1])


def cost(model: nn.Module, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Parameters, and the processor time of linearizing in forward passes of one image of the usual size."""
    model = copy.deepcopy(model).float()
    with torch.no_grad():
        forward = min(seconds(lambda: model(torch.rand(1, *shape))) for _ in range(3))
    row: dict[str, Any] = {"parameters": count(model), "forward": forward}
    try:
        took = seconds(lambda: lrc.linearize(model, input_shape=shape))
        row |= {"seconds": round(took, 3), "passes": float(f"{took / forward:.3g}")}
    except lrc.InputError:
        pass
    return row


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return round(time.process_time() - start, 4)


def errors(model: nn.Module, shape: tuple[int, int, int]) -> Iterator[float]:
    """Relative errors of W and b in both treatments of batch norm, and of local maps of one image and of two."""
    for batchnorm in ("remove", "fold"):
        W, b = affine_map(model, shape, batchnorm=batchnorm)
        expected = oracle_map(model, shape, batchnorm)
        size = float(expected[0].abs().max())
        yield max(distance(W, expected[0], size), distance(b, expected[1], max(size, float(expected[1].abs().max()))))
    x = torch.rand(2, *shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    for n in (1, 2):
        J = backward_map(model, x[:n])
        yield distance(lrc.local_map(model, x[:n]), J, float(J.abs().max()))


class Single(TorchDispatchMode):
    """Notes whether a network in double precision computes in single precision inside."""

    there = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.there |= isinstance(found, Tensor) and found.dtype == torch.float32
        return found


def rounding(model: nn.Module, shape: tuple[int, int, int]) -> float:
    """How far apart plain backward passes are, of an image alone, beside another, and with other last digits."""
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(2, *shape, dtype=torch.double, generator=rng)
    J, digits = backward_map(model, x), torch.randint(-4, 5, x.shape, generator=rng).double()
    size = float(J.abs().max())
    with Single() as single, torch.no_grad():
        model(x)
    last = 2.0**-23 if single.there else 2.0**-52
    alone = distance(backward_map(model, x[:1]), J[:1], size)
    return max(alone, distance(backward_map(model, x * (1 + digits * last)), J, size))


def distance(a: Tensor, b: Tensor, size: float) -> float:
    error = float((a - b).abs().max()) / size
    return error if error == error else float("inf")


# --- the page --------------------------------------------------------------------------------------------------------

HEADER = """# Architectures

`lrc.linearize` on classification networks with random weights and random batch statistics, at small images.
`make architectures` made this page, the newest row on {date}, with {versions}.

What is taken is compared, in float64, with an oracle that knows nothing of graphs: a mode of PyTorch that replaces each
operation by its linear stand-in while the network runs. The error is the largest, relative to the largest entry, of W
and b with batch norm removed and folded, and of local maps of one image and of two against plain backward passes.
Linearizing, its checks included, is measured in forward passes of one image of the usual size, in float32; a network
of few, small layers has cheap passes.

Of timm it is the smallest member of each family, the smallest of these first: a run that was broken off leaves the
larger ones out. Those of transformers have two layers, where they can. Stars: measured by an earlier version, at the
usual size with batch norm folded, by superposition and by three rows of W against backward passes. Daggers: plain
backward passes of this network with random weights differ by as much among themselves.

| | networks | taken | refused | failed | wrong | largest error | linearized in 10 passes or fewer |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""
TABLE = """
## {0}

| network | parameters, M | side | error | passes |
| --- | ---: | ---: | ---: | ---: |
"""


def page(rows: list[dict[str, Any]]) -> str:
    """The page, of the rows alone."""
    rows = [row for row in rows if row["status"] != "no classifier"]
    names = [name for name in LIBRARIES if any(row["library"] == name for row in rows)]
    of = {name: [row for row in rows if row["library"] == name] for name in names}
    libraries = [("torch", [row["torch"] for row in rows])]
    libraries += [(name, [row["version"] for row in some]) for name, some in of.items()]
    text = HEADER.format(
        date=max(row["date"] for row in rows), versions=", ".join(f"{name} {counted(some)}" for name, some in libraries)
    )
    for name, some in of.items():
        statuses, taken = Counter(row["status"] for row in some), [row for row in some if row["status"] == "taken"]
        worst = max((max(row["errors"]) for row in taken), default=0.0)
        passes = [row["passes"] for row in taken if "passes" in row]
        counts = [len(some), *(statuses[status] for status in ("taken", "refused", "failed", "wrong"))]
        quick = f"{sum(n <= 10 for n in passes)} of {len(passes)}"
        text += f"| {name} | {' | '.join(map(str, counts))} | {worst:.0e} | {quick} |\n"
    reasons = [
        f"| {row['name']} | {escaped(row.get('reason', 'another map than the oracle'))} |\n"
        for row in rows
        if row["status"] != "taken"
    ]
    text += "\n## Not taken\n\n| network | why |\n| --- | --- |\n" + "".join(reasons) if reasons else ""
    return text + "".join(TABLE.format(name) + "".join(map(line, sorted(of[name], key=named))) for name in names)


def counted(versions: list[str]) -> str:
    """The version; if there are several, each with how many of the rows it made."""
    rows = Counter(versions)
    return (
        next(iter(rows))
        if len(rows) == 1
        else " and ".join(f"{v} ({n} of {len(versions)})" for v, n in sorted(rows.items()))
    )


def escaped(reason: str) -> str:
    """What is wrong, without the ways past it."""
    return reason.partition("; ")[0].replace("|", r"\|").replace("_", r"\_").replace("*", r"\*")


def line(row: dict[str, Any]) -> str:
    error = f"{max(row['errors']):.0e}" if "errors" in row else row["status"]
    passes = f"{row['passes']:.1f}" if "passes" in row else ""
    name = row["name"] + r"\*" * row.get("before", False) + "†" * ("rounding" in row)
    return f"| {name} | {row.get('parameters', 0) / 1e6:.1f} | {row.get('side', '')} | {error} | {passes} |\n"


def named(row: dict[str, Any]) -> str:
    return row["name"]


def recall() -> dict[tuple[str, str], dict[str, Any]]:
    """The newest row of each network."""
    text = ROWS.read_text(encoding="utf-8") if ROWS.exists() else ""
    rows = map(json.loads, text.splitlines())
    return {(row["library"], row["name"]): row for row in rows}


def main() -> None:
    """Measures what is not done yet, then writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks to measure; all if none is named")
    parser.add_argument("--library", choices=LIBRARIES, action="append", help="only of these")
    parser.add_argument("--again", action="store_true", help="also what was measured and not taken")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no network after so many")
    parser.add_argument("--each", type=float, default=LONGEST, help="minutes that one network may take")
    options, done, end = parser.parse_args(), recall(), time.monotonic()
    end += 60 * options.minutes
    for library in options.library or LIBRARIES:
        try:
            versions = {"version": version(library), "torch": version("torch"), "date": str(date.today())}
            builders = {"torchvision": of_torchvision, "timm": of_timm, "transformers": of_transformers}[library]()
        except (PackageNotFoundError, ImportError):
            continue
        for name, build in builders.items():
            known = done.get((library, name))
            stale = (
                known is None
                or known.get("before")
                or options.again
                and known["status"] not in ("taken", "no classifier")
            )
            if (name in options.names or (stale and not options.names)) and time.monotonic() < end:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    row = {
                        "library": library,
                        "name": name,
                        **versions,
                        **measure(build, passes=library != "transformers", minutes=options.each),
                    }
                print(json.dumps(row), flush=True)
                with ROWS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    done = recall()  # with what others have appended meanwhile
    ROWS.write_text("".join(json.dumps(row) + "\n" for _, row in sorted(done.items())), encoding="utf-8")
    PAGE.write_text(page([done[key] for key in sorted(done)]), encoding="utf-8")


if __name__ == "__main__":
    main()
