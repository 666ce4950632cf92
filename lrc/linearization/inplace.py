"""In-place operations of a graph made operations of their own."""

import inspect
import operator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from lrc.linearization.surgery import Operation, Surgery, first, identity, refuse

__all__ = ["functionalize"]

OUT_OF_PLACE: dict[Operation, Operation] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    **{
        getattr(space, name): getattr(space, name[:-1])
        for space in (F, torch)
        for name in dir(space)
        if name.endswith("_") and not name.startswith("_") and hasattr(space, name[:-1])
    },
}


def functionalize(surgery: Surgery, views: frozenset[Operation]) -> None:
    """Gives in-place operations their out-of-place form, and later users of the changed tensor the result.

    Else `y = relu(x); y += 1` would change x once the ReLU is gone, which made y a tensor of its own; and a call like
    `x.add_(1)` whose result is not used would pass for dead code.

    Args:
        surgery: changed in place.
        views: operations whose result may share memory with their first argument.

    Raises:
        InputError: the changed tensor is used later through a view as well.
    """
    data = surgery.depending()
    memory: dict[fx.Node, fx.Node] = {}  # of the nodes so far, the node that first held their memory
    for node in surgery.graph.nodes:
        view = node in data and surgery.operation(node) in views
        memory[node] = memory.get(first(node), node) if view else node
        if node in data and _in_place(surgery, node):
            changed = first(node)
            aliases = [n for n in memory if memory[n] is memory[changed] and n is not changed]
            later = {user for n in aliases for user in n.users}.difference(memory)
            if later and surgery.rule(node) is not identity:
                refuse(surgery, node, "it changes in place what is used later through a view: make it out of place")
            changed.replace_all_uses_with(node, delete_user_cb=lambda user: user not in memory)
            _make_out_of_place(node)


def _in_place(surgery: Surgery, node: fx.Node) -> bool:
    """By PyTorch's conventions: `+=` and its like, a name that ends in one underscore, an option `inplace`."""
    if node.op == "call_module":
        return getattr(surgery.part(node.target), "inplace", False) is True
    name = str(getattr(node.target, "__name__", node.target))
    underscore = name.endswith("_") and not name.endswith("__")
    return underscore or node.target in OUT_OF_PLACE or _option(node) is True


def _option(node: fx.Node) -> Any:
    """What a function is told of `inplace`, by position or by name."""
    if "inplace" in node.kwargs or node.op != "call_function":
        return node.kwargs.get("inplace")
    place = _place_of_inplace(node.target)
    return node.args[place] if place is not None and place < len(node.args) else None


@cache
def _place_of_inplace(function: Any) -> int | None:
    try:
        return list(inspect.signature(function).parameters).index("inplace")
    except (TypeError, ValueError):  # built in, or without that parameter
        return None


def _make_out_of_place(node: fx.Node) -> None:
    """Modules get theirs when the graph is put together."""
    if node.op == "call_method":
        node.target = str(node.target).removesuffix("_")
    if node.op == "call_function":
        node.target = OUT_OF_PLACE.get(node.target, node.target)
        if "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}
        elif _option(node) is True:
            place = _place_of_inplace(node.target)
            node.args = tuple(False if i == place else arg for i, arg in enumerate(node.args))
