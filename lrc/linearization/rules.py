"""What becomes of each operation of a network when it is linearized: the rules, and the table that assigns them."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from lrc.linearization.surgery import Operation, Rule, Surgery, constant, first, identity, refuse

__all__ = ["RULES", "VIEWS"]


def linear(surgery: Surgery, node: fx.Node) -> None:
    """Kept: linear in the first argument, which alone may depend on the image."""
    others = (node.args[1:], node.kwargs) if node.args else list(node.kwargs.values())[1:]
    names = _data_among(surgery, others)
    if names:
        refuse(surgery, node, f"it is linear in its first argument, but {names[0]} depends on the image too")


def jointly_linear(surgery: Surgery, node: fx.Node) -> None:
    """Kept: linear in all its arguments together."""


def product(surgery: Surgery, node: fx.Node) -> None:
    """Kept where one factor alone depends on the image."""
    names = _data_among(surgery, (node.args, node.kwargs))
    if len(names) > 1:
        reason = f"it multiplies {' and '.join(names)}, which all depend on the image: take such a gate out of the "
        refuse(surgery, node, reason + "network, or give the module around it a rule in lrc.linearization.RULES")


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


def _data_among(surgery: Surgery, arguments: Any) -> list[str]:
    """Names of the nodes among the arguments that depend on the pixels, each as often as it occurs."""
    names: list[str] = []

    def note(node: fx.Node) -> fx.Node:
        names.extend([repr(node.name)] if node in surgery.data else [])
        return node

    map_arg(arguments, note)
    return names


def _table(*entries: tuple[Rule, list[Operation]]) -> dict[Operation, Rule]:
    return {operation: rule for rule, operations in entries for operation in operations}


ACTIVATIONS = [
    *(nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, nn.ReLU6, F.relu6),
    *(nn.LeakyReLU, F.leaky_relu, F.leaky_relu_, nn.PReLU, F.prelu, nn.RReLU, F.rrelu, F.rrelu_),
    *(nn.ELU, F.elu, F.elu_, nn.CELU, F.celu, F.celu_, nn.SELU, F.selu, F.selu_, nn.GELU, F.gelu),
    *(nn.SiLU, F.silu, nn.Mish, F.mish, nn.Hardswish, F.hardswish, nn.Hardtanh, F.hardtanh, F.hardtanh_),
    *(nn.Softplus, F.softplus, nn.Softsign, F.softsign, nn.Tanh, F.tanh, torch.tanh, Tensor.tanh, Tensor.tanh_),
    *(nn.Sigmoid, F.sigmoid, torch.sigmoid, Tensor.sigmoid, Tensor.sigmoid_, nn.Hardsigmoid, F.hardsigmoid),
]
DROPOUT = [
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout),
]
LAYERS = [
    *(nn.Linear, F.linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, F.conv1d, F.conv2d, F.conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
]
AVERAGES = [
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(torch.mean, Tensor.mean, torch.sum, Tensor.sum, nn.Upsample, F.interpolate),
]
ARRANGEMENTS = [
    *(nn.Identity, nn.Flatten, torch.flatten, Tensor.flatten, nn.Unflatten, torch.unflatten, Tensor.unflatten),
    *(torch.reshape, Tensor.reshape, Tensor.view, torch.squeeze, Tensor.squeeze, torch.unsqueeze, Tensor.unsqueeze),
    *(torch.permute, Tensor.permute, torch.transpose, Tensor.transpose, torch.movedim, Tensor.movedim),
    *((getattr, "T"), (getattr, "mT"), operator.getitem, torch.narrow, Tensor.narrow, torch.select, Tensor.select),
    *(torch.chunk, Tensor.chunk, torch.split, Tensor.split, torch.unbind, Tensor.unbind),
    *(Tensor.expand, Tensor.contiguous, Tensor.to, Tensor.float, Tensor.double),
]
COPIES = [
    *(torch.clone, Tensor.clone, torch.flip, Tensor.flip, torch.roll, Tensor.roll, Tensor.repeat, torch.tile),
    *(F.pad, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.CircularPad1d, nn.CircularPad2d),
    *(nn.CircularPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.PixelShuffle, F.pixel_shuffle, nn.PixelUnshuffle, F.pixel_unshuffle, nn.ChannelShuffle, F.channel_shuffle),
]
QUOTIENTS = [
    *(operator.truediv, torch.div, Tensor.div, torch.true_divide, torch.divide),
    *(operator.neg, torch.neg, Tensor.neg),
]
SUMS = [
    *(operator.add, torch.add, Tensor.add, operator.sub, torch.sub, Tensor.sub),
    *(torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack),
]
PRODUCTS = [
    *(operator.mul, torch.mul, Tensor.mul, torch.multiply, operator.matmul, torch.matmul, Tensor.matmul),
    *(torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.einsum),
]
SHAPES = [
    *((getattr, "shape"), (getattr, "ndim"), (getattr, "dtype"), (getattr, "device")),
    *(Tensor.size, Tensor.dim, Tensor.numel, torch.zeros_like, torch.ones_like, Tensor.new_zeros, Tensor.new_ones),
]

VIEWS: frozenset[Operation] = frozenset(ARRANGEMENTS)
"""Operations whose result may share memory with their first argument."""

RULES: dict[Operation, Rule] = _table(
    (identity, ACTIVATIONS),
    (identity, DROPOUT),
    (batch_norm, [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, F.batch_norm]),
    (average(F.avg_pool1d), [nn.MaxPool1d, F.max_pool1d, torch.max_pool1d]),
    (average(F.avg_pool2d), [nn.MaxPool2d, F.max_pool2d, torch.max_pool2d]),
    (average(F.avg_pool3d), [nn.MaxPool3d, F.max_pool3d, torch.max_pool3d]),
    (adaptive_average(F.adaptive_avg_pool1d), [nn.AdaptiveMaxPool1d, F.adaptive_max_pool1d]),
    (adaptive_average(F.adaptive_avg_pool2d), [nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d]),
    (adaptive_average(F.adaptive_avg_pool3d), [nn.AdaptiveMaxPool3d, F.adaptive_max_pool3d]),
    (linear, LAYERS + AVERAGES + ARRANGEMENTS + COPIES + QUOTIENTS),
    (jointly_linear, SUMS),
    (product, PRODUCTS),
    (constant, SHAPES),
)
"""What becomes of each operation. An operation that is not here is refused; add to the table to have it linearized:
`RULES[MyLayer] = RULES[nn.ReLU]` takes a layer out, `RULES[nn.Conv2d]` keeps it as linear in its first argument."""
