"""AutoAttack: four attacks of different kinds, one after the other, on whatever is not fooled yet."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from lrc.attacks.apgd import apgd
from lrc.attacks.common import attacked, check
from lrc.attacks.fab import fab
from lrc.attacks.losses import fooled
from lrc.attacks.precision import check_precision
from lrc.attacks.rng import new_seed
from lrc.attacks.square import square
from lrc.attacks.threat_model import Ball, ball
from lrc.utils.checks import check_generator, check_network, check_whole, explained
from lrc.utils.errors import InputError
from lrc.utils.hashes import described
from lrc.utils.networks import check_independent, untouched
from lrc.utils.tensors import Labels, Logits, Mask, Pixels

STRANGE = ".*NaN or infinite logits"  # the warning of one attack; who runs several says it once, for all


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
    nonfinite: Mask
    parts: tuple[str, ...]

    @property
    def fooled(self) -> Mask:
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


Attack = Callable[..., Tensor | Verdicts]
"""`attack(model, x, y, ...) -> x_adv`, its options fixed by `functools.partial`."""


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
    x: Pixels,
    y: Labels,
    *,
    eps: float,
    norm: str = "linf",
    version: str | Mapping[str, Attack] = "standard",
    batch_size: int = 250,
    generator: Generator | None = None,
    precision: str = "float32",
) -> Verdicts:
    """Whether each image can be made to fool the model within eps, by an ensemble of attacks with nothing to tune.

    The standard version: APGD-CE, targeted APGD-DLR (9 targets), targeted FAB (9 targets), each of 100 steps, and
    Square with 5,000 queries. An image goes to the next part only while nothing has fooled it, and within a part its
    search ends when something does. With fewer than four classes the DLR loss gives way to a margin
    (`lrc.attacks.losses`). `lrc.evaluate` runs the same parts, keeps what is finished, and goes on after a kill.

    Args:
        model, x, y, eps, norm: as in `lrc.attacks.pgd`. The images may be on another device than the model: batch by
            batch they go there.
        version: "standard"; or attacks of your own by name, in order, their options fixed by `functools.partial`.
        batch_size: images attacked at once. It changes no verdict, save by rounding.
        generator: of the attacks' random choices; each image's depend on it and on the image alone.
        precision: as in `lrc.attacks.pgd`, for each of the attacks that has it.

    Returns:
        `Verdicts`. Each says what the model answers when asked again about the image returned.

    Raises:
        InputError: as in `lrc.attacks.pgd`; an unknown version, batch_size < 1, a network whose answer to an image
            depends on the others in its batch, or an attack of your own that leaves the ball by more than rounding.

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
    check_network(model)
    check(x, y, eps, norm)
    batch_size = min(check_whole("batch_size", batch_size, 1), max(len(x), 1))
    x = x.detach()
    check_generator(generator)
    check_precision(precision)
    parts = {"clean": as_it_is} | cascade(version, norm)
    if version == "standard" and x.dim() != 4:
        raise InputError(f"the standard version needs images (n, c, h, w), not {tuple(x.shape)}")
    seed, device = new_seed(generator), next((t.device for t in (*model.parameters(), *model.buffers())), x.device)
    if len(x):
        first = x[:1].to(device)
        with untouched(model), explained(model, first):
            check_independent(model, first)
    x_adv, nonfinite = x.detach().clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    fooled_by: list[str | None] = [None] * len(x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=STRANGE)
        for number, (name, attack) in enumerate(parts.items()):
            left = torch.tensor([i for i, by in enumerate(fooled_by) if by is None], device=x.device)
            for rows in left.split(batch_size) if len(left) else ():
                a, b = x[rows].detach().to(device), y[rows.to(y.device)].to(device)
                own = Generator().manual_seed(part_seed(seed, number))
                options = {"eps": eps, "norm": norm, "generator": own} | searching(precision)
                found, logits = attempt(model, a, b, attack, options, within=ball(a, eps, norm))
                hit = fooled(logits, b.long()).to(x.device)
                x_adv[rows[hit]] = found.to(x)[hit]
                nonfinite[rows] = ~logits.isfinite().all(1).to(x.device)
                for row in rows[hit].tolist():
                    fooled_by[row] = name
    if nonfinite.any():
        message = f"{int(nonfinite.sum())} of {len(x)} images gave NaN or infinite logits; they count as fooled"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return Verdicts(x_adv, tuple(fooled_by), nonfinite, tuple(parts))


def cascade(version: str | Mapping[str, Attack], norm: str) -> dict[str, Attack]:
    """The attacks of a version of AutoAttack by name, in their order. Raises InputError: an unknown version."""
    if isinstance(version, Mapping):
        return dict(version)
    if version != "standard":
        raise InputError(f'no version is called {version!r}; there is "standard", or give attacks by name')
    return standard(norm)


def searching(precision: str) -> dict[str, str]:
    """The option of that name, if it is to be another than every attack's own.

    Raises InputError: an unknown precision.
    """
    return {"precision": precision} if check_precision(precision) else {}


def part_seed(seed: int, number: int) -> int:
    """Of the random choices of a part: the same for each of its batches."""
    return (seed + number) % 2**63


def attempt(
    model: nn.Module, x: Pixels, y: Labels, attack: Attack, options: Mapping[str, Any], *, within: Ball
) -> tuple[Pixels, Logits]:
    """What an attack, `called` so, makes of a batch, and what the model says of it, asked once.

    Raises InputError: the attack gives no such images, or leaves the ball by more than rounding.
    """
    x_adv = within.accept(called(attack, model, x, y, options), name=described(attack))
    with attacked(model, x, y, eps=within.eps, norm=within.norm) as (victim, _, _):
        return x_adv, victim.verdict(x_adv)


def called(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, offered: Mapping[str, Any]) -> Tensor:
    """The images of an attack, called with those of the options that it has, and that no `functools.partial` fixed.

    Raises InputError: it is no function with such options, or gives something else than images like x.
    """
    try:
        signature, fixed = inspect.signature(attack), getattr(attack, "keywords", {})
        anything = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        given = {k: v for k, v in offered.items() if (anything or k in signature.parameters) and k not in fixed}
        signature.bind(model, x, y, **given)
    except (TypeError, ValueError) as error:
        reason = error.__cause__ or error
        raise InputError(f"{described(attack)} cannot be called as an attack ({reason}): see its options") from error
    found = attack(model, x, y, **given)
    found = found.x_adv if isinstance(found, Verdicts) else found
    if not isinstance(found, Tensor) or found.shape != x.shape:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"{described(attack)} gave {what}, not images {tuple(x.shape)}")
    return found


def as_it_is(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """No attack at all."""
    return x
