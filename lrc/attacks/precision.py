"""Searching in bfloat16: gradients of a network that is run in float32, and logits that only guide a search."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from lrc.utils.checks import check_choice

PRECISIONS = ("float32", "bf16")
HALF = torch.bfloat16


def check_precision(precision: str) -> bool:
    """Whether gradients are to be in bfloat16. Raises InputError: an unknown precision."""
    check_choice("precision", precision, PRECISIONS)
    return precision == "bf16"


class HalfBackward(TorchFunctionMode):
    """Convolutions and linear layers compute the gradient by their input in bfloat16, and all else as they do.

    Values stay those of float32 to the last bit, so what an attack decides by them (whether the loss rose, whether an
    image is fooled, how far a boundary is) does not know of the rounding. Weights must be frozen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rough = False

    @contextmanager
    def rough(self, device: torch.device) -> Iterator[None]:
        """Values in bfloat16 meanwhile too, but for layers on vectors: logits of eight bits would hide small steps."""
        self._rough = True
        try:
            with torch.autocast(device.type, HALF):
                yield
        finally:
            self._rough = False

    @no_type_check
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._rough and func is torch.nn.functional.linear and args[0].dim() == 2:  # the last layer, of features
            with torch.autocast(args[0].device.type, enabled=False):
                return func(args[0].float(), *args[1:], **kwargs)
        if func in (torch.conv2d, torch.nn.functional.linear) and len(args) > 1 and _applies(*args[:2]):
            if func is not torch.conv2d:
                return _Linear.apply(*args, *kwargs.values())
            if not any(isinstance(option, str) for option in (*args, *kwargs.values())):  # a padding by name
                return _conv2d(*args, **kwargs)
        return func(*args, **kwargs)


def _applies(x: Any, weight: Any) -> bool:
    plain = isinstance(x, Tensor) and isinstance(weight, Tensor) and x.dtype == torch.float32 and x.dim() > 1
    plain = plain and x.requires_grad and not weight.requires_grad and torch.is_grad_enabled()
    return plain and not torch.is_autocast_enabled(x.device.type)


def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    pairs = ([n] * 2 if isinstance(n, int) else list(n) for n in (stride, padding, dilation))
    return _Convolution.apply(x, weight, bias, *pairs, groups)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        ctx.weight, ctx.options, ctx.shape = weight, (stride, padding, dilation), x.shape
        ctx.groups, ctx.last = groups, x.is_contiguous(memory_format=torch.channels_last)
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "n d i j"]) -> tuple[Any, ...]:
        layout = torch.channels_last if ctx.last else torch.contiguous_format
        like = torch.empty(ctx.shape, dtype=HALF, device=gradient.device, memory_format=layout)  # only its shape counts
        half = gradient.to(HALF, memory_format=layout)
        found = torch.ops.aten.convolution_backward(
            half, like, ctx.weight.to(HALF), None, *ctx.options, False, [0, 0], ctx.groups, [True, False, False]
        )
        return found[0].to(gradient.dtype), *[None] * 6


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.weight = weight
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "*rows d"]) -> tuple[Any, ...]:
        return (gradient.to(HALF) @ ctx.weight.to(HALF)).to(gradient.dtype), None, None
