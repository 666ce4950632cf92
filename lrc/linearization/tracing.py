"""A network as a graph of operations, as it is in eval mode, without touching the network."""

import operator
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, cast

import torch
from jaxtyping import config
from torch import fx, nn
from torch.nn.utils import parametrize

from lrc.utils.errors import InputError

__all__ = ["PREFIX", "kind", "trace"]

PREFIX = "model."
"""Before the names of the network's modules and tensors in a traced graph."""


def kind(module: nn.Module) -> type[nn.Module]:
    """The class of the module, also where its weights are parametrized, which gives it a class of its own."""
    return parametrize.type_before_parametrizations(module)


def trace(model: nn.Module, leaves: Collection[object], keep: Collection[str] = ()) -> tuple[nn.Module, fx.Graph]:
    """The graph of `model` in eval mode, and a module that holds what it refers to.

    Args:
        model: left as it was: its mode is restored, its hooks are not called.
        leaves: classes of modules that become one node each, beside those of torch.nn; functions likewise.
        keep: paths of modules that become one node each.

    Raises:
        InputError: its forward cannot be traced, because it branches on the values of a tensor for example.
    """
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise InputError(f"{type(model).__name__} spreads a network over devices: give that network, model.module")
    root = _Whole(getattr(model, "_orig_mod", model))  # what torch.compile was given
    functions = (leaf for leaf in leaves if isinstance(leaf, FunctionType) and not leaf.__module__.startswith("torch"))
    tracer = _Tracer(autowrap_functions=tuple(functions))
    tracer.leaves, tracer.keep = leaves, keep
    try:
        with _eval_mode(root), _unchecked():
            graph = tracer.trace(root)
    except Exception as error:  # runs the network's own code on stand-ins for tensors: anything may be raised
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"torch.fx cannot trace {type(model).__name__} ({reason}){_way_out(tracer)}") from error
    for node in graph.nodes:
        node.type = None  # annotations of the source, which generated code could not name
    return root, graph


def _way_out(tracer: "_Tracer") -> str:
    """Where tracing failed, and what can be done."""
    path, name = tracer.failed
    if not path.startswith(PREFIX):
        return " in its own forward: make that independent of tensor values, or move the part in question to a module"
    path = path.removeprefix(PREFIX)
    return (
        f" in the forward of {path} ({name}): make that independent of tensor values, or take the module as a whole, "
        f'by a rule, as in linearize(model, rules={{{name}: "identity"}}), or non-linear: keep=("{path}",)'
    )


class _Whole(nn.Module):
    """A root around the network, so that constants that the tracer attaches to its root do not land on the network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        return self.model(x)


class _Proxy(fx.Proxy):
    """Records `x += y` as such; fx.Proxy takes it for `x = x + y`, which leaves other names of x as they were."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    """Stops at modules that have a rule, and goes around the hooks, which expect tensors and may have effects."""

    leaves: Collection[object] = ()
    keep: Collection[str] = ()
    failed = ("", "")  # path and class of the innermost module whose forward raised

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = kind(m) in self.leaves or f"{module_qualified_name}.".removeprefix(PREFIX).strip(".") in self.keep
        return whole or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Loops over the pieces of a tensor that is cut into a given number of them."""
        node, stand_in = obj.node, cast(Any, obj)
        pieces = (
            node.kwargs.get("chunks", [*node.args, None, None][1]) if node.target in ("chunk", torch.chunk) else None
        )
        return (stand_in[i] for i in range(pieces)) if isinstance(pieces, int) else super().iter(obj)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return super().call_module(m, m.forward, args, kwargs)
        except Exception:
            self.failed = self.failed if self.failed[0] else (self.path_of_module(m), kind(m).__name__)
            raise


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _unchecked() -> Iterator[None]:
    """No shape checks meanwhile: annotations hold for tensors, not for the tracer's stand-ins."""
    disabled = config.jaxtyping_disable
    try:
        config.update("jaxtyping_disable", True)
        yield
    finally:
        config.update("jaxtyping_disable", disabled)
