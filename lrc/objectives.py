"""Training objectives: one function a defence, from a model and a batch to the loss that a step lowers."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from lrc.attacks import pgd

__all__ = ["Objective", "adversarial", "standard"]


Objective = Callable[..., Tensor]
"""`f(model, x, y, *, generator) -> loss`, images in [0, 1]: one of these, its options fixed by `functools.partial`."""


def standard(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, " n"],
    *,
    generator: Generator | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy on the images as they are."""
    return F.cross_entropy(model(x).float(), y)


def adversarial(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, " n"],
    *,
    eps: float = 8 / 255,
    steps: int = 10,
    step: float | None = 0.007,
    generator: Generator | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy on PGD examples of the images, made in eval mode: ``min_w max_{|d| <= eps} CE(f_w(x + d), y)``.

    Args:
        eps, steps, step: of the attack (Linf, random start); the paper's by default.
        generator: of the random start.

    Source: Madry et al. (2018), equation 2.1; step and eval mode as in the paper's official code.
    """
    examples = pgd(model, x, y, eps=eps, steps=steps, step=step, generator=generator)
    return F.cross_entropy(model(examples).float(), y)
