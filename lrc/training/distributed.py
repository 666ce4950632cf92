"""Data-parallel training: processes, mean gradients and synchronized batch norm, to the result of one process.

Each process takes its share of every batch. Gradients are averaged after the backward pass, in one exchange: an
objective may run the network as often as it likes, frozen, in either mode, or at other weights. Batch norm takes its
statistics over the whole batch. Attacks need nothing: what they draw depends on the generator and the image.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lrc.data import Images
from lrc.evaluation import Attack, accuracy
from lrc.utils.processes import Fabric, mean_over_processes


def device_of(model: nn.Module) -> torch.device:
    """Where the network is."""
    return next(model.parameters()).device


def average_gradients(model: nn.Module) -> None:
    """Replaces each gradient by its mean over the processes."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    for gradient, average in zip(gradients, mean_over_processes(gradients), strict=True):
        gradient.copy_(average)


@contextmanager
def synchronized_batch_norm(model: nn.Module, fabric: Fabric) -> Iterator[None]:
    """In train mode the batch norms of the model take mean and variance over the batches of all processes.

    `torch.nn.SyncBatchNorm` does so on accelerators alone, and cannot be differentiated twice (PyTorch's issue 61222),
    as the gradient penalties of some objectives must be.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)] if fabric.world_size > 1 else []
    try:
        for layer in layers:
            layer.forward = partial(_normalized, layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            del layer.forward


def _normalized(layer: _BatchNorm, x: Float[Tensor, "n c *shape"]) -> Float[Tensor, "n c *shape"]:
    """Batch norm of x; in train mode with the mean and variance over all processes, whose batches are of one size."""
    if not layer.training:
        return type(layer).forward(layer, x)
    over, count = [0, *range(2, x.dim())], x.numel() // x.shape[1] * dist.get_world_size()
    wide = x if x.dtype == torch.float64 else x.float()
    own = torch.stack(torch.var_mean(wide, over, correction=0))
    place = F.one_hot(torch.tensor(dist.get_rank()), dist.get_world_size()).to(own)
    variances, means = _AllReduceSum.apply(place[:, None, None] * own).unbind(1)  # a row from each process
    centre = means.mean(0)
    variance = (variances + (means - centre).square()).mean(0)
    if layer.track_running_stats:
        _update_running_statistics(layer, centre.detach(), variance.detach() * (count / (count - 1)))
    scale = torch.rsqrt(variance + layer.eps) * (1 if layer.weight is None else layer.weight)
    shift = (0 if layer.bias is None else layer.bias) - centre * scale
    shape = (1, -1, *[1] * (x.dim() - 2))
    return (wide * scale.view(shape) + shift.view(shape)).to(x.dtype)


@torch.no_grad()
def _update_running_statistics(layer: _BatchNorm, centre: Float[Tensor, " c"], variance: Float[Tensor, " c"]) -> None:
    """Moves the running statistics as batch norm does."""
    count, means, variances = layer.num_batches_tracked, layer.running_mean, layer.running_var
    assert count is not None and means is not None and variances is not None
    count.add_(1)
    share = 1 / int(count) if layer.momentum is None else layer.momentum
    means.lerp_(centre, share)
    variances.lerp_(variance, share)


class _AllReduceSum(torch.autograd.Function):
    """The sum over the processes; its own derivative too, as every process has a part of the loss."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _AllReduceSum.apply(gradient)


def shared_accuracy(
    model: nn.Module,
    images: Images,
    *,
    fabric: Fabric,
    attack: Attack | None = None,
    generator: Generator | None = None,
) -> float:
    """Accuracy on the images, each of them classified by one process.

    The batches are those of one process where 500 is a multiple of the number of processes; else an attack draws other
    random starts.
    """
    if fabric.world_size == 1:
        return accuracy(model, images, attack=attack, generator=generator)
    own = images.subset(torch.arange(fabric.global_rank, len(images), fabric.world_size))
    size = max(1, 500 // fabric.world_size)
    share = accuracy(model, own, attack=attack, batch_size=size, generator=generator) if len(own) else 0.0
    right = fabric.all_reduce(torch.tensor(round(share * len(own)), device=fabric.device), reduce_op="sum")
    return int(cast(Tensor, right)) / len(images)
