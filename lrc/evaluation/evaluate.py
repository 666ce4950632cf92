"""The evaluation: attacks of every kind on the same images, and whether what they find can be trusted."""

import os
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from rich.console import Console
from rich.progress import track
from torch import Generator, Tensor, nn

from lrc.attacks import autoattack
from lrc.attacks.autoattack import STRANGE, Attack, as_it_is, attempt, cascade, part_seed, searching
from lrc.attacks.common import check
from lrc.attacks.rng import new_seed
from lrc.attacks.threat_model import ball
from lrc.data import Images, as_images
from lrc.evaluation.accuracy import check_classes, check_data, device_of, logits, predictions
from lrc.evaluation.masking import check_surrogate, masking_flags
from lrc.evaluation.registry import choose
from lrc.evaluation.report import CLEAN, Cost, Flag, Report, Result
from lrc.evaluation.store import ANSWERS, Batch, Store
from lrc.utils.checks import check_network, check_radius, explained
from lrc.utils.files import locked, write_text
from lrc.utils.hashes import described, fingerprint, probe_answers
from lrc.utils.networks import check_independent, untouched
from lrc.utils.processes import Fabric, first_of, gathered, place


def evaluate(
    model: nn.Module,
    data: Any,
    *,
    attacks: str | Sequence[str] | Mapping[str, Attack] = ("pgd", "autoattack"),
    eps: float = 8 / 255,
    norm: str = "linf",
    batch_size: int = 250,
    generator: Generator | None = None,
    out: str | os.PathLike[str] | None = None,
    masking: bool = True,
    surrogate: nn.Module | None = None,
    progress: bool = False,
    precision: str = "float32",
    fabric: Fabric | None = None,
) -> Report:
    """Accuracy as it is and under each attack, what the attacks cost, and signs that they were fended off by masking.

    Only images that are classified rightly are attacked; the others count as fooled. So do images that give NaN or
    infinite logits, and the report counts them.

    Args:
        model: images in [0, 1] to logits, one for each class of the data; run in eval mode, and left as it was.
        data: labelled images, which go to the device of the model batch by batch; or a DataLoader, a dataset, or
            (x, y): see `lrc.data.as_images`.
        attacks: names ("fgsm", "pgd", "pgd-margin", "mifgsm", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "cw",
            "square", "nes", "nattack", "autoattack"); or functions by names of your own, called as
            `attack(model, x, y, eps=..., norm=..., generator=...)`, less the options that they do not have and those
            that `functools.partial` fixed in them.
        eps: radius of the ball, in units of a pixel in [0, 1].
        norm: "linf" or "l2".
        batch_size: images at a time. It changes no verdict, save by rounding.
        generator: of the attacks' random choices; each image's depend on it, the attack's name and the image alone.
        out: folder for what is finished. A killed run loses a batch at most, and goes on when called again with the
            same model, images, eps, norm and generator; more attacks can be added. The report ends in `report.json`.
            Models are told apart by all that they hold and by their answers to a few images, attacks of your own by
            their names and options (`lrc.utils.hashes`).
        masking: look for signs of masking (`lrc.evaluation.masking_flags`) too.
        surrogate: another network for the same classes, from which examples are transferred when looking for them.
        progress: show a progress bar for each attack, or part of one.
        precision: of the search, "float32" or "bf16", for each of the attacks that has that option;
            verdicts, and the look for masking, are in float32 always.
        fabric: processes, each of which attacks its share of the images: `lrc.utils.processes.join`. All call this
            function alike, and get one report; the first looks for signs of masking. How many there are changes no
            verdict, save by rounding, also where a run goes on with more or fewer.

    Raises:
        InputError: no images, other classes than the network's, an unknown attack or norm, an attack that leaves the
            ball by more than rounding, a surrogate that does not fit, or a folder `out` that holds another run or
            damaged files, cannot be written, or is another process' at the moment.

    >>> x = torch.full((2, 3, 4, 4), 128, dtype=torch.uint8)
    >>> x[0, 0], x[1, 0] = 130, 150  # a little and clearly redder than green and blue
    >>> data = Images(x, torch.tensor([0, 0]), ("red", "green", "blue"))
    >>> model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())  # the mean of each channel: the brightest colour wins
    >>> report = evaluate(model, data, attacks="pgd", eps=4 / 255, masking=False)
    >>> report
    Report(2 images, linf eps 0.01569: clean 100.0%, pgd 50.0%, worst case 50.0%; flags: ...)
    >>> report.accuracy("pgd").interval[1] < 1, report.results["pgd"].cost.backward
    (True, 20)
    """
    check_network(model)
    data = as_images(data, count=lambda some: logits(model, some.subset(1)).shape[1])
    batch_size = check_data(model, data, batch_size=batch_size, generator=generator)
    rank, _ = place(fabric)
    if isinstance(model, torch.jit.ScriptModule):  # which takes no hook to count by
        model = nn.Sequential(model)
    first = data.float([0])
    check_radius(eps, norm, first)  # what is wrong is named before anything runs
    chosen = choose(attacks, eps=eps, norm=norm)
    check(first, data.y[:1], eps, norm)
    with untouched(model), explained(model, first):
        check_independent(model, first.to(device_of(model, data)))
    if masking and surrogate is not None:
        check_surrogate(surrogate, model, data)
    folder = None if out is None else Path(out)
    with nullcontext() if folder is None or rank else locked(folder):
        run = _begin(model, data, eps, norm, batch_size, folder, generator, progress, precision, fabric)
        report = _report(run)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=STRANGE)  # the report says it
            for name, attack in ({CLEAN: as_it_is} | chosen).items():
                report = replace(report, results=report.results | {name: _result(run, name, attack, report)})
            if masking:
                report = replace(report, flags=first_of(fabric, lambda: _flags(run, report, surrogate)))
        if folder is not None and rank == 0:
            write_text(folder / "report.json", report.to_json())
    return report


