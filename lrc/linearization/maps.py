"""The linear sub-network as what it is: one matrix W, and the vector b."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrc.errors import InputError
from lrc.linearization.network import linearize
from lrc.linearization.surgery import BatchNorm, Pooling

__all__ = ["affine_map", "linear_map"]


def linear_map(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    batchnorm: BatchNorm = "remove",
    pooling: Pooling = "average",
    chunk: int = 128,
) -> Float[Tensor, " classes *input"]:
    """W, one row a class: the derivative of its logit by the image in the linear sub-network, the same at every image.

    All rows of a chunk come out of one backward pass, from one forward pass of a single image.

    Args:
        model: images to logits (n, classes); see `linearize`, also for `batchnorm` and `pooling`. It is left as it was.
        input_shape: of one image, (channels, height, width) as a rule; `model.input_shape` if absent.
        chunk: rows at a time, which bounds the memory.

    Returns:
        W in units of logits a unit of input, of the type and on the device of the model's parameters, detached.

    Raises:
        InputError: no input shape, or one that does not fit the network; an output that is not logits (n, classes);
            and as `linearize`.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3, bias=False))
    >>> W = linear_map(model, (1, 2, 2))
    >>> tuple(W.shape)
    (3, 1, 2, 2)
    >>> torch.allclose(W.flatten(1), model[3].weight @ model[1].weight)
    True
    """
    return affine_map(model, input_shape, batchnorm=batchnorm, pooling=pooling, chunk=chunk)[0]


def affine_map(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    batchnorm: BatchNorm = "remove",
    pooling: Pooling = "average",
    chunk: int = 128,
) -> tuple[Float[Tensor, " classes *input"], Float[Tensor, " classes"]]:
    """W and b of the linear sub-network: `linearize(model)(x)` = W x + b, so b is its output at the black image.

    Args, Raises: as `linear_map`.

    >>> W, b = affine_map(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2))
    >>> tuple(W.shape), tuple(b.shape)
    ((2, 1, 2, 2), (2,))
    """
    if chunk < 1:
        raise InputError(f"chunk must be at least one row, not {chunk}")
    linear, x = linearize(model, batchnorm=batchnorm, pooling=pooling), _black_image(model, input_shape)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        x = x.clone().requires_grad_()
        z = _logits(linear, x)
        units = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)[:, None]
        rows = [
            torch.autograd.grad(z, x, unit, is_grads_batched=True, retain_graph=True)[0][:, 0]
            for unit in torch.split(units, chunk)
        ]
    return torch.cat(rows).contiguous(), z[0].detach()


def _black_image(model: nn.Module, input_shape: Sequence[int] | None) -> Tensor:
    """A batch of one zero image, of the type and on the device of the model."""
    shape = getattr(model, "input_shape", None) if input_shape is None else input_shape
    if shape is None:
        raise InputError(
            f"{type(model).__name__} does not say what it takes: pass the shape of one image, as in "
            "linear_map(model, (3, 32, 32)), or give it an attribute input_shape"
        )
    tensors = (t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
    like = next(tensors, torch.empty(()))
    x = torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _logits(linear: nn.Module, x: Tensor) -> Float[Tensor, "1 classes"]:
    """What the network gives for one image, if that is logits. Convolutions of channels-last weights are faster."""
    weights = {
        name: p.contiguous(memory_format=torch.channels_last) if p.dim() == 4 else p
        for name, p in linear.named_parameters()
    }
    try:
        z = torch.func.functional_call(linear, weights, x)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"the network does not take images of shape {tuple(x.shape[1:])}: {reason}") from error
    if not isinstance(z, Tensor) or z.dim() != 2 or len(z) != 1:
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise InputError(
            f"expected logits of shape (1, classes) for one image, got {got}: wrap the network to give them"
        )
    return z
