"""Operations that are several in one, written out, so that each part has its rule."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from lrc.linearization import operations as ops
from lrc.linearization.surgery import Operation, Surgery


def write_out(surgery: Surgery) -> None:
    """Puts sums and products in the place of fused ones, and products in the place of squares."""
    for node in list(surgery.graph.nodes):
        written = WRITTEN.get(surgery.operation(node))
        if written is not None and surgery.rule(node) is None and node not in surgery.kept:
            new = written(partial(surgery.insert, node), *node.args, **node.kwargs)
            if new is not None:
                node.replace_all_uses_with(new)
                surgery.graph.erase_node(node)


Calls = Callable[..., Any]
"""Inserts the call of a function, with its arguments, in the place of a node."""


def _times(call: Calls, x: Any, factor: Any) -> Any:
    return x if isinstance(factor, int | float) and factor == 1 else call(operator.mul, x, factor)


def _power(call: Calls, input: Any, exponent: Any = 2) -> fx.Node | None:
    return call(operator.mul, input, input) if isinstance(exponent, int | float) and exponent == 2 else None


def _matrices(call: Calls, input: Any, *factors: Any, beta: Any = 1, alpha: Any = 1, **named: Any) -> fx.Node:
    """A sum with a product of two, whose names (`mat1` and `mat2`, for one) are in the order of the alphabet."""
    product = call(torch.matmul, *factors, *(named[name] for name in sorted(named)))
    return call(operator.add, _times(call, input, beta), _times(call, product, alpha))


def _addcmul(call: Calls, input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> fx.Node:
    return call(operator.add, input, _times(call, call(operator.mul, tensor1, tensor2), value))


def _lerp(call: Calls, input: Any, end: Any, weight: Any) -> fx.Node:
    return call(operator.add, input, call(operator.mul, call(operator.sub, end, input), weight))


WRITTEN: dict[Operation, Callable[..., fx.Node | None]] = {
    **dict.fromkeys(ops.POWERS, _power),
    **dict.fromkeys(ops.MATRIX_SUMS, _matrices),
    **dict.fromkeys((torch.addcmul, Tensor.addcmul), _addcmul),
    **dict.fromkeys((torch.lerp, Tensor.lerp), _lerp),
}
"""From operation to what it stands for; nothing where it stays."""