@dataclass(frozen=True)
class _Run:
    """What all attacks of an evaluation share."""

    model: nn.Module
    data: Images
    eps: float
    norm: str
    batch_size: int
    progress: bool
    fabric: Fabric | None
    identity: dict[str, Any]
    store: Store


def _begin(
    model: nn.Module, data: Images, eps: float, norm: str, batch_size: int, out: Path | None,
    generator: Generator | None, progress: bool, precision: str, fabric: Fabric | None,
) -> _Run:  # fmt: skip
    """Opens the store, where the run may have been begun before."""
    identity: dict[str, Any] = {"eps": eps, "norm": norm, "images": data.digest(), "model": fingerprint(model)}
    identity |= searching(precision)
    seed = None if generator is None else new_seed(generator)
    told: dict[str, Any] = {}
    if out is not None:  # only then there may be another network to tell this one from
        with untouched(model):
            told = {ANSWERS: probe_answers(model, data.x.shape[1:], device=device_of(model, data))}
    store = first_of(fabric, lambda: Store.of(out, identity | told, seed=seed))
    return _Run(model, data, eps, norm, batch_size, progress, fabric, identity, store)


def _report(run: _Run) -> Report:
    """The report as far as it is known before any attack."""
    level = run.data.hierarchy.levels[0] if run.data.hierarchy else None
    return Report(
        classes=run.data.classes,
        labels=tuple(run.data.y.tolist()),
        results={},
        seed=run.store.seed,
        superclasses=level.names if level else (),
        superclass_of=level.of if level else (),
        versions={"torch": torch.__version__.split("+")[0], "device": device_of(run.model, run.data).type},
        **run.identity,
    )


