"""A network as a graph of operations, as it is in eval mode, without touching the network."""

import copy
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any, cast, no_type_check

import torch
from jaxtyping import config
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from lrc.utils.errors import InputError, first_line

PREFIX = "model."
"""Before the names of the network's modules and tensors in a traced graph."""

MAKERS = (WeightNorm, SpectralNorm, BasePruningMethod)
"""Hooks that make the weights of a module from others before it runs."""

RANDOM = {
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like, torch.randint_like),
    *(torch.bernoulli, torch.multinomial, torch.normal, torch.poisson, Tensor.bernoulli, Tensor.bernoulli_),
    *(Tensor.normal_, Tensor.uniform_, Tensor.random_, Tensor.exponential_, Tensor.multinomial),
}
"""What draws at each call."""


def kind(module: nn.Module, known: Collection[object] = ()) -> type[nn.Module]:
    """The class of the module, or the one among `known` that it inherits its forward from unchanged.

    Weights that are parametrized give a module a class of its own; that does not count.
    """
    own: Any = parametrize.type_before_parametrizations(module)
    return next((c for c in own.__mro__ if c in known and getattr(c, "forward", None) is own.forward), own)


def trace(
    model: nn.Module, leaves: Collection[object], keep: Collection[str] = (), input_shape: Sequence[int] | None = None
) -> tuple[nn.Module, fx.Graph]:
    """The graph of `model` in eval mode, and a module that holds what it refers to.

    First torch.fx runs its code on stand-ins for tensors of any size. Where the code asks for more than stand-ins
    know, it is run on images of `input_shape` and what it does is recorded; the graph is then one for that size.

    Args:
        model: left as it was: a twin that shares its parameters is run, and that without hooks.
        leaves: classes of modules that become one node each, beside those of torch.nn; functions likewise.
        keep: paths of modules that become one node each.
        input_shape: of an image, if known.

    Raises:
        InputError: its forward cannot be traced, because it branches on the values of a tensor for example.
    """
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise InputError(f"{type(model).__name__} spreads a network over devices: give that network, model.module")
    model = getattr(model, "_orig_mod", model)  # what torch.compile was given
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise InputError(
            f"{type(model).__name__} is or holds TorchScript, which cannot be traced: give the Python code"
        )
    root = Whole(twin(model))
    functions = (leaf for leaf in leaves if isinstance(leaf, FunctionType) and not leaf.__module__.startswith("torch"))
    tracer = _Tracer(autowrap_functions=tuple(functions))
    tracer.leaves, tracer.keep = leaves, keep
    try:
        with unchecked(), Repeatable(), torch.no_grad():
            graph = tracer.trace(root)
    except InputError:
        raise
    except Exception as error:  # runs the network's own code on stand-ins for tensors: anything may be raised
        if input_shape is not None:
            from lrc.linearization.recording import record

            return record(model, leaves, keep, input_shape)
        raise InputError(
            f"torch.fx cannot trace {type(model).__name__} ({first_line(error)}){_way_out(tracer)}"
        ) from error
    for node in graph.nodes:
        node.type = None  # annotations of the source, which generated code could not name
    root.model = model
    return root, graph


def _way_out(tracer: "_Tracer") -> str:
    """Where tracing failed, and what can be done."""
    path, name = tracer.failed
    example = "if it looks at shapes only, give that of an image, input_shape=(3, 32, 32), as an example; else"
    if not path.startswith(PREFIX):
        return f" in its own forward: {example} make that independent of tensor values, or move the part to a module"
    path = path.removeprefix(PREFIX)
    return (
        f" in the forward of {path} ({name}): {example} make that independent of tensor values, or take the module as "
        f'a whole, by a rule for the class {name}, or non-linear: keep=("{path}",)'
    )


