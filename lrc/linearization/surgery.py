"""Changing a traced graph without changing what the rest of it computes."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from lrc.linearization.tracing import PREFIX, kind
from lrc.utils.errors import InputError

__all__ = [
    "BatchNorm",
    "Operation",
    "Pooling",
    "Rule",
    "Surgery",
    "constant",
    "describe",
    "first",
    "identity",
    "others",
    "refuse",
]

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
        means: of gates, what they are set to; those that are not here are opened.
        kept: the nodes that stay as they are.
        data: the nodes through whose values, not only their shapes, the output depends on the pixels of the image.
    """

    root: nn.Module
    graph: fx.Graph
    rules: Mapping[Operation, "Rule"]
    batchnorm: BatchNorm
    pooling: Pooling
    means: dict[fx.Node, Tensor] = field(default_factory=dict)
    kept: set[fx.Node] = field(default_factory=set)
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

    def depending(self) -> set[fx.Node]:
        """The nodes whose values depend on the pixels, whether the output depends on them or not."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            depends = not found.isdisjoint(node.all_input_nodes)
            if node.op == "placeholder" or (depends and self.rule(node) is not constant):
                found.add(node)
        return found

    def mark(self) -> None:
        """Brings `data` up to date."""
        depending = self.depending()
        self.data.clear()
        for node in reversed(self.graph.nodes):
            if node in depending and (node.op == "output" or not self.data.isdisjoint(node.users)):
                self.data.add(node)

    def data_among(self, arguments: Any) -> list[fx.Node]:
        """The nodes of `data` among the arguments, each as often as it occurs."""
        found: list[fx.Node] = []

        def note(node: fx.Node) -> fx.Node:
            found.extend([node] if node in self.data else [])
            return node

        map_arg(arguments, note)
        return found

    def insert(self, before: fx.Node, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """function(*args, **kwargs) as a node of its own, at the place of another."""
        with self.graph.inserting_before(before):
            new = self.graph.call_function(function, args, kwargs)
        new.meta = before.meta
        return new

    def replace(self, node: fx.Node, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Puts function(*args, **kwargs) in the place of a node."""
        return self.swap(node, self.insert(node, function, *args, **kwargs))

    def swap(self, node: fx.Node, new: fx.Node) -> fx.Node:
        """Puts a node in the place of another, which is taken out."""
        new.meta = node.meta
        self.data.add(new)
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)
        return new

    def drop_unused(self) -> None:
        """Takes out what the result does not need, assertions included."""
        self.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


Rule = Callable[[Surgery, fx.Node], None]
"""Changes a node, keeps it as linear, or raises by `refuse`; called for the nodes of `Surgery.data`, last first."""


def identity(surgery: Surgery, node: fx.Node) -> None:
    """Taken out: the result is the first argument."""
    node.replace_all_uses_with(first(node))
    surgery.graph.erase_node(node)


def constant(surgery: Surgery, node: fx.Node) -> None:
    """Kept: depends on the shapes of its arguments alone."""


def first(node: fx.Node) -> Any:
    """The first argument, given by position or by name."""
    return node.args[0] if node.args else node.kwargs[_name_of_first(node)]


def others(node: fx.Node) -> Any:
    """All arguments but the first."""
    if node.args:
        return node.args[1:], node.kwargs
    return {name: value for name, value in node.kwargs.items() if name != _name_of_first(node)}


def _name_of_first(node: fx.Node) -> str:
    return "input" if "input" in node.kwargs else next(iter(node.kwargs))


def refuse(surgery: Surgery, node: fx.Node, reason: str) -> NoReturn:
    """Raises the error that names the node as a person would look for it, and the two ways past it.

    No rule for a function that has one is proposed: of `mul`, it would take every constant factor out as well.
    """
    owner, kind_of_owner = _owner(surgery, node)
    name = kind_of_owner or _name(surgery, node)
    rule = f'give a rule, as in linearize(model, rules={{{name}: "identity"}})'
    if node.op != "call_module" and surgery.rule(node) is not None:
        rule = "make it a module of its own and give that a rule"
    kept = f'("{owner}",)' if owner else f"({name},)"
    raise InputError(
        f"cannot linearize {describe(surgery, node)}: {reason}; {rule}, or keep it non-linear: keep={kept}"
    )


def describe(surgery: Surgery, node: fx.Node) -> str:
    """A node by its name, its operation and the module of the network that it stands in."""
    owner, _ = _owner(surgery, node)
    return f"node {node.name!r} ({_name(surgery, node)}{f' in {owner}' if owner else ''})"


def _name(surgery: Surgery, node: fx.Node) -> str:
    operation = surgery.operation(node)
    return str(node.args[1]) if node.target is getattr else getattr(operation, "__name__", str(node.target))


def _owner(surgery: Surgery, node: fx.Node) -> tuple[str, str]:
    """Path and class of the innermost module that a node stands in, or is; empty for the network itself."""
    stack = [(path, owner) for path, owner in node.meta.get("nn_module_stack", {}).values()]
    itself = node.op == "call_module" and str(node.target).startswith(PREFIX)
    path, owner = (str(node.target), surgery.operation(node)) if itself else [("", None), *stack][-1]
    inside = str(path).startswith(PREFIX)
    return (str(path).removeprefix(PREFIX), getattr(owner, "__name__", str(owner))) if inside else ("", "")
