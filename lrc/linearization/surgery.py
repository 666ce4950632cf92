"""Changing a traced graph without changing what the rest of it computes."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from torch import Tensor, fx, nn

from lrc.errors import InputError
from lrc.linearization.tracing import PREFIX, kind

__all__ = ["BatchNorm", "Operation", "Pooling", "Rule", "Surgery", "constant", "functionalize", "identity", "refuse"]

BatchNorm = Literal["remove", "fold"]
Pooling = Literal["average", "average_inside"]

Operation = Any
"""What a node calls, as an object: the class of a module, a function, a method of Tensor, or (getattr, name)."""


@dataclass(frozen=True)
class Surgery:
    """A graph on its way to being linear, and what a rule needs to know of it.

    Attributes:
        root: holds the modules and tensors that the graph refers to.
        graph: changed in place, node by node.
        rules: from operation to rule.
        batchnorm, pooling: the choices of `lrc.linearize`.
        data: the nodes whose values depend on the pixels of the image, not on its shape alone.
    """

    root: nn.Module
    graph: fx.Graph
    rules: Mapping[Operation, "Rule"]
    batchnorm: BatchNorm
    pooling: Pooling
    data: set[fx.Node] = field(default_factory=set)

    def part(self, target: object) -> Any:
        """The module or tensor that a node refers to."""
        return operator.attrgetter(str(target))(self.root)

    def operation(self, node: fx.Node) -> Operation:
        """What the node calls."""
        if node.op == "call_module":
            return kind(self.part(node.target))
        if node.op == "call_method":
            return getattr(Tensor, str(node.target), None)
        return (getattr, node.args[1]) if node.target is getattr else node.target

    def rule(self, node: fx.Node) -> "Rule | None":
        """The rule for the node, if there is one."""
        return self.rules.get(self.operation(node))

    def mark(self) -> None:
        """Finds the nodes that depend on the pixels."""
        for node in self.graph.nodes:
            depends = not self.data.isdisjoint(node.all_input_nodes)
            if node.op == "placeholder" or (depends and self.rule(node) is not constant):
                self.data.add(node)

    def replace(self, node: fx.Node, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Puts function(*args, **kwargs) in the place of a node."""
        with self.graph.inserting_before(node):
            new = self.graph.call_function(function, args, kwargs)
        new.meta = node.meta
        self.data.add(new)
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)

    def drop_unused(self) -> None:
        """Takes out what the result does not need, assertions included."""
        self.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


Rule = Callable[[Surgery, fx.Node], None]
"""Changes a node, keeps it as linear, or raises by `refuse`; called for the nodes of `Surgery.data` in their order."""


def identity(surgery: Surgery, node: fx.Node) -> None:
    """Taken out: the result is the first argument."""
    node.replace_all_uses_with(first(node))
    surgery.graph.erase_node(node)


def constant(surgery: Surgery, node: fx.Node) -> None:
    """Kept: depends on the shapes of its arguments alone."""


def first(node: fx.Node) -> Any:
    """The first argument, given by position or by name."""
    return node.args[0] if node.args else next(iter(node.kwargs.values()))


def refuse(surgery: Surgery, node: fx.Node, reason: str) -> NoReturn:
    """Raises the error that names the node as a person would look for it: name, operation, module of the network."""
    operation = surgery.operation(node)
    what = node.args[1] if node.target is getattr else getattr(operation, "__name__", node.target)
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    where = str(node.target) if node.op == "call_module" else stack[-1] if stack else ""
    place = f" in {where.removeprefix(PREFIX)}" if where.startswith(PREFIX) else ""
    raise InputError(f"cannot linearize node {node.name!r} ({what}{place}): {reason}")


OUT_OF_PLACE: dict[Operation, Operation] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
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
    memory: dict[fx.Node, fx.Node] = {}  # of the nodes so far, the node that first held their memory
    for node in surgery.graph.nodes:
        view = node in surgery.data and surgery.operation(node) in views
        memory[node] = memory.get(first(node), node) if view else node
        if node in surgery.data and _in_place(surgery, node):
            changed = first(node)
            aliases = [n for n in memory if memory[n] is memory[changed] and n is not changed]
            later = {user for n in aliases for user in n.users}.difference(memory)
            if later and surgery.rule(node) is not identity:
                refuse(surgery, node, "it changes in place what is used later through a view: make it out of place")
            changed.replace_all_uses_with(node, delete_user_cb=lambda user: user not in memory)
            if node.op == "call_method":
                node.target = str(node.target).removesuffix("_")
            node.target = OUT_OF_PLACE.get(node.target, node.target)


def _in_place(surgery: Surgery, node: fx.Node) -> bool:
    """By PyTorch's conventions: `+=` and its like, a name that ends in one underscore, an option `inplace`."""
    if node.op == "call_module":
        return getattr(surgery.part(node.target), "inplace", False) is True
    name = str(getattr(node.target, "__name__", node.target))
    underscore = name.endswith("_") and not name.endswith("__")
    return underscore or node.target in OUT_OF_PLACE or node.kwargs.get("inplace") is True
