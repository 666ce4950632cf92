"""The graph of a network whose forward looks at shapes: what it does to examples, written down while it runs."""

import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, no_type_check

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from lrc.linearization.tracing import PREFIX, Repeatable, Whole, is_leaf, kind, like, twin, unchecked
from lrc.utils.errors import InputError, first_line

OPERATORS: dict[str, tuple[Callable[..., Any], bool]] = {
    "__getitem__": (operator.getitem, False),
    "__setitem__": (operator.setitem, False),
    "__floordiv__": (operator.floordiv, False),
    "__rsub__": (operator.sub, True),
    "__rdiv__": (operator.truediv, True),
    "__rpow__": (operator.pow, True),
    "__rmatmul__": (operator.matmul, True),
    "__rfloordiv__": (operator.floordiv, True),
}
"""What a method with underscores stands for, and whether its two arguments change places."""

VALUES = {
    *("__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "__format__", "item", "tolist"),
    *("numpy", "equal", "allclose", "is_nonzero", "__array__"),
}
"""Functions that take the values of a tensor out of the graph."""

BATCHES = (2, 3)
"""Images in the examples: numbers that differ between the two as these do are multiples of the size of the batch."""


def record(
    model: nn.Module, leaves: Collection[object], keep: Collection[str], input_shape: Sequence[int]
) -> tuple[nn.Module, fx.Graph]:
    """The graph of what the network does to images of one size, for batches of any size; arguments as in `trace`.

    Raises:
        InputError: it does not take such images, decides by their values, or does other things with other batches.
    """
    graph, other = (_Recorder(model, leaves, keep).run(n, input_shape) for n in BATCHES)
    _generalize(type(model).__name__, graph.graph, other.graph)
    graph.root.model = model
    return graph.root, graph.graph


class _Recorder(TorchFunctionMode):
    """Writes every function of PyTorch that is called into a graph, and leaves of the network as such."""

    def __init__(self, model: nn.Module, leaves: Collection[object], keep: Collection[str]) -> None:
        super().__init__()
        self.leaves, self.keep = leaves, keep
        self.root, self.graph = Whole(twin(model)), fx.Graph()
        self.paths = {module: path for path, module in self.root.named_modules()}
        self.tensors = {id(t): path for path, t in (*self.root.named_parameters(), *self.root.named_buffers())}
        self.nodes: dict[str, fx.Node] = {}
        self.constants: dict[int, Tensor] = {}
        self.stack: dict[str, tuple[str, type]] = {}
        self.images: set[fx.Node] = set()

    def run(self, n: int, shape: Sequence[int]) -> "_Recorder":
        x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0)).to(like(self.root, torch.empty(())))
        node = self.graph.placeholder("x")
        self._mark(x, node)
        self.images.add(node)
        try:
            with torch.no_grad(), unchecked(), _calls(self), Repeatable(), self:
                output = self.root(x)
            self.graph.output(self._nodes(output))
        except InputError:
            raise
        except Exception as error:  # the network's own code runs: anything may be raised
            raise InputError(
                f"{type(self.root.model).__name__} does not take images of shape {tuple(shape)}: {first_line(error)}"
            ) from error
        return self

    @no_type_check
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in VALUES and any(self._node(t) in self.images for t in _tensors((args, kwargs))):
            raise InputError(f"the network takes the values of a tensor that depends on the image ({name}){self._at()}")
        before = self._nodes((args, kwargs)) if name != "__get__" else ((args[0],), {})
        result = func(*args, **kwargs)
        if name == "__setitem__" or _tensors(result):
            self._note(func, name, args, before, result)
        return result

    def call_module(self, call: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A module's forward without its hooks: one node if it is a leaf, else what happens in it."""
        path = self.paths[module]
        self.stack[path] = (path, kind(module, self.leaves))
        try:
            if module is self.root or not is_leaf(module, path, self.leaves, self.keep):
                return module.forward(*args, **kwargs)
            arguments = self._nodes((args, kwargs))
            with torch._C.DisableTorchFunction():
                result = module.forward(*args, **kwargs)
            self._record("call_module", path, arguments, result)
            return result
        finally:
            del self.stack[path]

    def _note(self, func: Any, name: str, args: Any, before: Any, result: Any) -> None:
        if name == "__get__":
            tensor = self._nodes(args[0])
            return self._record("call_function", getattr, ((tensor, func.__self__.__name__), {}), result)
        if name in OPERATORS and hasattr(Tensor, name):
            target, swapped = OPERATORS[name]
            return self._record("call_function", target, (before[0][::-1] if swapped else before[0], {}), result)
        method = getattr(func, "__qualname__", "").startswith(("Tensor", "_TensorBase"))
        return self._record("call_method" if method else "call_function", name if method else func, before, result)

    def _record(self, op: str, target: Any, arguments: Any, result: Any) -> None:
        node = self.graph.create_node(op, target, tuple(arguments[0]), dict(arguments[1]))
        node.meta["nn_module_stack"] = dict(list(self.stack.items())[1:])
        if not self.images.isdisjoint(node.all_input_nodes):
            self.images.add(node)
        self._spread(result, node)

    def _spread(self, result: Any, node: fx.Node) -> None:
        """Notes the node of each tensor of a result."""
        if isinstance(result, Tensor):
            self._mark(result, node)
        elif isinstance(result, tuple | list | dict):
            for key, part in result.items() if isinstance(result, dict) else enumerate(result):
                if _tensors(part):
                    item = self.graph.call_function(operator.getitem, (node, key))
                    item.meta = node.meta
                    self.images.update({item} if node in self.images else ())
                    self._spread(part, item)

    def _mark(self, tensor: Tensor, node: fx.Node) -> None:
        tensor.__dict__["_recorded"] = (self, node)

    def _nodes(self, value: Any) -> Any:
        """The value with the nodes of its tensors in their places."""
        return map_aggregate(value, lambda v: self._node(v) if isinstance(v, Tensor) else v)

    def _node(self, tensor: Tensor) -> fx.Node:
        recorder, node = tensor.__dict__.get("_recorded", (None, None))
        if recorder is self:
            return node
        path = self.tensors.get(id(tensor))
        if path is None:  # made before the network ran, or where no function of PyTorch was seen
            path = f"_tensor_constant{len(self.constants)}"
            self.root.register_buffer(path, tensor.detach().clone())
            self.tensors[id(tensor)], self.constants[id(tensor)] = path, tensor
        if path not in self.nodes:
            self.nodes[path] = self.graph.create_node("get_attr", path)
        return self.nodes[path]

    def _at(self) -> str:
        path, kind_of_owner = list(self.stack.values())[-1]
        path = path.removeprefix(PREFIX.rstrip(".")).removeprefix(".")
        way = f'; keep it non-linear: keep=("{path}",), or give its class a rule' if path else ""
        return f" in the forward of {path or 'the network itself'} ({kind_of_owner.__name__}){way}"


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_aggregate(value, lambda v: found.append(v) if isinstance(v, Tensor) else None)
    return found


@contextmanager
def _calls(recorder: _Recorder) -> Iterator[None]:
    """Calls of the network's modules go to the recorder meanwhile."""
    original = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if module in recorder.paths:
            return recorder.call_module(original, module, args, kwargs)
        return original(module, *args, **kwargs)

    try:
        nn.Module.__call__ = call  # type: ignore[method-assign]
        yield
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]


