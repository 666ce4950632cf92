"""Networks with another backward pass, by rewriting their graph; the forward pass stays what it was."""

import operator
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from lrc.attacks.threat_model import norms
from lrc.linearization.inplace import functionalize
from lrc.linearization.operations import RELUS
from lrc.linearization.partial import inside
from lrc.linearization.rules import VIEWS
from lrc.linearization.surgery import Surgery
from lrc.linearization.tracing import trace
from lrc.models.layers import CAS, JPEG
from lrc.utils.errors import InputError

ADDITIONS: set[Any] = {operator.add, torch.add, Tensor.add}
CONCATENATIONS: set[Any] = {torch.cat, torch.concat, torch.concatenate}


class Wiring:
    """The graph of a network on its way to another backward pass.

    Attributes:
        graph: changed in place, without operations that work in place; defences are layers, not looked into.
        ancestors: of each node, itself included: the nodes on paths from the image to it.

    Raises InputError: the network cannot be traced.
    """

    def __init__(self, model: nn.Module) -> None:
        self.root, self.graph = trace(model, {JPEG, CAS}, (), getattr(model, "input_shape", None))
        surgery = Surgery(self.root, self.graph, {}, "fold", "average")
        functionalize(surgery, VIEWS, (), run_first=True)
        self.operation = surgery.operation
        self.ancestors: dict[fx.Node, Set[fx.Node]] = {}
        self.dominators: dict[fx.Node, Set[fx.Node]] = {}
        for node in self.graph.nodes:
            parents = [parent for parent in node.all_input_nodes if parent in self.ancestors]
            if node.op == "placeholder" or parents:
                self.ancestors[node] = {node}.union(*(self.ancestors[parent] for parent in parents))
                common = [self.dominators[parent] for parent in parents]
                self.dominators[node] = {node} | (set.intersection(*map(set, common)) if common else set())

    def relus(self, start: int | str) -> list[fx.Node]:
        """The ReLU nodes, from the given number or from the given module on.

        Raises InputError: there are none, or no module of that name.
        """
        nodes = list(self.graph.nodes)
        if isinstance(start, str):
            within = [i for i, node in enumerate(nodes) if inside(node, start)]
            if not within:
                raise InputError(f"the network has no module {start!r} to start from: see model.named_modules()")
            nodes = nodes[within[0] :]
        found = [node for node in nodes if node in self.ancestors and self.operation(node) in RELUS]
        found = found[start:] if isinstance(start, int) else found
        if not found:
            raise InputError(f"the network has no ReLU from {start!r} on, so nothing to be made linear")
        return found

    def residuals(self) -> list["Residual"]:
        """The residual branches that end in an addition: of its two arms, which start at one node, the longer."""
        additions = [node for node in self.ancestors if self.operation(node) in ADDITIONS]
        found = []
        for node in additions:
            arms = [a for a in node.args[:2] if isinstance(a, fx.Node) and a in self.ancestors]
            if len(arms) == 2 and arms[0] is not arms[1]:
                found.append(self._residual(node, *arms))
        return [residual for residual in found if residual is not None]

    def _residual(self, addition: fx.Node, a: fx.Node, b: fx.Node) -> "Residual | None":
        order = list(self.ancestors)
        fork = max(self.dominators[a] & self.dominators[b], key=order.index)
        arms = [
            {node for node in self.ancestors[arm] if fork in self.ancestors[node] and node is not fork}
            for arm in (a, b)
        ]
        short, long = sorted(arms, key=len)
        if short & long or len(short) == len(long):
            return None
        return Residual(fork, a if long is arms[0] else b, addition, sorted(long, key=order.index))

    def grown(self) -> list[fx.Node]:
        """What is concatenated with its own ancestors: the new features of a dense block's layers."""
        found: dict[fx.Node, None] = {}
        for node in self.ancestors:
            if self.operation(node) in CONCATENATIONS:
                parts = [part for part in node.all_input_nodes if part in self.ancestors]
                grown = [p for p in parts if any(q is not p and q in self.ancestors[p] for q in parts)]
                found.update(dict.fromkeys(grown))
        return list(found)

    def assemble(self) -> fx.GraphModule:
        """The network of the graph. It shares layers with the original; the containers around them are its own."""
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph)


@dataclass(frozen=True)
class Residual:
    """A residual branch: the nodes after `fork` up to `end`, which goes into `addition` along with the shortcut."""

    fork: fx.Node
    end: fx.Node
    addition: fx.Node
    nodes: list[fx.Node]


class _LinearReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.clone(), x.clone()

    @staticmethod
    def backward(ctx: Any, true: Tensor, linear: Tensor) -> Tensor:
        length = norms(linear)
        return torch.where(length > 0, norms(true) / length, 0.0) * linear


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, true: Tensor, linear: Tensor) -> Tensor:
        return true.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient


def linear_relu(x: Tensor) -> Tensor:
    """ReLU whose derivative is taken to be 1."""
    return _LinearReLU.apply(x)


def scale_gradient(x: Tensor, gamma: float) -> Tensor:
    """x, with its gradient multiplied by gamma."""
    x = x.clone()
    if x.requires_grad:
        x.register_hook(lambda gradient: gamma * gradient)
    return x


def fork(x: Tensor) -> tuple[Tensor, Tensor]:
    """x twice: back comes the second's gradient, scaled image by image to the norm of the first's."""
    return _Fork.apply(x)


def join(true: Tensor, linear: Tensor) -> Tensor:
    """The first, with its gradient given to both."""
    return _Join.apply(true, linear)
