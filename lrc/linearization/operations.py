"""The operations that the table of rules knows, by kind: classes of modules, functions, methods of Tensor."""

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrc.linearization.surgery import AS as AS
from lrc.linearization.surgery import Operation

SIGMOIDS: list[Operation] = [
    *(nn.Sigmoid, F.sigmoid, torch.sigmoid, Tensor.sigmoid, Tensor.sigmoid_, torch.special.expit),
    *(nn.Hardsigmoid, F.hardsigmoid),
]
SATURATING: list[Operation] = [
    *(nn.Tanh, F.tanh, torch.tanh, Tensor.tanh, Tensor.tanh_, torch.erf, Tensor.erf, torch.special.erf),
    *(nn.Hardtanh, F.hardtanh, F.hardtanh_, nn.Softsign, F.softsign),
]
SELF_GATED: list[Operation] = [nn.GELU, F.gelu, nn.SiLU, F.silu, nn.Mish, F.mish, nn.Hardswish, F.hardswish]
WITH_BOUNDS: list[Operation] = [
    *(torch.clamp, Tensor.clamp, Tensor.clamp_, torch.clip, Tensor.clip, Tensor.clip_),
    *(torch.clamp_min, Tensor.clamp_min, torch.clamp_max, Tensor.clamp_max),
]
RELUS: list[Operation] = [nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_]
ROUNDING: list[Operation] = [
    *(torch.round, Tensor.round, torch.floor, Tensor.floor, torch.ceil, Tensor.ceil, torch.trunc, Tensor.trunc),
]
SOFTMAX: list[Operation] = [nn.Softmax, nn.Softmax2d, F.softmax, torch.softmax, Tensor.softmax]
ACTIVATIONS: list[Operation] = [
    *(nn.ReLU6, F.relu6, torch.selu, torch.celu, torch.prelu, Tensor.prelu, torch.rrelu),
    *(nn.LeakyReLU, F.leaky_relu, F.leaky_relu_, nn.PReLU, F.prelu, nn.RReLU, F.rrelu, F.rrelu_),
    *(nn.ELU, F.elu, F.elu_, nn.CELU, F.celu, F.celu_, nn.SELU, F.selu, F.selu_),
    *(nn.Softplus, F.softplus, nn.LogSigmoid, F.logsigmoid, nn.Hardshrink, F.hardshrink, nn.Softshrink, F.softshrink),
    *(nn.Tanhshrink, F.tanhshrink, nn.Threshold, F.threshold),
    *(*RELUS, *WITH_BOUNDS, *ROUNDING, *SELF_GATED, *SIGMOIDS, *SATURATING),
]
DROPOUT: list[Operation] = [
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout),
]
BATCH_NORMS: list[Operation] = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, F.batch_norm]
NORMS: list[Operation] = [
    *(nn.LayerNorm, F.layer_norm, torch.layer_norm, nn.GroupNorm, F.group_norm, torch.group_norm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, F.instance_norm, nn.RMSNorm, F.rms_norm),
    *(nn.LocalResponseNorm, F.local_response_norm, nn.CrossMapLRN2d, F.normalize),
]
DEVIATIONS: list[Operation] = [
    *(torch.norm, Tensor.norm, torch.linalg.norm, torch.linalg.vector_norm, torch.std, Tensor.std),
    *(torch.var, Tensor.var),
]
"""What a norm divides by."""
ATTENTION: list[Operation] = [nn.MultiheadAttention, F.multi_head_attention_forward, F.scaled_dot_product_attention]
LAYERS: list[Operation] = [
    *(nn.Linear, F.linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, F.conv1d, F.conv2d, F.conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
]
AVERAGES: list[Operation] = [
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(torch.mean, Tensor.mean, torch.sum, Tensor.sum, torch.cumsum, Tensor.cumsum),
]
CASTS: list[Operation] = [Tensor.to, Tensor.type]
ARRANGEMENTS: list[Operation] = [
    *(nn.Identity, nn.Flatten, torch.flatten, Tensor.flatten, nn.Unflatten, torch.unflatten, Tensor.unflatten),
    *(torch.reshape, Tensor.reshape, Tensor.view, torch.ravel, Tensor.ravel),
    *(torch.squeeze, Tensor.squeeze, torch.unsqueeze, Tensor.unsqueeze, torch.movedim, Tensor.movedim),
    *(torch.permute, Tensor.permute, torch.transpose, Tensor.transpose, torch.moveaxis, Tensor.moveaxis),
    *(torch.swapaxes, Tensor.swapaxes, torch.swapdims, Tensor.swapdims, torch.t, Tensor.t),
    *((getattr, "T"), (getattr, "mT"), operator.getitem, torch.narrow, Tensor.narrow, torch.select, Tensor.select),
    *(torch.chunk, Tensor.chunk, torch.split, Tensor.split, torch.unbind, Tensor.unbind, torch.tensor_split),
    *(Tensor.expand, torch.broadcast_to, Tensor.broadcast_to, Tensor.contiguous, Tensor.unfold),
    *(torch.diagonal, Tensor.diagonal, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16),
    *(Tensor.cpu, Tensor.cuda, *AS, *CASTS),
]
COPIES: list[Operation] = [
    *(torch.clone, Tensor.clone, torch.flip, Tensor.flip, torch.roll, Tensor.roll, torch.rot90, Tensor.rot90),
    *(Tensor.repeat, torch.tile, Tensor.tile, torch.repeat_interleave, Tensor.repeat_interleave),
    *(torch.index_select, Tensor.index_select, torch.gather, Tensor.gather, torch.take_along_dim),
    *(torch.pixel_shuffle, torch.pixel_unshuffle, torch.channel_shuffle),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.CircularPad1d, nn.CircularPad2d),
    *(nn.CircularPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.PixelShuffle, F.pixel_shuffle, nn.PixelUnshuffle, F.pixel_unshuffle, nn.ChannelShuffle, F.channel_shuffle),
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, F.interpolate, F.grid_sample, F.fold, F.unfold),
    *(nn.Fold, nn.Unfold, torch.tril, Tensor.tril, torch.triu, Tensor.triu),
]
PADDINGS: list[Operation] = [
    *(F.pad, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(torch.constant_pad_nd,),
]
QUOTIENTS: list[Operation] = [
    *(operator.truediv, torch.div, Tensor.div, torch.true_divide, Tensor.true_divide, torch.divide, Tensor.divide),
]
MASKS: list[Operation] = [operator.neg, torch.neg, Tensor.neg, torch.masked_fill, Tensor.masked_fill]
SUMS: list[Operation] = [
    *(operator.add, torch.add, Tensor.add, operator.sub, torch.sub, Tensor.sub, torch.subtract, torch.rsub),
    *(torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack, torch.dstack),
]
MULTIPLICATIONS: list[Operation] = [operator.mul, torch.mul, Tensor.mul, torch.multiply, Tensor.multiply]
"""Number by number."""
PRODUCTS: list[Operation] = [
    *(*MULTIPLICATIONS, operator.matmul, torch.matmul, Tensor.matmul, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm),
    *(torch.einsum, torch.mv, Tensor.mv, torch.dot, torch.tensordot),
]
COMPARISONS: list[Operation] = [
    *(operator.gt, operator.ge, torch.gt, torch.ge, Tensor.gt, Tensor.ge, torch.greater, torch.greater_equal),
]
POWERS: list[Operation] = [operator.pow, torch.pow, Tensor.pow, torch.square, Tensor.square]
MATRIX_SUMS: list[Operation] = [torch.addmm, Tensor.addmm, torch.addmv, Tensor.addmv, torch.baddbmm, Tensor.baddbmm]
MAXIMA: list[Operation] = [torch.max, Tensor.max, torch.amax, Tensor.amax]
SORTS: list[Operation] = [torch.sort, Tensor.sort]
ELEMENTWISE: frozenset[Operation] = frozenset(
    (
        *(*ACTIVATIONS, *PRODUCTS, *SUMS, *QUOTIENTS, *MASKS, *POWERS, torch.exp, Tensor.exp, torch.expm1),
        *(Tensor.expm1, torch.log1p, Tensor.log1p, torch.sqrt, Tensor.sqrt, torch.rsqrt, Tensor.rsqrt, torch.sin),
        *(torch.reciprocal, Tensor.reciprocal, torch.abs, Tensor.abs, torch.cos),
    )
)
"""Number by number, where all arguments are numbers or have the same shape."""
SHAPES: list[Operation] = [
    *((getattr, "shape"), (getattr, "ndim"), (getattr, "dtype"), (getattr, "device")),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.new_tensor),
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, Tensor.new_empty),
]
