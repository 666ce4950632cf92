"""An attack for networks that show signs of masking: what usually masks gradients does not stop it."""

from typing import Any, no_type_check

import torch
from torch import Generator, Tensor, nn
from torch.overrides import TorchFunctionMode

from lrc.attacks import pgd
from lrc.utils.tensors import Labels, Pixels

__all__ = ["AROUND", "around_masking"]

AROUND = "around masking"
"""What reports call the attack."""

STEPS = 40
ROUNDINGS = {
    torch.round, torch.floor, torch.ceil, torch.trunc, torch.fix,
    Tensor.round, Tensor.floor, Tensor.ceil, Tensor.trunc, Tensor.fix,
}  # fmt: skip


class _PassedThrough(TorchFunctionMode):
    """Roundings with the gradient of what is rounded, in the place of zero."""

    @no_type_check  # called for each operation
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return args[0] + (result - args[0]).detach() if func in ROUNDINGS else result


def around_masking(
    model: nn.Module, x: Pixels, y: Labels, *, eps: float, norm: str = "linf", generator: Generator | None = None
) -> Pixels:
    """PGD that roundings do not stop, nor logits far apart: these have no scale in its loss, the margin.

    Args:
        model, x, y, eps, norm, generator: as in `lrc.attacks.pgd`.

    Raises:
        InputError: as `lrc.attacks.pgd`.

    Source: Athalye et al., *Obfuscated gradients give a false sense of security* (2018), section 4.1.1 (the
    straight-through estimator); 40 steps of a quarter of the radius.
    """
    with _PassedThrough():
        return pgd(model, x, y, eps=eps, norm=norm, steps=STEPS, step=eps / 4, loss="margin", generator=generator)
