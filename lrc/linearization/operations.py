"""The operations that the table of rules knows, by kind: classes of modules, functions, methods of Tensor."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrc.linearization.surgery import AS as AS
from lrc.linearization.surgery import Operation


def named(names: str, *spaces: Any) -> list[Operation]:
    """What the spaces call by these names, each of which one of them must have."""
    found = [[getattr(space, name) for space in spaces if hasattr(space, name)] for name in names.split()]
    assert all(found), names
    return [operation for some in found for operation in some]


def either(names: str) -> list[Operation]:
    """Functions of PyTorch that are methods of tensors too, as most are."""
    return named(names, torch, Tensor)


SIGMOIDS: list[Operation] = [
    *either("sigmoid"),
    *(Tensor.sigmoid_, torch.special.expit, nn.Sigmoid, F.sigmoid, nn.Hardsigmoid, F.hardsigmoid),
]
SATURATING: list[Operation] = [
    *either("tanh erf"),
    *(Tensor.tanh_, torch.special.erf, nn.Tanh, F.tanh, nn.Hardtanh, F.hardtanh, F.hardtanh_, nn.Softsign, F.softsign),
]
SELF_GATED: list[Operation] = [nn.GELU, F.gelu, nn.SiLU, F.silu, nn.Mish, F.mish, nn.Hardswish, F.hardswish]
WITH_BOUNDS: list[Operation] = [*either("clamp clip clamp_min clamp_max"), Tensor.clamp_, Tensor.clip_]
RELUS: list[Operation] = [nn.ReLU, *named("relu relu_", F, torch, Tensor)]
ROUNDING = either("round floor ceil trunc")
SOFTMAX: list[Operation] = [nn.Softmax, nn.Softmax2d, F.softmax, *either("softmax")]
ACTIVATIONS: list[Operation] = [
    *named("relu6 leaky_relu prelu rrelu elu celu selu softplus logsigmoid", F),
    *named("hardshrink softshrink tanhshrink threshold leaky_relu_ rrelu_ elu_ celu_ selu_", F),
    *named("ReLU6 LeakyReLU PReLU RReLU ELU CELU SELU Softplus LogSigmoid Hardshrink Softshrink", nn),
    *(nn.Tanhshrink, nn.Threshold, *either("selu celu prelu rrelu")),
    *(*RELUS, *WITH_BOUNDS, *ROUNDING, *SELF_GATED, *SIGMOIDS, *SATURATING),
]
DROPOUT: list[Operation] = [
    *named("Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout", nn),
    *named("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout", F),
    torch.dropout,
]
BATCH_NORMS = [*named("BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm", nn), F.batch_norm]
NORMS: list[Operation] = [
    *named(
        "LayerNorm GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d RMSNorm LocalResponseNorm CrossMapLRN2d", nn
    ),
    *named("layer_norm group_norm", F, torch),
    *named("instance_norm rms_norm local_response_norm normalize", F),
]
DEVIATIONS = [*either("norm std var"), *named("norm vector_norm", torch.linalg)]
"""What a norm divides by."""
ATTENTION: list[Operation] = [nn.MultiheadAttention, F.multi_head_attention_forward, F.scaled_dot_product_attention]
LAYERS: list[Operation] = [
    *named("Linear Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d", nn),
    *named("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", F),
]
AVERAGES: list[Operation] = [
    *named("AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d", nn),
    *named("avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", F),
    *either("mean sum cumsum"),
]
CASTS: list[Operation] = [Tensor.to, Tensor.type]
ARRANGEMENTS: list[Operation] = [
    *(nn.Identity, nn.Flatten, nn.Unflatten, (getattr, "T"), (getattr, "mT"), operator.getitem, *AS, *CASTS),
    *either("flatten unflatten reshape ravel squeeze unsqueeze permute transpose movedim moveaxis swapaxes swapdims t"),
    *either("narrow select chunk split unbind tensor_split broadcast_to diagonal"),
    *named("view expand contiguous unfold float double half bfloat16 cpu cuda", Tensor),
]
COPIES: list[Operation] = [
    *either("clone flip roll rot90 tile repeat_interleave index_select gather take_along_dim tril triu"),
    *(Tensor.repeat, torch.channel_shuffle, nn.ChannelShuffle, F.channel_shuffle, nn.Fold, F.fold, nn.Unfold, F.unfold),
    *named("pixel_shuffle pixel_unshuffle", F, torch),
    *named("PixelShuffle PixelUnshuffle Upsample UpsamplingNearest2d UpsamplingBilinear2d", nn),
    *(F.interpolate, F.grid_sample),
    *named("ReflectionPad1d ReflectionPad2d ReflectionPad3d CircularPad1d CircularPad2d CircularPad3d", nn),
    *named("ReplicationPad1d ReplicationPad2d ReplicationPad3d", nn),
]
PADDINGS: list[Operation] = [
    *named("ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ConstantPad3d", nn),
    *(F.pad, torch.constant_pad_nd),
]
QUOTIENTS = [operator.truediv, *either("div true_divide divide")]
MASKS = [operator.neg, *either("neg masked_fill")]
SUMS: list[Operation] = [
    *(operator.add, operator.sub, *either("add sub subtract"), torch.rsub),
    *named("cat concat concatenate stack hstack vstack dstack", torch),
]
MULTIPLICATIONS = [operator.mul, *either("mul multiply")]
"""Number by number."""
PRODUCTS: list[Operation] = [
    *(*MULTIPLICATIONS, operator.matmul, *either("matmul mm bmm mv"), *named("einsum dot tensordot", torch)),
]
COMPARISONS = [operator.gt, operator.ge, *either("gt ge greater greater_equal")]
POWERS = [operator.pow, *either("pow square")]
MATRIX_SUMS = either("addmm addmv baddbmm")
MAXIMA = either("max amax")
SORTS = either("sort")
ELEMENTWISE: frozenset[Operation] = frozenset(
    (
        *(*ACTIVATIONS, *PRODUCTS, *SUMS, *QUOTIENTS, *MASKS, *POWERS),
        *either("exp expm1 log1p sqrt rsqrt sin cos reciprocal abs"),
    )
)
"""Number by number, where all arguments are numbers or have the same shape."""
SHAPES: list[Operation] = [
    *((getattr, "shape"), (getattr, "ndim"), (getattr, "dtype"), (getattr, "device")),
    *named("size dim numel new_zeros new_ones new_full new_tensor new_empty", Tensor),
    *named("zeros_like ones_like full_like empty_like", torch),
]
