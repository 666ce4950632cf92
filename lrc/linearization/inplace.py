"""In-place operations of a graph made operations of their own."""

import inspect
import operator
from collections.abc import Collection, Set
from functools import cache
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from lrc.linearization.surgery import Operation, Rule, Surgery, describe, first
from lrc.linearization.tracing import kind
from lrc.utils.errors import InputError

OUT_OF_PLACE: dict[Operation, Operation] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    **{
        getattr(space, name): getattr(space, name[:-1])
        for space in (F, torch)
        for name in dir(space)
        if name.endswith("_") and not name.startswith("_") and hasattr(space, name[:-1])
    },
}

SIZES: set[Operation] = {
    *((getattr, "shape"), (getattr, "ndim"), Tensor.size, Tensor.dim, Tensor.numel, Tensor.ndimension, Tensor.nelement),
}


def functionalize(surgery: Surgery, views: Set[Operation], removing: Collection[Rule], *, run_first: bool) -> bool:
    """Gives in-place operations their out-of-place form, and later users of the changed tensor the result.

    Else `y = relu(x); y += 1` would change x once the ReLU is gone, which made y a tensor of its own; and a call like
    `x.add_(1)` or `mask.triu_()` whose result is not used would pass for dead code. What happens inside a module that
    is taken as a whole stays; it may change its input in place, so that gets memory of its own.

    Args:
        surgery: changed in place.
        views: operations whose result may share memory with their first argument.
        removing: rules that take an operation out.
        run_first: whether the graph is run before anything is taken out of it.

    Returns:
        Whether the graph computes what the network does also before anything is taken out of it.

    Raises:
        InputError: the changed tensor is used later through a view as well, or an operation has no out-of-place form.
    """
    _merge_constants(surgery.graph)
    early = True
    memory: dict[fx.Node, fx.Node] = {}  # of the nodes so far, the node that first held their memory
    for node in list(surgery.graph.nodes):
        removed = surgery.rule(node) in removing and node not in surgery.kept
        memory[node] = memory.get(first(node), node) if surgery.operation(node) in views else node
        if node.kwargs.get("out") is not None:
            _refuse(surgery, node, "what is given as `out`: use its result instead")
        if node.target in OUT_OF_PLACE and is_number(surgery, first(node)):
            node.target = OUT_OF_PLACE[node.target]  # `n += 1` gives the name a new value
        elif node.target is operator.setitem or _in_place(surgery, node):
            changed = first(node)
            aliases = [n for n in memory if memory[n] is memory[changed] and n is not changed]
            later = {user for n in aliases for user in n.users}.difference(memory)
            if back := [user for user in later if _puts_back(user, changed, node)]:
                later = {user for user in later if user < back[0]}  # from there on, what it was changed to
            early = early and not later
            if later and (run_first or not removed):
                _refuse(surgery, node, "what is used later through a view: make it out of place")
            changed.replace_all_uses_with(node, delete_user_cb=lambda user: user not in memory)
            _make_out_of_place(surgery, node)
        elif not removed and _is_whole(surgery, node):
            for root in {memory[n] for n in node.all_input_nodes if surgery.operation(memory[n]) is not copied}:
                _give_memory(surgery.graph, root, memory)
    return early


def is_number(surgery: Surgery, node: Any) -> bool:
    """Whether a node is a size, a tuple of sizes, or arithmetic on such; these are values, not memory."""
    if not isinstance(node, fx.Node):
        return True
    if surgery.operation(node) in SIZES:
        return True
    pure = node.target is operator.getitem or getattr(node.target, "__module__", "") in ("_operator", "math")
    return pure and bool(node.all_input_nodes) and all(is_number(surgery, n) for n in node.all_input_nodes)


def _puts_back(user: fx.Node, changed: fx.Node, node: fx.Node) -> bool:
    """Whether the user is the second half of `x[i] += y`, which puts into x what has been changed of it."""
    same = changed.target is operator.getitem and user.target is operator.setitem
    return same and user.args == (changed.args[0], changed.args[1], node)


def assigned(x: Tensor, index: Any, value: Any) -> Tensor:
    """A copy of x with the value at the index."""
    x = x.clone()
    x[index] = value
    return x


def _merge_constants(graph: fx.Graph) -> None:
    """One node for each tensor of the network, so that a change of it in place reaches all its uses."""
    nodes: dict[object, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr" and nodes.setdefault(node.target, node) is not node:
            node.replace_all_uses_with(nodes[node.target])
            graph.erase_node(node)


def _is_whole(surgery: Surgery, node: fx.Node) -> bool:
    """Whether the node is a module of the network's own, or one that is kept with others in it."""
    if node.op != "call_module":
        return False
    module = surgery.part(node.target)
    return not kind(module).__module__.startswith("torch") or (node in surgery.kept and any(module.children()))


def _give_memory(graph: fx.Graph, root: fx.Node, memory: dict[fx.Node, fx.Node]) -> None:
    """Puts a copy in the place of what first held some memory, for all its users."""
    with graph.inserting_after(root):
        own = graph.call_function(copied, (root,))
    own.meta = dict(root.meta)
    root.replace_all_uses_with(own, delete_user_cb=lambda user: user is not own)
    memory.update({n: own for n in (*memory, own) if n is own or memory[n] is root})


def copied(x: Any) -> Any:
    """The same tensor, or tensors, in memory of their own."""
    return map_aggregate(x, lambda part: part.clone() if isinstance(part, Tensor | fx.Proxy) else part)


def out_of_place(operation: Operation) -> Operation:
    """The operation, or if it works in place its form that does not."""
    name = getattr(operation, "__name__", "")
    if name.endswith("_") and getattr(Tensor, name, None) is operation:
        return getattr(Tensor, name.removesuffix("_"), operation)
    return OUT_OF_PLACE.get(operation, operation)


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


def _make_out_of_place(surgery: Surgery, node: fx.Node) -> None:
    """Modules get theirs when the graph is put together."""
    if node.target is operator.setitem:
        node.target = assigned
    elif node.target in ("zero_", "fill_", "copy_", torch.zero_, torch.fill_):
        value: Any = [*node.args[1:], *node.kwargs.values(), 0][0]
        everywhere: Any = ...
        node.op, node.target, node.kwargs = "call_function", assigned, {}
        node.args = (surgery.insert(node, torch.zeros_like, first(node)), everywhere, value)
    elif node.op == "call_method" and callable(getattr(Tensor, str(node.target).removesuffix("_"), None)):
        node.target = str(node.target).removesuffix("_")
    elif node.op == "call_function" and (node.target in OUT_OF_PLACE or _option(node) is True):
        node.target = OUT_OF_PLACE.get(node.target, node.target)
        if "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}
        elif _option(node) is True:
            place = _place_of_inplace(node.target)
            node.args = tuple(False if i == place else arg for i, arg in enumerate(node.args))
    elif node.op != "call_module" and surgery.rule(node) is None and node.users:
        _refuse(surgery, node, "a tensor, and has no form that does not: compute a new one instead")


def _refuse(surgery: Surgery, node: fx.Node, reason: str) -> NoReturn:
    """Raises what neither a rule nor keeping would help."""
    raise InputError(f"cannot linearize {describe(surgery, node)}: it changes in place {reason}")