def twin(model: nn.Module) -> nn.Module:
    """A copy in eval mode, without hooks, that shares the parameters, so that nothing done to it reaches the model."""
    held = [vars(m) for m in model.modules()]
    memo: dict[int, Any] = {id(p): p for own in held for p in own["_parameters"].values()}
    tensors = (t for own in held for t in (*own.values(), *own["_buffers"].values()) if isinstance(t, Tensor))
    memo.update({id(t): t.detach().clone() for t in tensors})
    memo.update({id(h): h for own in held for hooks in _hooks(own).values() for h in hooks.values() if _is_effect(h)})
    try:
        result = copy.deepcopy(model, dict(memo))
    except Exception:  # whatever the modules hold is copied: anything may be raised
        result = copy.deepcopy(model, memo | _uncopied(held, memo))
    for module in result.modules():
        module.training = False
        silence(module)
    return result


def _uncopied(held: Sequence[dict[str, Any]], memo: dict[int, Any]) -> dict[int, Any]:
    """What cannot be copied, for itself: locks, files, generators."""
    found = {}
    for value in (v for own in held for v in own.values() if not isinstance(v, Tensor | nn.Module)):
        try:
            copy.deepcopy(value, dict(memo))
        except Exception:  # see above
            found[id(value)] = value
    return found


def silence(module: nn.Module) -> None:
    """Takes the hooks off that do not make its weights."""
    for name, hooks in _hooks(vars(module)).items():
        module.__dict__[name] = type(hooks)({key: hook for key, hook in hooks.items() if not _is_effect(hook)})


def _hooks(own: Mapping[str, Any]) -> dict[str, Any]:
    return {name: hooks for name, hooks in own.items() if name.endswith("_hooks") and isinstance(hooks, dict)}


def _is_effect(hook: Any) -> bool:
    return not isinstance(hook, MAKERS)


class Whole(nn.Module):
    """A root around the network, so that constants that the tracer attaches to its root do not land on the network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        return logits(self.model(x))


def like(network: nn.Module, default: Tensor) -> Tensor:
    """A tensor of the type and on the device of a network: one of its own, or the default if it has none."""
    return next((t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()), default)


def logits(output: Any) -> Any:
    """The logits of an output that is an object or a mapping which has such; else the output itself."""
    if isinstance(output, Mapping):
        return output.get("logits", output)
    return output if isinstance(output, Tensor | fx.Proxy) else getattr(output, "logits", output)


class Repeatable(TorchFunctionMode):
    """Refuses to freeze what the network draws at random while it is traced."""

    @no_type_check
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RANDOM:
            raise InputError(f"the network draws at random in its forward ({func.__name__}): no one map describes it")
        return func(*args, **(kwargs or {}))


class _Proxy(fx.Proxy):
    """Records `x += y` as such; fx.Proxy takes it for `x = x + y`, which leaves other names of x as they were."""


def _recorded(operation: Callable[..., Any]) -> Callable[..., fx.Proxy]:
    return lambda proxy, *args: proxy.tracer.create_proxy("call_function", operation, (proxy, *args), {})


for _operation in (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem):
    setattr(_Proxy, f"__{_operation.__name__}__", _recorded(_operation))


def is_leaf(module: nn.Module, path: str, leaves: Collection[object], keep: Collection[str]) -> bool:
    """Whether the module becomes one node: it has a rule, is kept, or is a layer of torch.nn without others in it."""
    own = kind(module, leaves)
    alone = own.__module__.startswith(("torch.nn", "torch.ao.nn")) and not any(module.children())
    alone = alone and not isinstance(module, nn.Sequential)
    return own in leaves or f"{path}.".removeprefix(PREFIX).strip(".") in keep or alone


class _Tracer(fx.Tracer):
    """Stops at modules that have a rule, and goes around the hooks, which expect tensors and may have effects."""

    leaves: Collection[object] = ()
    keep: Collection[str] = ()
    failed = ("", "")  # path and class of the innermost module whose forward raised

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m, module_qualified_name, self.leaves, self.keep)

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
def unchecked() -> Iterator[None]:
    """No shape checks meanwhile: annotations hold for tensors, not for the tracer's stand-ins."""
    disabled = config.jaxtyping_disable
    try:
        config.update("jaxtyping_disable", True)
        yield
    finally:
        config.update("jaxtyping_disable", disabled)
