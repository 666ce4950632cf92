"""Networks with another backward pass, by rewriting their torch.fx graph; the forward pass stays what it was."""

import operator
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import config
from torch import Tensor, fx, nn

from lrc.attacks.common import untouched
from lrc.attacks.threat_model import norms
from lrc.models.layers import CAS, JPEG
from lrc.utils.errors import InputError

ADDITIONS: set[Any] = {operator.add, operator.iadd, torch.add, Tensor.add, Tensor.add_}
CONCATENATIONS: set[Any] = {torch.cat, torch.concat, torch.concatenate}
UPDATES: set[Any] = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
RELUS: set[Any] = {nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}


class Wiring:
    """The graph of a network on its way to another backward pass.

    Attributes:
        root: holds the modules that the graph names, under `model`.
        graph: changed in place.
        ancestors: of each node, itself included: the nodes on paths from the image to it.

    Raises:
        InputError: torch.fx cannot trace the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.root = _Whole(model)
        self.graph = _trace(self.root)
        for node in self.graph.nodes:
            if node.all_input_nodes and self._is_in_place(node):  # from here on its input's name stands for its result
                node.all_input_nodes[0].replace_all_uses_with(node, _comes_after(node))
        self.ancestors: dict[fx.Node, Set[fx.Node]] = {}
        self.dominators: dict[fx.Node, Set[fx.Node]] = {}
        for node in self.graph.nodes:
            parents = [parent for parent in node.all_input_nodes if parent in self.ancestors]
            if node.op == "placeholder" or parents:
                self.ancestors[node] = {node}.union(*(self.ancestors[parent] for parent in parents))
                common = [self.dominators[parent] for parent in parents]
                self.dominators[node] = {node} | (set.intersection(*map(set, common)) if common else set())

    def operation(self, node: fx.Node) -> Any:
        """What the node calls, as an object: the class of a module, a function, a method of Tensor."""
        if node.op == "call_module":
            return type(self.root.get_submodule(str(node.target)))
        return getattr(Tensor, str(node.target), None) if node.op == "call_method" else node.target

    def relus(self, start: int | str) -> list[fx.Node]:
        """The ReLU nodes, from the given number or from the given module on.

        Raises:
            InputError: there are none, or no module of that name.
        """
        nodes = list(self.graph.nodes)
        if isinstance(start, str):
            inside = [i for i, node in enumerate(nodes) if _is_in(node, start)]
            if not inside:
                raise InputError(f"the network has no module {start!r} to start from: see model.named_modules()")
            nodes = nodes[inside[0] :]
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

    def _is_in_place(self, node: fx.Node) -> bool:
        """By PyTorch's conventions: a name that ends in an underscore, an argument or attribute `inplace`, `+=`."""
        if node.op == "call_module":
            return getattr(self.root.get_submodule(str(node.target)), "inplace", False) is True
        name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
        flagged = node.kwargs.get("inplace") is True or (node.target is F.relu and node.args[1:] == (True,))
        return flagged or (name.endswith("_") and not name.endswith("__")) or node.target in UPDATES

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


class _Whole(nn.Module):
    """A root around the model, so that what the tracer attaches to its root never lands on the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        return self.model(x)


class _Tracer(fx.Tracer):
    """Goes around the hooks, which expect tensors and may have effects; defences are layers, not looked into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, JPEG | CAS) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return super().call_module(m, m.forward, args, kwargs)


def _trace(root: _Whole) -> fx.Graph:
    try:
        with untouched(root.model), _unchecked():
            return _Tracer().trace(root)
    except Exception as error:  # the network's own code runs here, on stand-ins for tensors: it may raise anything
        raise InputError(f"torch.fx cannot trace {type(root.model).__name__}: {error}") from error


@contextmanager
def _unchecked() -> Iterator[None]:
    """Annotated shapes hold for tensors, not for the tracer's stand-ins."""
    disabled = config.jaxtyping_disable
    try:
        config.update("jaxtyping_disable", True)
        yield
    finally:
        config.update("jaxtyping_disable", disabled)


def _comes_after(node: fx.Node) -> Callable[[fx.Node], bool]:
    return lambda user: user > node


def _is_in(node: fx.Node, path: str) -> bool:
    whole = f"model.{path}"
    paths = [where for where, _ in node.meta.get("nn_module_stack", {}).values()]
    return any(where == whole or where.startswith(f"{whole}.") for where in [*paths, str(node.target)])


class _LinearReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: float) -> Tensor:
        ctx.gamma = gamma
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.gamma * gradient, None


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
    return _Scale.apply(x, gamma)


def fork(x: Tensor) -> tuple[Tensor, Tensor]:
    """x twice: back comes the second's gradient, scaled image by image to the norm of the first's."""
    return _Fork.apply(x)


def join(true: Tensor, linear: Tensor) -> Tensor:
    """The first, with its gradient given to both."""
    return _Join.apply(true, linear)
