"""What an attack makes large: functions of logits and labels, one value an image."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from lrc.utils.checks import MISTAKES, check_choice, first_line
from lrc.utils.errors import InputError
from lrc.utils.tensors import Goals, Labels, Logits, Mask, PerImage

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (n, classes) and labels (n,) to one value an image (n,), which the attack makes large.

In a targeted attack the labels are pairs (n, 2): the true label and the target."""

TINY = 1e-12


def cross_entropy(logits: Logits, y: Labels) -> PerImage:
    """-log p_y."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Logits, y: Labels) -> PerImage:
    """max_{k != y} z_k - z_y: positive where the image is misclassified (Carlini & Wagner 2017, f6 without floor)."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - pick(logits, y)


def dlr(logits: Logits, y: Labels) -> PerImage:
    """The difference of logits ratio, (max_{k != y} z_k - z_y) / (z_1st - z_3rd): no scale or shift alters it.

    With two classes there is no third logit: the margin then.

    Source: Croce & Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks* (2020), equation 6.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    first, _, third = logits.topk(3, dim=1).values.unbind(1)
    return margin(logits, y) / (first - third + TINY)


def targeted_cross_entropy(logits: Logits, y: Int[Tensor, "n 2"]) -> PerImage:
    """log p_target."""
    return -F.cross_entropy(logits, y[:, 1], reduction="none")


def targeted_margin(logits: Logits, y: Int[Tensor, "n 2"]) -> PerImage:
    """z_target - max_{k != target} z_k: positive where the target is what the model says."""
    return -margin(logits, y[:, 1])


def targeted_dlr(logits: Logits, y: Int[Tensor, "n 2"]) -> PerImage:
    """(z_target - z_y) / (z_1st - (z_3rd + z_4th) / 2); with fewer than four classes z_target - z_y.

    Source: Croce & Hein (2020), equation 7.
    """
    gain = pick(logits, y[:, 1]) - pick(logits, y[:, 0])
    if logits.shape[1] < 4:
        return gain
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(1)
    return gain / (first - (third + fourth) / 2 + TINY)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
TARGETED: dict[str, Loss] = {"ce": targeted_cross_entropy, "margin": targeted_margin, "dlr": targeted_dlr}


def loss_function(loss: str | Loss, *, targeted: bool = False) -> Loss:
    """The loss called `loss`; or `loss` itself where it is a function, with an eye on what it gives.

    Raises:
        InputError: there is no loss of that name; and when it is called, a function of one's own that fails or gives
            something else than one value an image.
    """
    if callable(loss):
        return partial(_watched, loss)
    check_choice("loss", loss, LOSSES)
    return TARGETED[loss] if targeted else LOSSES[loss]


def _watched(loss: Loss, logits: Logits, y: Goals) -> PerImage:
    try:
        values = loss(logits, y)
    except MISTAKES as error:
        raise InputError(f"the loss fails on logits {tuple(logits.shape)}: {first_line(error)}") from error
    if not isinstance(values, Tensor) or values.shape != y.shape[:1]:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f'the loss must give one value an image, ({len(y)},), not {shape}: reduction="none"')
    return values


def pick(logits: Logits, y: Labels) -> PerImage:
    """The logit of each image's class y."""
    return logits.gather(1, y[:, None]).squeeze(1)


def fooled(logits: Logits, y: Goals) -> Mask:
    """Whether an attack has what it wants: another class than y (targeted: the target), or logits not finite."""
    predicted = logits.argmax(1)
    wanted = predicted != y if y.dim() == 1 else predicted == y[:, 1]
    return wanted | ~logits.isfinite().all(1)


def lead(logits: Logits, y: Goals) -> PerImage:
    """The lead of what an attack wants: the best wrong class over y, the target over the rest; inf if not finite."""
    ahead = margin(logits, y) if y.dim() == 1 else targeted_margin(logits, y)
    return torch.where(logits.isfinite().all(1), ahead, torch.inf)


def true_label(y: Goals) -> Labels:
    """The label of each image, of labels or of pairs of label and target."""
    return y if y.dim() == 1 else y[:, 0]


def likely_targets(logits: Logits, y: Labels, *, count: int) -> Int[Tensor, "n targets"]:
    """The most likely wrong classes, the likeliest first: `count` of them, or all there are if fewer."""
    others = logits.nan_to_num().scatter(1, y[:, None], -torch.inf)
    return others.argsort(1, descending=True)[:, : min(count, logits.shape[1] - 1)]
