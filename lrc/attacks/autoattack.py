"""AutoAttack: four attacks of different kinds, one after the other, on whatever is not fooled yet."""

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from rich.progress import track
from torch import Generator, Tensor, nn

from lrc.attacks.apgd import apgd
from lrc.attacks.common import attacked, check
from lrc.attacks.fab import fab
from lrc.attacks.journal import Batch, Journal
from lrc.attacks.losses import fooled
from lrc.attacks.rng import new_seed
from lrc.attacks.square import square
from lrc.attacks.threat_model import ball
from lrc.utils.errors import InputError
from lrc.utils.hashes import described, digest, fingerprint

Attack = Callable[..., Tensor]
"""`attack(model, x, y, *, eps, generator) -> x_adv`, its other options fixed by `functools.partial`."""


@dataclass(frozen=True)
class Verdicts:
    """What became of each image.

    Attributes:
        x_adv: the image that fools the model, or the image itself where none was found.
        fooled_by: the part that found it; "clean" where the image is misclassified as it is, None where it is robust.
        nonfinite: whether the logits at x_adv are NaN or infinite; such an image counts as fooled.
        parts: "clean" and the names of the attacks, in their order.
    """

    x_adv: Float[Tensor, "n ..."]
    fooled_by: tuple[str | None, ...]
    nonfinite: Bool[Tensor, "n"]
    parts: tuple[str, ...]

    @property
    def fooled(self) -> Bool[Tensor, "n"]:
        """Whether each image is fooled."""
        return torch.tensor([part is not None for part in self.fooled_by], dtype=torch.bool, device=self.x_adv.device)

    @property
    def accuracies(self) -> dict[str, float]:
        """Part of the images, in [0, 1], that is still classified rightly after each part, "clean" the first."""
        lost = [sum(name == part for name in self.fooled_by) for part in self.parts]
        count = max(len(self.fooled_by), 1)
        return {part: (count - sum(lost[: i + 1])) / count for i, part in enumerate(self.parts)}

    @property
    def clean_accuracy(self) -> float:
        """Part of the images, in [0, 1], that is classified rightly as it is."""
        return self.accuracies["clean"]

    @property
    def robust_accuracy(self) -> float:
        """Part of the images, in [0, 1], that no attack fooled."""
        return self.accuracies[self.parts[-1]]


def standard(norm: str) -> dict[str, Attack]:
    """The four parts of the standard version, with its budgets."""
    return {
        "apgd-ce": partial(apgd, loss="ce", steps=100, norm=norm),
        "apgd-t": partial(apgd, loss="dlr", targets=9, steps=100, norm=norm),
        "fab-t": partial(fab, targets=9, steps=100, norm=norm),
        "square": partial(square, queries=5000, horizon=10_000, norm=norm),
    }


