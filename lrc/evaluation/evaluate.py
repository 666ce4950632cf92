"""The evaluation: attacks of every kind on the same images, and whether what they find can be trusted."""

import json
import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from rich.progress import track
from torch import Generator, Tensor, nn

from lrc.attacks.autoattack import Verdicts
from lrc.attacks.common import attacked, check
from lrc.attacks.journal import Journal, sound
from lrc.attacks.rng import new_seed
from lrc.attacks.threat_model import ball
from lrc.data import Images
from lrc.evaluation.accuracy import answers, device_of
from lrc.evaluation.choice import Attack, accepted, choose, resumes
from lrc.evaluation.counting import Cost, counting
from lrc.evaluation.ledger import Judged, Ledger
from lrc.evaluation.masking import masking_flags
from lrc.evaluation.outcomes import Flag, Outcome
from lrc.evaluation.report import CLEAN, Report
from lrc.evaluation.trial import check_surrogate
from lrc.utils.errors import InputError
from lrc.utils.files import write_text
from lrc.utils.hashes import described, fingerprint

STRANGE = ".*NaN or infinite logits"  # the warning of an attack: here the report says it


def evaluate(
    model: nn.Module,
    data: Images,
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
) -> Report:
    """Accuracy as it is and under each attack, what the attacks cost, and signs that they were fended off by masking.

    Only images that are classified rightly are attacked; the others count as fooled. So do images that give NaN or
    infinite logits, and the report counts them.

    Args:
        model: images in [0, 1] to logits, one for each class of the data; run in eval mode, and left as it was.
        data: labelled images; they go to the device of the model batch by batch.
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
            Attacks of your own are told apart by their names and options (`lrc.utils.hashes.described`).
        masking: look for signs of masking (`lrc.evaluation.masking_flags`) too.
        surrogate: another network for the same classes, from which examples are transferred when looking for them.
        progress: show a progress bar for each attack.

    Raises:
        InputError: no images, other classes than the network's, an unknown attack or norm, an attack that leaves the
            ball by more than rounding, a surrogate that does not fit, or a folder `out` that holds another run or
            damaged files.

    >>> x = torch.full((2, 3, 4, 4), 128, dtype=torch.uint8)
    >>> x[0, 0], x[1, 0] = 130, 150  # a little and clearly redder than green and blue
    >>> data = Images(x, torch.tensor([0, 0]), ("red", "green", "blue"))
    >>> model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())  # the mean of each channel: the brightest colour wins
    >>> report = evaluate(model, data, attacks="pgd", eps=4 / 255, masking=False)
    >>> report
    Report(2 images, linf eps 0.01569: clean 100.0%, pgd 50.0%, worst case 50.0%; flags: ...)
    >>> report.accuracy("pgd").interval[1] < 1, report.outcomes["pgd"].cost.backward
    (True, 20)
    """
    if not len(data) or batch_size < 1:
        raise InputError(f"{len(data)} images in batches of {batch_size}: nothing to evaluate, give at least 1 of both")
    chosen = choose(attacks, eps=eps, norm=norm)
    check(data.float([0]), data.y[:1], eps, norm)  # what is wrong is named before anything runs
    ball(data.float([0]), eps, norm)
    if masking and surrogate is not None:
        check_surrogate(surrogate, model, data)
    run = _Run(model, data, eps, norm, batch_size, None if out is None else Path(out), progress)
    report = _begin(run, generator)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=STRANGE)
        for name, attack in ({CLEAN: _as_it_is} | chosen).items():
            outcome = _outcome(run, name, attack, report=report)
            report = replace(report, outcomes=report.outcomes | {name: outcome})
        if masking:
            report = replace(report, flags=_flags(run, report, surrogate))
    if run.out is not None:
        write_text(run.out / "report.json", report.to_json())
    return report


@dataclass(frozen=True)
class _Run:
    """What all attacks of an evaluation share."""

    model: nn.Module
    data: Images
    eps: float
    norm: str
    batch_size: int
    out: Path | None
    progress: bool

    @property
    def device(self) -> torch.device:
        return device_of(self.model, self.data)


def _begin(run: _Run, generator: Generator | None) -> Report:
    """The report as far as it is known before any attack."""
    images, weights = run.data.digest(), fingerprint(run.model)
    seed = None if generator is None else new_seed(generator)
    if run.out is not None:
        identity = {"eps": run.eps, "norm": run.norm, "images": images, "model": weights}
        seed = Journal(run.out).begin(identity, seed=seed)
    level = run.data.hierarchy.levels[0] if run.data.hierarchy else None
    return Report(
        classes=run.data.classes,
        labels=tuple(run.data.y.tolist()),
        outcomes={},
        eps=run.eps,
        norm=run.norm,
        seed=new_seed() if seed is None else seed,
        images=images,
        model=weights,
        superclasses=level.names if level else (),
        superclass_of=level.of if level else (),
        versions={"torch": torch.__version__.split("+")[0], "device": run.device.type},
    )


