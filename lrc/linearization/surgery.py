"""Changing a traced graph without changing what the rest of it computes."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from lrc.linearization.tracing import PREFIX, kind
from lrc.utils.errors import InputError

BatchNorm = Literal["remove", "fold"]
Pooling = Literal["average", "average_inside"]

Operation = Any
"""What a node calls, as an object: the class of a module, a function, a method of Tensor, or (getattr, name)."""


@dataclass(frozen=True)
class Change:
    """What became of one operation.

    Attributes:
        node: its name in the graph of the network.
        operation: as one writes it.
        module: path of the module that it runs in, or is; empty for the network itself.
        became: "taken out", or what stands in its place.
        convention: why.
    """

    node: str
    operation: str
    module: str
    became: str
    convention: str


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
        changes: what became of what so far.
    """

    root: nn.Module
    graph: fx.Graph
    rules: Mapping[Operation, "Rule"]
    batchnorm: BatchNorm
    pooling: Pooling
    means: dict[fx.Node, Tensor] = field(default_factory=dict)
    kept: set[fx.Node] = field(default_factory=set)
    data: set[fx.Node] = field(default_factory=set)
    changes: list[Change] = field(default_factory=list)
    kinds: dict[object, Operation] = field(default_factory=dict)  # of modules, once found

    def part(self, target: object) -> Any:
        """The module or tensor that a node refers to."""
        return operator.attrgetter(str(target))(self.root)

    def operation(self, node: fx.Node) -> Operation:
        """What the node calls."""
        if node.op == "call_module":
            if node.target not in self.kinds:
                self.kinds[node.target] = kind(self.part(node.target), self.rules)
            return self.kinds[node.target]
        if node.op == "call_method":
            return getattr(Tensor, str(node.target), None)
        return (getattr, node.args[1]) if node.target is getattr else node.target

    def options(self, node: fx.Node, **defaults: Any) -> list[Any]:
        """What a module was built with, or a call got after its first argument, in the order of `defaults`."""
        if node.op == "call_module":
            module = self.part(node.target)
            return [getattr(module, name, default) for name, default in defaults.items()]
        given = dict(zip(defaults, node.args[1:], strict=False)) | dict(node.kwargs)
        return [given.get(name, default) for name, default in defaults.items()]

    def rule(self, node: fx.Node) -> "Rule | None":
        """The rule for the node, if there is one."""
        return self.rules.get(self.operation(node))

    def inputs(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose values a node takes: of a second one that gives only shape or type, it takes none."""
        given = first(node) if self.operation(node) in AS else None
        return [given] if isinstance(given, fx.Node) else [] if self.operation(node) in AS else node.all_input_nodes

    def depending(self) -> set[fx.Node]:
        """The nodes whose values depend on the pixels, whether the output depends on them or not."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            depends = not found.isdisjoint(self.inputs(node))
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
        map_arg(arguments, lambda node: found.append(node) if node in self.data else None)
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

    def take_out(self, node: fx.Node, instead: Any, convention: str = "") -> None:
        """Puts what there is already in the place of a node."""
        self.note(node, "taken out", convention)
        node.replace_all_uses_with(instead)
        self.graph.erase_node(node)

    def note(self, node: fx.Node, became: str, convention: str = "") -> None:
        """Puts down what becomes of a node that the image goes through; the rule says why, unless that is given."""
        if node in self.data:
            why = convention or (getattr(self.rule(node), "__doc__", None) or "by a rule of the call").splitlines()[0]
            self.changes.append(Change(node.name, _written(self, node), _owner(self, node)[0], became, why))

    def swap(self, node: fx.Node, new: fx.Node, convention: str = "") -> fx.Node:
        """Puts a node in the place of another, which is taken out."""
        self.note(node, _written(self, new), convention)
        new.meta = node.meta
        self.data.add(new)
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)
        return new

    def drop_unused(self) -> None:
        """Takes out what the result does not need, assertions included."""
        self.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


AS: frozenset[Operation] = frozenset((Tensor.view_as, Tensor.reshape_as, Tensor.expand_as, Tensor.type_as))
"""Operations that take the values of their first argument, and the shape or the type of their second."""

Rule = Callable[[Surgery, fx.Node], None]
"""Changes a node, keeps it as linear, or raises by `refuse`; called for the nodes of `Surgery.data`, last first."""


def identity(surgery: Surgery, node: fx.Node) -> None:
    """Taken out: the result is the first argument."""
    surgery.take_out(node, first(node))


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
    """Raises the error that names the node as a person would look for it, and the ways past it.

    No rule for a function that has one is proposed: of `mul`, it would take every constant factor out as well.
    """
    owner, kind_of_owner = _owner(surgery, node)
    rule = f"give a linear function f in its place: rules={{{_written(surgery, node)}: f}}"
    if node.op != "call_module" and surgery.rule(node) is not None:
        rule = (
            f"give a linear function f in the place of that module: rules={{{kind_of_owner}: f}}"
            if owner
            else "make it a module of its own and give that a rule"
        )
    kept = f'("{owner}",)' if owner else f"({_written(surgery, node)},)"
    raise InputError(
        f"cannot linearize {describe(surgery, node)}: {reason}; {rule}, or keep it non-linear: keep={kept}"
    )


def describe(surgery: Surgery, node: fx.Node) -> str:
    """A node by its name, its operation and the module of the network that it stands in."""
    owner, _ = _owner(surgery, node)
    operation = surgery.operation(node)
    name = str(node.args[1]) if node.target is getattr else getattr(operation, "__name__", str(node.target))
    return f"node {node.name!r} ({name}{f' in {owner}' if owner else ''})"


def expression(operation: Operation) -> str:
    """An operation as one writes it in `rules` or `keep`."""
    if isinstance(operation, tuple):
        return f'(getattr, "{operation[1]}")'
    name = getattr(operation, "__name__", str(operation))
    spaces = {"torch.nn": nn, "torch.nn.functional": F, "torch": torch, "torch.Tensor": Tensor, "operator": operator}
    if isinstance(operation, type):
        return f"torch.nn.{name}" if getattr(nn, name, None) is operation else name
    return next((f"{space}.{name}" for space, of in spaces.items() if getattr(of, name, None) is operation), name)


def _written(surgery: Surgery, node: fx.Node) -> str:
    return expression(surgery.operation(node) or f"torch.Tensor.{node.target}")


def _owner(surgery: Surgery, node: fx.Node) -> tuple[str, str]:
    """Path and class of the innermost module that a node stands in, or is; empty for the network itself."""
    stack = [(path, owner) for path, owner in node.meta.get("nn_module_stack", {}).values()]
    itself = node.op == "call_module" and str(node.target).startswith(PREFIX)
    path, owner = (str(node.target), surgery.operation(node)) if itself else [("", None), *stack][-1]
    inside = str(path).startswith(PREFIX)
    return (str(path).removeprefix(PREFIX), getattr(owner, "__name__", str(owner))) if inside else ("", "")