def _result(run: _Run, name: str, attack: Attack, report: Report) -> Result:
    """What the attack makes of the images that are right as they are, part by part, or for "clean" of all.

    A part gets what no part before it fooled.
    """
    call, labels = described(attack), torch.tensor(report.labels)
    predicted = labels.clone() if name == CLEAN else report.predictions(CLEAN)
    kept, cost = first_of(run.fabric, lambda: run.store.read(name, call)), Cost()
    rank, processes = place(run.fabric)
    for part in _parts(name, attack, report):
        left = predicted == labels
        for batch in kept:
            if batch.part == part.name:
                rows = torch.tensor(batch.rows)
                predicted[rows], left[rows], cost = torch.tensor(batch.predictions), False, cost + batch.cost
        own, found = left.nonzero()[rank::processes, 0], []
        title = name if part.name == name else f"{name}: {part.name}"
        chunks = own.split(run.batch_size) if len(own) else ()
        hidden = not run.progress or rank > 0
        for rows in track(chunks, title, disable=hidden, console=Console(stderr=True)):
            found.append(_batch(run, part, rows))
            run.store.add(name, call, found[-1])
        for batch in gathered(found, run.fabric):
            predicted[list(batch.rows)], cost = torch.tensor(batch.predictions), cost + batch.cost
    return Result(call, tuple(predicted.tolist()), cost)


@dataclass(frozen=True)
class _Part:
    """One attack of a cascade, with what it is called with."""

    name: str
    attack: Attack
    seed: int
    options: dict[str, Any]


def _parts(name: str, attack: Attack, report: Report) -> list[_Part]:
    """The attacks of which one consists: those of AutoAttack, or itself alone."""
    seed = (report.seed + zlib.crc32(name.encode())) % 2**63
    options: dict[str, Any] = {"eps": report.eps, "norm": report.norm} | searching(report.precision)
    if getattr(attack, "func", attack) is not autoattack:
        return [_Part(name, attack, seed, options)]
    fixed = getattr(attack, "keywords", {})
    options |= {key: fixed[key] for key in ("eps", "norm", "precision") if key in fixed}
    parts, own = cascade(fixed.get("version", "standard"), options["norm"]), new_seed(Generator().manual_seed(seed))
    return [
        _Part(part, each, part_seed(own, number), options)
        for number, (part, each) in enumerate(parts.items(), start=1)  # 0 is no attack
    ]


def _batch(run: _Run, part: _Part, rows: Int64[Tensor, " n"]) -> Batch:
    """Attacks some images, and asks the model what it says of the result."""
    device = device_of(run.model, run.data)
    x, y = run.data.float(rows).to(device), run.data.y[rows.to(run.data.y.device)].to(device)
    options = part.options | {"generator": Generator().manual_seed(part.seed)}
    with counting(run.model) as counted:
        _, z = attempt(run.model, x, y, part.attack, options, within=ball(x, run.eps, run.norm))
    check_classes(z, run.data)
    return Batch(part.name, tuple(rows.tolist()), tuple(predictions(z).tolist()), counted[0])


@contextmanager
def counting(model: nn.Module) -> Iterator[list[Cost]]:
    """Counts the passes through the model, by a forward hook that changes nothing and is gone on leaving.

    What goes through a copy of the model is not counted: LinBP and SGM rewrite one.

    Yields:
        A list whose one entry is what was spent so far, and on leaving in all.
    """
    spent, began = [Cost()], time.perf_counter()

    def returned(gradient: Tensor) -> None:
        spent[0] += Cost(backward=1)

    def seen(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        spent[0] += Cost(queries=len(inputs[0]), forward=1)
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(returned)

    hook = model.register_forward_hook(seen)
    try:
        yield spent
    finally:
        hook.remove()
        spent[0] += Cost(seconds=time.perf_counter() - began)


def _flags(run: _Run, report: Report, surrogate: nn.Module | None) -> tuple[Flag, ...] | None:
    """The signs of masking, on images that are right as they are; kept beside the attacks."""
    name = "masking" if surrogate is None else f"masking-{fingerprint(surrogate)[:8]}"
    if (kept := run.store.flags(name)) is not None:
        return kept
    flags = masking_flags(
        run.model,
        run.data.subset(report.right(CLEAN)),
        eps=run.eps,
        norm=run.norm,
        surrogate=surrogate,
        batch_size=run.batch_size,
        generator=Generator().manual_seed(report.seed % 2**63),
    )
    if flags is not None:
        run.store.keep_flags(name, flags)
    return flags
