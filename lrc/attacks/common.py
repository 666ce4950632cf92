"""What all attacks share: the model untouched and watched, images checked, gradients by the image."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lrc.attacks.losses import Loss, fooled, margin
from lrc.attacks.precision import HALF, HalfBackward, check_precision
from lrc.linearization.folding import Folding, folding
from lrc.utils.checks import (
    check_images,
    check_labels,
    check_logits,
    check_network,
    check_number,
    check_radius,
    explained,
)
from lrc.utils.errors import InputError
from lrc.utils.networks import Asked, compiled, modules, untouched
from lrc.utils.tensors import Goals, Labels, Logits, Mask, PerImage, Pixels

ROUGH = 2**-5
"""Of the largest logit: by more than this bfloat16 seldom moves the lead of a class."""


class Victim(nn.Module):
    """The model under attack: images to logits in at least float32, with an eye on what comes out.

    A search runs it in a faster form, which gives the same logits but for rounding. Verdicts are the model's own.

    Args:
        model: images to logits (n, classes).
        highest: the largest label that there is.
        fast: its faster form, if it has one now.
        bf16: gradients are in bfloat16, and by `rounding`, where that is on, also the logits of `search`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        highest: int,
        fast: Folding | None = None,
        bf16: bool = False,
        rounding: HalfBackward | None = None,
    ) -> None:
        super().__init__()
        self.bf16, self.rounding = bf16, rounding
        self.model, self.highest, self.fast = model, highest, fast or Folding([])
        self.asked = Asked(model)
        self.finite: Tensor | None = None

    def forward(self, x: Pixels) -> Logits:
        if not len(x):  # which not every network takes
            return x.flatten(1).sum(1, keepdim=True).expand(-1, self.highest + 1)
        with explained(self.model, x):
            z = self.asked(x)
        if self.finite is None:
            z = check_logits(z, len(x))
            if self.highest >= z.shape[1]:
                raise InputError(f"label {self.highest} where the network has classes 0..{z.shape[1] - 1}")
            self.finite = torch.ones((), dtype=torch.bool, device=z.device)
        z = z if z.dtype == torch.float64 else z.float()
        self.finite &= z.detach().isfinite().all()
        return z

    @torch.no_grad()
    def logits(self, x: Pixels) -> Logits:
        """Logits without a gradient."""
        return self(x)

    @torch.no_grad()
    def search(self, x: Pixels, y: Labels, *, best: PerImage) -> tuple[PerImage, Mask]:
        """By how much a wrong class leads, as exact as was asked for, and which images fool the model itself.

        In bfloat16 the model is asked again where the lead is the best so far, and above 0 but for rounding.
        """
        if self.rounding is None:
            z = self(x)
            return margin(z, y), self.confirmed(fooled(z, y), x, y)
        with self.rounding.rough(x.device):
            z = self(x)
        lead = margin(z, y)
        return lead, self._fooling(~((lead < -ROUGH * z.abs().amax(1)) | (lead <= best)), x, y)

    @torch.no_grad()
    def verdict(self, x: Pixels) -> Logits:
        """Logits of the model itself; where the search is in bfloat16, those in float32 for certain."""
        exact = torch.autocast(x.device.type, enabled=False) if self.bf16 else nullcontext()
        with self.fast.undone(), exact:
            return self(x)

    def confirmed(self, hit: Mask, x: Pixels, y: Goals) -> Mask:
        """Those of the images with a hit that fool the model itself."""
        return self._fooling(hit, x, y) if self.fast else hit

    def _fooling(self, which: Mask, x: Pixels, y: Goals) -> Mask:
        """Those of the images with a mark that fool the model itself."""
        sure = which.clone()
        if which.any():
            sure[which] = fooled(self.verdict(x[which]), y[which])
        return sure


