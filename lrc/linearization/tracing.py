"""A network as a graph of operations, as it is in eval mode, without touching the network."""

import operator
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import config
from torch import fx, nn
from torch.nn.utils import parametrize

from lrc.errors import InputError

__all__ = ["PREFIX", "kind", "trace"]

PREFIX = "model."
"""Before the names of the network's modules and tensors in a traced graph."""


def kind(module: nn.Module) -> type[nn.Module]:
    """The class of the module, also where its weights are parametrized, which gives it a class of its own."""
    return parametrize.type_before_parametrizations(module)


def trace(model: nn.Module, leaves: Container[object]) -> tuple[nn.Module, fx.Graph]:
    """The graph of `model` in eval mode, and a module that holds what it refers to.

    Args:
        model: left as it was: its mode is restored, its hooks are not called.
        leaves: classes of modules that become one node each, beside those of torch.nn.

    Raises:
        InputError: its forward cannot be traced, because it branches on the values of a tensor for example.
    """
    root, tracer = _Whole(getattr(model, "_orig_mod", model)), _Tracer()  # _orig_mod: what torch.compile was given
    tracer.leaves = leaves
    try:
        with _eval_mode(root), _unchecked():
            graph = tracer.trace(root)
    except Exception as error:  # runs the network's own code on stand-ins for tensors: anything may be raised
        raise InputError(
            f"torch.fx cannot trace {type(model).__name__} ({str(error).strip().splitlines()[0]}): make forward "
            "independent of tensor values, or give the part in question a rule of its own in lrc.linearization.RULES"
        ) from error
    for node in graph.nodes:
        node.type = None  # annotations of the source, which generated code could not name
    return root, graph


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

    leaves: Container[object] = ()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return kind(m) in self.leaves or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().call_module(m, m.forward, args, kwargs)


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