def _generalize(name: str, graph: fx.Graph, other: fx.Graph) -> None:
    """Puts the size of the batch in the place of the numbers of `graph` that depend on it.

    Args:
        graph, other: of the two examples.

    Raises:
        InputError: they differ by more than such numbers.
    """
    if [(n.op, n.target) for n in graph.nodes] != [(n.op, n.target) for n in other.nodes]:
        raise InputError(f"the forward of {name} does other things with {BATCHES[0]} images than with {BATCHES[1]}")
    x = next(iter(graph.nodes))
    for node, twin_node in zip(list(graph.nodes), other.nodes, strict=True):
        with graph.inserting_before(node):
            node.args = _merged(graph, x, node.args, twin_node.args)
            node.kwargs = _merged(graph, x, node.kwargs, twin_node.kwargs)


def _merged(graph: fx.Graph, x: fx.Node, a: Any, b: Any) -> Any:
    """An argument of both, equal but for multiples of the size of the batch, which become such."""
    if isinstance(a, fx.Node):
        return a
    if isinstance(a, tuple | list) and isinstance(b, tuple | list) and len(a) == len(b):
        return type(a)([_merged(graph, x, *pair) for pair in zip(a, b, strict=True)])
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {key: _merged(graph, x, a[key], b[key]) for key in a}
    if isinstance(a, slice):
        return slice(*(_merged(graph, x, getattr(a, p), getattr(b, p)) for p in ("start", "stop", "step")))
    if type(a) is type(b) and (a is b or a == b or a != a):
        return a
    if isinstance(a, int) and isinstance(b, int) and a * BATCHES[1] == b * BATCHES[0]:
        size = graph.call_method("size", (x, 0))
        return size if a == BATCHES[0] else graph.call_function(operator.mul, (size, a // BATCHES[0]))
    raise InputError(f"its forward computes {a!r} for {BATCHES[0]} images and {b!r} for {BATCHES[1]}: not one network")