def autoattack(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    y: Int[Tensor, "n"],
    *,
    eps: float,
    norm: str = "linf",
    version: str | Mapping[str, Attack] = "standard",
    batch_size: int = 250,
    generator: Generator | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Verdicts:
    """Whether each image can be made to fool the model within eps, by an ensemble of attacks with nothing to tune.

    The standard version: APGD-CE, targeted APGD-DLR (9 targets), targeted FAB (9 targets), each of 100 steps, and
    Square with 5,000 queries. An image goes to the next part only while nothing has fooled it, and within a part its
    search ends when something does. With fewer than four classes the DLR loss gives way to a margin
    (`lrc.attacks.losses`).

    Args:
        model, x, y, eps, norm: as in `lrc.attacks.pgd`. The images may be on another device than the model: batch by
            batch they go there.
        version: "standard"; or attacks of your own by name, in order, their options fixed by `functools.partial`.
        batch_size: images attacked at once. It changes no verdict, save by rounding.
        generator: of the attacks' random choices; each image's depend on it and on the image alone, and a resumed
            run's are those of an unbroken one.
        out: folder in which each finished batch is kept. A run that was killed goes on from there when called again
            with the same arguments, and a finished one gives its result at once. Attacks of your own are told apart by
            their names and options (`lrc.utils.hashes.described`).
        progress: show a progress bar for each part.

    Returns:
        `Verdicts`. Each says what the model answers when asked again about the image returned.

    Raises:
        InputError: as in `lrc.attacks.pgd`; an unknown version, batch_size < 1, an attack of your own that leaves the
            ball by more than rounding, or a folder `out` that holds another run or damaged files.

    Warns:
        RuntimeWarning: some images gave NaN or infinite logits; they count as fooled.

    Source: Croce & Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks* (2020), section 6.

    >>> model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())  # the mean of each channel: the brightest colour wins
    >>> x = torch.full((2, 3, 4, 4), 0.5)
    >>> x[0, 0], x[1, 0] = 0.51, 0.59
    >>> found = autoattack(model, x, torch.tensor([0, 0]), eps=0.02)
    >>> found.fooled_by, found.clean_accuracy, found.robust_accuracy
    (('apgd-ce', None), 1.0, 0.5)
    """
    check(x, y, eps, norm)
    parts = {"clean": _as_it_is} | _attacks(version, norm, x)
    if batch_size < 1:
        raise InputError(f"batch_size must be >= 1, not {batch_size}")
    seed = None if generator is None else new_seed(generator)
    journal = None if out is None else Journal(Path(out))
    if journal is not None:
        seed = journal.begin(_identity(model, x, y, eps, norm, parts), seed=seed)
    seed = new_seed() if seed is None else seed
    batches = [] if journal is None else journal.read()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the network gave NaN or infinite logits")
        for number, (name, attack) in enumerate(parts.items()):
            pending = _pending(batches, len(x), number)
            chunks = pending.split(batch_size) if len(pending) else ()
            for rows in track(chunks, description=name, disable=not progress):
                anew = Generator().manual_seed((seed + number) % 2**63)  # the same for each batch of a part
                seeded = partial(attack, eps=eps, generator=anew)
                batches.append(_judged(model, x, y, rows, part=number, eps=eps, norm=norm, attack=seeded))
                if journal is not None:
                    journal.write(len(batches), batches[-1])
    return _verdicts(x, batches, tuple(parts))


def _attacks(version: str | Mapping[str, Attack], norm: str, x: Tensor) -> dict[str, Attack]:
    if not isinstance(version, str):
        return dict(version)
    if version != "standard":
        raise InputError(f'no version is called {version!r}; there is "standard", or give attacks by name')
    if x.dim() != 4:
        raise InputError(f"the standard version needs images (n, c, h, w), not {tuple(x.shape)}")
    return standard(norm)


def _as_it_is(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    return x


def _identity(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: str, parts: Mapping[str, Attack]
) -> dict[str, Any]:
    """What makes a run this one and no other."""
    attacks = {name: described(attack) for name, attack in parts.items()}
    return {"eps": eps, "norm": norm, "attacks": attacks, "images": digest([x, y]), "model": fingerprint(model)}


def _pending(batches: list[Batch], count: int, part: int) -> Int[Tensor, "m"]:
    """Rows of the images that have been through all parts before this one, and that nothing has fooled."""
    reached, lost = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.bool)
    for batch in batches:
        reached[batch.rows] = batch.part + 1
        lost[batch.rows] |= batch.hit
    return ((reached == part) & ~lost).nonzero().squeeze(1)


def _judged(
    model: nn.Module, x: Tensor, y: Tensor, rows: Tensor, *, part: int, eps: float, norm: str, attack: Attack
) -> Batch:
    """One batch attacked, and what the model says about it."""
    device = next((p.device for p in model.parameters()), x.device)
    x, y = x[rows.to(x.device)].to(device), y[rows.to(y.device)].to(device)
    x_adv = ball(x, eps, norm).accept(attack(model, x, y), name=described(attack))
    with attacked(model, x, y, eps=eps, norm=norm) as (victim, _, labels):
        logits = victim.logits(x_adv)
    hit, nonfinite = fooled(logits, labels).cpu(), ~logits.isfinite().all(1).cpu()
    return Batch(torch.tensor(part), rows, hit, nonfinite, x_adv.cpu()[hit])


def _verdicts(x: Tensor, batches: list[Batch], parts: tuple[str, ...]) -> Verdicts:
    x_adv, nonfinite = x.detach().clone(), torch.zeros(len(x), dtype=torch.bool)
    by: list[str | None] = [None] * len(x)
    for batch in batches:
        rows = batch.rows[batch.hit]
        x_adv[rows.to(x.device)] = batch.x_adv.to(x)
        nonfinite[batch.rows] = batch.nonfinite
        for row in rows.tolist():
            by[row] = parts[int(batch.part)]
    if nonfinite.any():
        message = f"{int(nonfinite.sum())} of {len(x)} images gave NaN or infinite logits; they count as fooled"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return Verdicts(x_adv, tuple(by), nonfinite.to(x.device), parts)