@contextmanager
def attacked(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    eps: float = 0.0,
    norm: str = "linf",
    target: Labels | None = None,
    dims: int | None = None,
    precision: str = "float32",
) -> Iterator[tuple[Victim, Tensor, Tensor]]:
    """The model, images and labels as attacks work on them: checked, untouched, laid out for speed.

    Arguments are as given to the attack; `dims` are the dimensions that its images must have.

    Yields:
        The model as a `Victim`, with batch norm folded where it can be; the images, detached, 4-dimensional ones on the
        CPU as channels-last, in which convolutions are up to five times faster; the labels (n,), or pairs of label and
        target (n, 2).

    Raises:
        InputError: as `check`; at the first logits, a label or target that is no class of the network; and where the
            network's own code fails, in one line.

    Warns:
        RuntimeWarning: on leaving, if logits were not finite: such an image counts as fooled.
    """
    check_network(model)
    half = check_precision(precision)
    check_images(x, dims=dims)
    check(x, y, eps, norm)
    labels = y.to(x.device, torch.long)
    if target is not None:
        check_labels(target, len(x), name="targets")
        labels = torch.stack([labels, target.to(x.device, torch.long)], 1)
    with torch.inference_mode(False), untouched(model):
        x = x.clone() if x.is_inference() else x.detach()
        if x.dim() == 4 and x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        highest, fast = int(labels.amax()) if len(labels) else 0, folding(model, x)
        mode = HalfBackward() if half and not any(map(compiled, modules(model))) else None
        victim = Victim(model, highest=highest, fast=fast, bf16=half, rounding=mode)
        with fast.folded(), mode or nullcontext():
            yield victim, x, labels
    if victim.finite is not None and not victim.finite:
        warnings.warn(
            "the network gave NaN or infinite logits; such images count as fooled", RuntimeWarning, stacklevel=4
        )


R = TypeVar("R", bound="Rows")


@dataclass(frozen=True)
class Rows:
    """Fields with one row an image, selected together: what an attack knows of the images that it still works on."""

    def __getitem__(self: R, rows: Tensor) -> R:
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))


def until_fooled(
    victim: Victim, x: Pixels, y: Labels, s: R, advance: Callable[[R, int], tuple[R, Tensor, Tensor]], *, turns: int
) -> Pixels:
    """The images that a search finds in so many turns. An image that is fooled, as it is or by then, leaves the search.

    Args:
        s: where the search stands, a row an image.
        advance: from this and the number of the turn to where it stands next, its images, and which of them fool.
    """
    found, row = x.clone(), (~fooled(victim.verdict(x), y)).nonzero().squeeze(1)
    s = s[row]
    for turn in range(turns):
        if not len(row):
            break
        s, z, hit = advance(s, turn)
        found[row] = z
        if hit.any():
            row, s = row[~hit], s[~hit]
    return found


def check(x: Pixels, y: Int[Tensor, "labels"], eps: float, norm: str) -> None:
    """Raises `InputError` for images, labels or a radius that no attack can use (`lrc.utils.checks`)."""
    check_images(x)
    check_labels(y, len(x))
    check_radius(eps, norm, x)


def step_length(step: float | None, eps: float, *, steps: int, times: float = 1.0) -> float:
    """The length of a step, if it is given; otherwise that with which so many steps make `times` eps.

    Raises InputError: the step is no finite number >= 0.
    """
    if step is not None:
        return check_number("step", step)
    return times * check_number("eps", eps) / max(steps, 1)


def ascent(
    victim: nn.Module, x: Pixels, y: Goals, *, loss: Loss, half: bool = False
) -> tuple[Pixels, PerImage, Logits]:
    """Gradient by x of each image's own loss, whatever else is in the batch; the losses; the logits.

    With `half` all three come from a network in bfloat16, for attacks that decide nothing by the losses. Where the
    logits do not depend on x in a way that can be differentiated the gradient is 0.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        with torch.autocast(x.device.type, HALF) if half else nullcontext():
            z = victim(x)
        values = loss(z if z.dtype == torch.float64 else z.float(), y)
    return pulled_back(victim, values, x), values.detach(), z.detach()


def pulled_back(victim: nn.Module, values: PerImage, x: Pixels, *, keep: bool = False) -> Pixels:
    """Gradient by x of the sum of the values, 0 where they do not depend on x; `keep` the graph for another."""
    if not values.requires_grad:
        return torch.zeros_like(x)
    with torch.enable_grad(), explained(victim, x):
        total = values.sum()
        return torch.autograd.grad(total, x, retain_graph=keep, allow_unused=True, materialize_grads=True)[0]


def input_gradient(model: nn.Module, x: Pixels, y: Goals, *, loss: Loss, half: bool = False) -> Pixels:
    """Gradient by x of the sum of the losses: each image's own gradient, whatever else is in the batch."""
    return ascent(model, x, y, loss=loss, half=half)[0]


def laid_out_like(x: Pixels, found: Pixels) -> Pixels:
    """A copy of `found` in memory as x is, so that attacks are free to choose what is fast."""
    return torch.empty_like(x).copy_(found.detach())