def _outcome(run: _Run, name: str, attack: Attack, *, report: Report) -> Outcome:
    """What the attack makes of the images that are right as they are, or for "clean" of all."""
    everything = torch.arange(len(report))
    rows = everything if name == CLEAN else everything[report.right(CLEAN)]
    seed = (report.seed + zlib.crc32(name.encode())) % 2**63
    ledger = Ledger.of(run.out, name, {"attack": described(attack)}, seed=seed)
    left = ledger.left(rows)
    chunks = left.split(max(len(left), 1) if resumes(attack) else run.batch_size) if len(left) else ()
    for chunk in track(chunks, description=name, disable=not run.progress or resumes(attack)):
        ledger.add(_judged(run, attack, chunk, seed=seed, folder=ledger.folder))
    said = everything if name == CLEAN else report.said(CLEAN)
    for batch in ledger.batches:
        said[batch.rows] = batch.said
    return Outcome(described(attack), tuple(said.tolist()), sum((b.cost for b in ledger.batches), Cost()))


def _judged(run: _Run, attack: Attack, rows: Int64[Tensor, " n"], *, seed: int, folder: Path | None) -> Judged:
    """Attacks some images, and asks the model what it says of the result."""
    options = {"eps": run.eps, "norm": run.norm, "generator": Generator().manual_seed(seed)}
    x, y = run.data.float(rows), run.data.y[rows.to(run.data.y.device)]
    path = None
    if resumes(attack):  # it goes through all images by itself, and keeps what it has finished
        options |= {"batch_size": run.batch_size, "progress": run.progress}
        options |= {} if folder is None else {"out": folder / "parts"}
        path = None if folder is None else folder / "cost.json"
    else:
        x, y = x.to(run.device), y.to(run.device)
    with counting(run.model, path) as meter:
        found = attack(run.model, x, y, **accepted(attack, options))
        said = _said(run, x, y, found, name=described(attack))
        cost = meter.cost
    return Judged(rows, said, torch.tensor(astuple(cost), dtype=torch.float64))


def _said(run: _Run, x: Tensor, y: Tensor, found: Any, *, name: str) -> Int64[Tensor, " n"]:
    """The class that the model says of each image found; -1 where its logits are not finite."""
    x_adv = found.x_adv if isinstance(found, Verdicts) else found
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        raise InputError(f"{name} gave {getattr(x_adv, 'shape', type(x_adv))}, not images {tuple(x.shape)}")
    said = []
    for part in torch.arange(len(x), device=x.device).split(run.batch_size):
        a, b, labels = (t[part].to(run.device) for t in (x, x_adv, y))
        b = ball(a, run.eps, run.norm).accept(b, name=name)
        with attacked(run.model, a, labels, eps=run.eps, norm=run.norm) as (victim, _, labels):
            logits = victim.logits(b)
        if logits.shape[1] != len(run.data.classes):
            raise InputError(f"the network has {logits.shape[1]} classes, the data {len(run.data.classes)}")
        if isinstance(found, Verdicts):  # a point on the boundary may look right in another batch: then the runner-up
            doubt = found.fooled[part].to(run.device) & (logits.argmax(1) == labels)
            logits[doubt, labels[doubt]] = -torch.finfo(logits.dtype).max
        said.append(answers(logits).cpu())
    return torch.cat(said)


def _as_it_is(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x


def _flags(run: _Run, report: Report, surrogate: nn.Module | None) -> tuple[Flag, ...] | None:
    """The signs of masking, on images that are right as they are; kept beside the attacks."""
    name = "masking" if surrogate is None else f"masking-{fingerprint(surrogate)[:8]}"
    path = None if run.out is None else run.out / f"{name}.json"
    if path is not None and path.exists():
        return sound(path, _kept)
    flags = masking_flags(
        run.model,
        run.data.subset(report.right(CLEAN)),
        eps=run.eps,
        norm=run.norm,
        surrogate=surrogate,
        batch_size=run.batch_size,
        generator=Generator().manual_seed(report.seed % 2**63),
    )
    if path is not None and flags is not None:
        write_text(path, json.dumps([asdict(flag) for flag in flags], indent=1, allow_nan=False) + "\n")
    return flags


def _kept(path: Path) -> tuple[Flag, ...]:
    return tuple(Flag(**flag) for flag in json.loads(path.read_text()))
