"""What becomes of each operation of a network when it is linearized: the rules, and the table that assigns them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.models.swin_transformer import shifted_window_attention

from lrc.linearization import operations as ops
from lrc.linearization.attention import attention, uniform_windows, windows
from lrc.linearization.gates import equal_shares, filled, glu, product, softmax
from lrc.linearization.inplace import copied
from lrc.linearization.surgery import Operation, Rule, Surgery, constant, first, identity, others, refuse
from lrc.utils.errors import InputError

__all__ = ["RULES", "VIEWS", "Replacement", "extended"]


def linear(surgery: Surgery, node: fx.Node) -> None:
    """Kept: linear in the first argument, which alone may depend on the image."""
    if nodes := surgery.data_among(others(node)):
        refuse(surgery, node, f"it is linear in its first argument, but {nodes[0].name!r} depends on the image too")


def divided(surgery: Surgery, node: fx.Node) -> None:
    """Kept as linear, unless the quotient is rounded."""
    linear(surgery, node)
    if node.kwargs.get("rounding_mode") is not None:
        refuse(surgery, node, "a rounded quotient is not linear")


def jointly_linear(surgery: Surgery, node: fx.Node) -> None:
    """Kept: linear in all its arguments together."""


def chosen(surgery: Surgery, node: fx.Node) -> None:
    """Kept where the choice between the two values does not depend on the image."""
    method = node.op == "call_method"
    condition: Any = node.kwargs.get("condition", [*node.args, None, None][1 if method else 0])
    if condition in surgery.data:
        refuse(surgery, node, f"the image decides by {condition.name!r} which value is taken")


def shaped(surgery: Surgery, node: fx.Node) -> None:
    """Kept: linear in the first argument; of the second only shape or type count."""
    other = node.kwargs.get("other", node.args[-1])
    if other in surgery.data:
        node.args, node.kwargs = (first(node), surgery.insert(node, torch.zeros_like, other)), {}
        surgery.mark()


def batch_norm(surgery: Surgery, node: fx.Node) -> None:
    """Taken out, or made the affine map that it is in eval mode."""
    linear(surgery, node)
    if surgery.batchnorm == "remove":
        return identity(surgery, node)
    if node.op == "call_module":
        mean, training = surgery.part(node.target).running_mean, False
    else:
        mean, *_, training = _options(node, running_mean=None, running_var=None, weight=None, bias=None, training=False)
    if mean is None or training:
        refuse(surgery, node, 'it has no running statistics to fold: use batchnorm="remove"')
    if node.op == "call_module":
        _call_batch_norm(surgery, node)
    return None


def norm(surgery: Surgery, node: fx.Node) -> None:
    """Layer, group, instance and response norm: taken out; folded like batch norm if there are statistics to fold."""
    linear(surgery, node)
    if surgery.batchnorm == "remove" or not _has_statistics(surgery, node):
        identity(surgery, node)
    elif node.op == "call_module":
        _call_batch_norm(surgery, node)


def _has_statistics(surgery: Surgery, node: fx.Node) -> bool:
    """Whether a norm takes recorded statistics in eval mode, as instance norm may."""
    if node.op == "call_module":
        return getattr(surgery.part(node.target), "running_mean", None) is not None
    mean, *_, fresh = _options(node, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True)
    return node.target is F.instance_norm and mean is not None and not fresh


def _call_batch_norm(surgery: Surgery, node: fx.Node) -> None:
    """The module as a call of F.batch_norm, which no later train() turns back to the statistics of the batch."""
    module = surgery.part(node.target)
    with surgery.graph.inserting_before(node):
        mean, var, weight, bias = (
            None if getattr(module, name) is None else surgery.graph.get_attr(f"{node.target}.{name}")
            for name in ("running_mean", "running_var", "weight", "bias")
        )
    options = {"weight": weight, "bias": bias, "training": False, "momentum": 0.1, "eps": module.eps}
    surgery.replace(node, F.batch_norm, first(node), mean, var, **options)


def average(pool: Callable[..., Tensor]) -> Rule:
    """The rule that makes max pooling average pooling of the same geometry, by the function `pool`."""

    def rule(surgery: Surgery, node: fx.Node) -> None:
        defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
        source = surgery.part(node.target) if node.op == "call_module" else node
        size, stride, padding, dilation, ceil, indices = _options(source, kernel_size=None, **defaults)
        if indices or set(dilation if isinstance(dilation, tuple | list) else [dilation]) != {1}:
            refuse(surgery, node, "average pooling has neither indices nor dilation")
        surgery.replace(node, pool, first(node), size, stride, padding, ceil, surgery.pooling == "average")

    return rule


def adaptive_average(pool: Callable[..., Tensor]) -> Rule:
    """The rule that makes adaptive max pooling adaptive average pooling to the same size, by the function `pool`."""

    def rule(surgery: Surgery, node: fx.Node) -> None:
        source = surgery.part(node.target) if node.op == "call_module" else node
        size, indices = _options(source, output_size=None, return_indices=False)
        if indices:
            refuse(surgery, node, "average pooling has no indices")
        surgery.replace(node, pool, first(node), size)

    return rule


def _options(source: nn.Module | fx.Node, **defaults: Any) -> list[Any]:
    """What a module was built with, or a call got after its first argument; names and order as in `defaults`."""
    if isinstance(source, nn.Module):
        return [getattr(source, name) for name in defaults]
    given = {**dict(zip(defaults, source.args[1:], strict=False)), **source.kwargs}
    return [given.get(name, default) for name, default in defaults.items()]


class Replacement(nn.Module):
    """A function in the place of an operation; of a module, in the place of its forward: it gets the module first."""

    def __init__(self, function: Callable[..., Any], module: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.module = function, module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs) if self.module is None else self.function(self.module, *args, **kwargs)


def replaced(function: Callable[..., Any]) -> Rule:
    """The rule that puts a function in the place of an operation. That it is linear is for the user to see to."""

    def rule(surgery: Surgery, node: fx.Node) -> None:
        own = node.op == "call_module" and not isinstance(function, nn.Module)
        module = surgery.part(node.target) if own else None
        name = f"_replacement_{node.name}"
        surgery.root.add_module(name, Replacement(function, module))
        with surgery.graph.inserting_before(node):
            new = surgery.graph.call_module(name, node.args, node.kwargs)
        surgery.swap(node, new)

    return rule


NAMES: dict[str, Rule] = {"identity": identity, "linear": linear}


def extended(rules: Mapping[Any, Any] | None) -> dict[Operation, Rule]:
    """The table with a user's own rules.

    Raises:
        InputError: a key that is no operation, or a value that is no rule.
    """
    own: dict[Operation, Rule] = {}
    for operation, rule in (rules or {}).items():
        attribute = isinstance(operation, tuple) and operation[:1] == (getattr,)
        if not (callable(operation) or attribute) or isinstance(operation, nn.Module):
            raise InputError(f"rules: {operation!r} is no operation: give the class of a module, or a function")
        if not (rule in NAMES if isinstance(rule, str) else callable(rule)) or isinstance(rule, type):
            names = ", ".join(map(repr, NAMES))
            raise InputError(
                f"rules: {rule!r} must be {names}, a rule of RULES, or a function in the operation's place"
            )
        own[operation] = NAMES[rule] if isinstance(rule, str) else rule if _is_rule(rule) else replaced(rule)
    return RULES | own


def _is_rule(function: Callable[..., Any]) -> bool:
    try:
        return list(inspect.signature(function).parameters) == ["surgery", "node"]
    except (TypeError, ValueError):  # built in
        return False


def _table(*entries: tuple[Rule, list[Operation]]) -> dict[Operation, Rule]:
    return {operation: rule for rule, operations in entries for operation in operations}


VIEWS: frozenset[Operation] = frozenset(ops.ARRANGEMENTS + ops.DROPOUT)
"""Operations whose result may share memory with their first argument; dropout, out of training, is that argument."""

RULES: dict[Operation, Rule] = _table(
    (identity, ops.ACTIVATIONS),
    (identity, ops.DROPOUT),
    (batch_norm, ops.BATCH_NORMS),
    (norm, ops.NORMS),
    (average(F.avg_pool1d), [nn.MaxPool1d, F.max_pool1d, torch.max_pool1d]),
    (average(F.avg_pool2d), [nn.MaxPool2d, F.max_pool2d, torch.max_pool2d]),
    (average(F.avg_pool3d), [nn.MaxPool3d, F.max_pool3d, torch.max_pool3d]),
    (adaptive_average(F.adaptive_avg_pool1d), [nn.AdaptiveMaxPool1d, F.adaptive_max_pool1d]),
    (adaptive_average(F.adaptive_avg_pool2d), [nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d]),
    (adaptive_average(F.adaptive_avg_pool3d), [nn.AdaptiveMaxPool3d, F.adaptive_max_pool3d]),
    (linear, ops.LAYERS + ops.AVERAGES + ops.ARRANGEMENTS + ops.COPIES + ops.MASKS + [uniform_windows, copied]),
    (divided, ops.QUOTIENTS),
    (shaped, ops.AS),
    (jointly_linear, [*ops.SUMS, Replacement]),
    (chosen, [torch.where, Tensor.where]),
    (product, ops.PRODUCTS),
    (glu, [nn.GLU, F.glu]),
    (softmax, ops.SOFTMAX),
    (attention, ops.ATTENTION),
    (windows, [shifted_window_attention]),
    (constant, [*ops.SHAPES, equal_shares, filled]),
)
"""What becomes of each operation; one that is not here is refused.

`rules` of `lrc.linearize` extends the table for one call. `RULES[MyLayer] = RULES[nn.ReLU]` does for all calls: it
takes a layer out, as `RULES[nn.Conv2d]` keeps it as linear in its first argument.
"""
