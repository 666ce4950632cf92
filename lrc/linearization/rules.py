"""What becomes of each operation of a network when it is linearized: the rules, and the table that assigns them."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lrc.linearization import operations as ops
from lrc.linearization.attention import allowed, attention, excluded, uniform_windows
from lrc.linearization.gates import equal_shares, filled, glu, is_scale, product, set_to_one, softmax
from lrc.linearization.inplace import assigned, copied
from lrc.linearization.surgery import Operation, Rule, Surgery, constant, first, identity, others, refuse
from lrc.utils.errors import InputError


def linear(surgery: Surgery, node: fx.Node) -> None:
    """Kept: linear in the first argument, which alone may depend on the image."""
    if nodes := surgery.data_among(others(node)):
        refuse(surgery, node, f"it is linear in its first argument, but {nodes[0].name!r} depends on the image too")


def activation(surgery: Surgery, node: fx.Node) -> None:
    """Activations are the identity; what bounds them, or their slope, must not depend on the image."""
    linear(surgery, node)
    identity(surgery, node)


def divided(surgery: Surgery, node: fx.Node) -> None:
    """Kept as linear; a divisor made of norms of the features becomes one. A rounded quotient is refused."""
    for divisor in surgery.data_among(others(node)):
        if first(node) in surgery.data and is_scale(surgery, divisor):
            set_to_one(surgery, node, divisor)
    surgery.mark()
    linear(surgery, node)
    if node.kwargs.get("rounding_mode") is not None:
        refuse(surgery, node, "a rounded quotient is not linear")


def jointly_linear(surgery: Surgery, node: fx.Node) -> None:
    """Kept: linear in all its arguments together."""


def chosen(surgery: Surgery, node: fx.Node) -> None:
    """Kept where the choice does not depend on the image; an activation by hand, where(x > 0, x, f(x)), becomes x."""
    names = ("input", "condition", "other") if node.op == "call_method" else ("condition", "input", "other")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    condition: Any = given.get("condition")
    if condition not in surgery.data:
        return
    x: Any = given.get("input")
    other = given.get("other", given.get("self"))
    compared = surgery.operation(condition) in ops.COMPARISONS and first(condition) is x
    if not compared or surgery.data_among(others(condition)) or not _elementwise(surgery, other, x):
        refuse(surgery, node, f"the image decides by {condition.name!r} which value is taken")
    surgery.take_out(node, x, "activations are the identity")
    surgery.mark()


def _elementwise(surgery: Surgery, node: Any, x: fx.Node) -> bool:
    """Whether a value is a constant, or computed from x number by number."""
    if node is x or node not in surgery.data:
        return True
    return surgery.operation(node) in ops.ELEMENTWISE and all(_elementwise(surgery, n, x) for n in node.all_input_nodes)


def larger(surgery: Surgery, node: fx.Node) -> None:
    """The larger of x and a multiple of it is an activation, the identity; of two values it is a pool: their mean."""
    a, (b,) = first(node), surgery.options(node, other=None)
    for x, other in ((a, b), (b, a)):
        if x in surgery.data and _multiple(surgery, other, x):
            surgery.take_out(node, x, "activations are the identity")
            return surgery.mark()
    surgery.replace(node, torch.mul, surgery.insert(node, torch.add, a, b), 0.5)
    return None


def _multiple(surgery: Surgery, node: Any, x: fx.Node) -> bool:
    """Whether a value is a constant, or a constant times x."""
    if node is x or node not in surgery.data:
        return True
    operation = surgery.operation(node)
    times = operation in ops.MULTIPLICATIONS or (operation in ops.QUOTIENTS and first(node) is x)
    return times and surgery.data_among((node.args, node.kwargs)) == [x]


def largest(surgery: Surgery, node: fx.Node) -> None:
    """The largest of several values, over positions or channels, is a pool: it becomes their mean."""
    dims, keep = surgery.options(node, dim=None, keepdim=False)
    if surgery.operation(node) in (torch.max, Tensor.max):
        if isinstance(dims, fx.Node) or "other" in node.kwargs:
            return larger(surgery, node)
        if dims is not None:
            _only_values(surgery, node)
    surgery.replace(node, torch.mean, first(node), *([] if dims is None else [dims, keep]))
    return None


def sort(surgery: Surgery, node: fx.Node) -> None:
    """Sorting leaves its values in their order, as an activation leaves them in size."""
    _only_values(surgery, node)
    identity(surgery, node)


def _only_values(surgery: Surgery, node: fx.Node) -> None:
    """Puts the node itself in the place of the values that it gives beside indices."""
    for user in list(node.users):
        if user in surgery.data or user.users:
            if user.args[1:] not in ((0,), ("values",)):
                refuse(surgery, node, "the image decides which indices it gives")
            user.replace_all_uses_with(node)
            surgery.graph.erase_node(user)


def cast(surgery: Surgery, node: fx.Node) -> None:
    """Kept, if to another type of numbers that are not rounded to integers."""
    linear(surgery, node)
    types = [t for t in (*node.args, *node.kwargs.values()) if isinstance(t, torch.dtype)]
    if any(not (t.is_floating_point or t.is_complex) for t in types):
        refuse(surgery, node, f"a cast to {types[0]} is not linear")


def masked(surgery: Surgery, node: fx.Node) -> None:
    """Kept as linear, if what it puts in is finite."""
    linear(surgery, node)
    if any(isinstance(value, float) and not math.isfinite(value) for value in (*node.args, *node.kwargs.values())):
        refuse(surgery, node, "it puts in infinite values, which no linear operation takes out again")


def pad(surgery: Surgery, node: fx.Node) -> None:
    """Kept; what a maximum leaves out (-inf) is zero where that became a mean which counts its padding."""
    linear(surgery, node)
    *_, value = surgery.options(node, pad=None, mode="", value=0.0)
    if not isinstance(value, int | float) or math.isfinite(value):
        return
    if surgery.pooling != "average" or not all(user.target in POOLS for user in node.users):
        refuse(surgery, node, 'its padding is infinite: that goes with pooling="average", straight into a max pool')
    (sides,) = surgery.options(node, **{"padding" if node.op == "call_module" else "pad": None})
    surgery.replace(node, F.pad, first(node), sides)


def shaped(surgery: Surgery, node: fx.Node) -> None:
    """Kept: linear in the first argument; of the second only shape or type count."""
    other = node.kwargs.get("other", node.args[-1])
    if other in surgery.data:
        node.args, node.kwargs = (first(node), surgery.insert(node, torch.zeros_like, other)), {}
        surgery.mark()


def norm(surgery: Surgery, node: fx.Node) -> None:
    """Taken out; folded, where it takes recorded statistics, as the affine map that it is in eval mode."""
    linear(surgery, node)
    if surgery.batchnorm == "remove" or not _has_statistics(surgery, node):
        identity(surgery, node)
    elif node.op == "call_module":
        _call_batch_norm(surgery, node)


def batch_norm(surgery: Surgery, node: fx.Node) -> None:
    """Taken out, or made the affine map that it is in eval mode."""
    if surgery.batchnorm == "fold" and not _has_statistics(surgery, node):
        refuse(surgery, node, 'it has no running statistics to fold: use batchnorm="remove"')
    norm(surgery, node)


def _has_statistics(surgery: Surgery, node: fx.Node) -> bool:
    """Whether a norm takes recorded statistics in eval mode, as batch norm does as a rule and instance norm may."""
    names = dict.fromkeys(("running_mean", "running_var", "weight", "bias"))
    if node.op == "call_module" or node.target is F.batch_norm:
        mean, *_, fresh = surgery.options(node, **names, training=False)
        return mean is not None and (node.op == "call_module" or not fresh)
    mean, *_, fresh = surgery.options(node, **names, use_input_stats=True)
    return node.target is F.instance_norm and mean is not None and not fresh


def _call_batch_norm(surgery: Surgery, node: fx.Node) -> None:
    """The module as a call of F.batch_norm, which no later train() turns back to the statistics of the batch."""
    module = surgery.part(node.target)
    with surgery.graph.inserting_before(node):
        held = {
            name: None if getattr(module, name) is None else surgery.graph.get_attr(f"{node.target}.{name}")
            for name in ("running_mean", "running_var", "weight", "bias")
        }
    surgery.replace(node, F.batch_norm, first(node), **held, training=False, momentum=0.1, eps=module.eps)


def average(pool: Callable[..., Tensor]) -> Rule:
    """The rule that makes max pooling average pooling of the same geometry, by the function `pool`."""

    def rule(surgery: Surgery, node: fx.Node) -> None:
        defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
        size, stride, padding, dilation, ceil, indices = surgery.options(node, kernel_size=None, **defaults)
        if indices or set(dilation if isinstance(dilation, tuple | list) else [dilation]) != {1}:
            refuse(surgery, node, "average pooling has neither indices nor dilation")
        surgery.replace(node, pool, first(node), size, stride, padding, ceil, surgery.pooling == "average")

    return rule


def adaptive_average(pool: Callable[..., Tensor]) -> Rule:
    """The rule that makes adaptive max pooling adaptive average pooling to the same size, by the function `pool`."""

    def rule(surgery: Surgery, node: fx.Node) -> None:
        size, indices = surgery.options(node, output_size=None, return_indices=False)
        if indices:
            refuse(surgery, node, "average pooling has no indices")
        surgery.replace(node, pool, first(node), size)

    return rule


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


REMOVING: frozenset[Rule] = frozenset((identity, activation))
"""Rules that put the first argument in the place of what an operation gives."""

POOLS = {F.avg_pool1d, F.avg_pool2d, F.avg_pool3d}

VIEWS: set[Operation] = {*ops.ARRANGEMENTS, *ops.DROPOUT}
"""Operations whose result may share memory with their first argument; dropout, out of training, is that argument."""

RULES: dict[Operation, Rule] = _table(
    (activation, ops.ACTIVATIONS),
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
    (linear, [(getattr, "data"), (getattr, "values")]),
    (cast, ops.CASTS),
    (masked, [torch.masked_fill, Tensor.masked_fill]),
    (pad, ops.PADDINGS),
    (larger, [torch.maximum, Tensor.maximum, torch.fmax]),
    (largest, ops.MAXIMA),
    (sort, ops.SORTS),
    (divided, ops.QUOTIENTS),
    (shaped, list(ops.AS)),
    (jointly_linear, [*ops.SUMS, Replacement, assigned]),
    (chosen, [torch.where, Tensor.where]),
    (product, ops.PRODUCTS),
    (glu, [nn.GLU, F.glu]),
    (softmax, ops.SOFTMAX),
    (attention, ops.ATTENTION),
    (constant, [*ops.SHAPES, equal_shares, filled, allowed, excluded]),
)
"""What becomes of each operation; one that is not here is refused.

`rules` of `lrc.linearize` extends the table for one call. `RULES[MyLayer] = RULES[nn.ReLU]` does for all calls: it
takes a layer out, as `RULES[nn.Conv2d]` keeps it as linear in its first argument.
"""
