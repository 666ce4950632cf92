"""Attention made uniform mixing of the values, where it is one operation of the graph."""

import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx

from lrc.linearization.gates import emptied
from lrc.linearization.surgery import Operation, Surgery, refuse


def attention(surgery: Surgery, node: fx.Node) -> None:
    """Attention mixes its values uniformly: queries and keys become zeros of their shapes, all tokens score alike.

    Masks exclude what they exclude. A mask of numbers excludes what it lowers by 50 or more below the highest; other
    biases, of positions for one, count for nothing, as where attention is written out (`equal_shares`). What of a mask
    depends on the image counts as zero. The weights of the attention, where they are asked for, become constant too.
    """
    fused = node.target is F.scaled_dot_product_attention
    given = dict(zip(_names(surgery.operation(node)), node.args, strict=False)) | dict(node.kwargs)
    surgery.note(node, "uniform mixing of its values")
    for name in ("query", "key"):
        if given[name] in surgery.data:
            given[name] = surgery.insert(node, torch.zeros_like, given[name])
    for name in ("key_padding_mask", "attn_mask"):
        if given.get(name) is not None:
            given[name] = surgery.insert(node, allowed if fused else excluded, emptied(surgery, given[name], node))
    if masks := surgery.data_among({k: v for k, v in given.items() if k not in ("query", "key", "value")}):
        refuse(surgery, node, f"{masks[0].name!r} among its options depends on the image")
    if fused:  # whose dropout knows no mode
        given["dropout_p"] = 0.0
    node.args, node.kwargs = (), given
    surgery.mark()


def _names(operation: Operation) -> Sequence[str]:
    """What the arguments of an attention are called."""
    if operation is F.scaled_dot_product_attention:
        return ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    module = isinstance(operation, type)
    return list(inspect.signature(operation.forward if module else operation).parameters)[module:]


def allowed(mask: Tensor) -> Tensor:
    """Which tokens a mask of `F.scaled_dot_product_attention` leaves: true, or less than 50 below the highest."""
    return mask if mask.dtype is torch.bool else mask >= mask.amax(-1, keepdim=True) - 50


def excluded(mask: Tensor) -> Tensor:
    """Which tokens a mask of `nn.MultiheadAttention` excludes."""
    return mask if mask.dtype is torch.bool else ~allowed(mask)


def windows(surgery: Surgery, node: fx.Node) -> None:
    """Attention mixes its values uniformly: within a window, each value is the mean of those that the mask lets it see.

    In a shifted window these are the tokens that were neighbours in the image before the shift came around its edge.
    """
    given = inspect.signature(surgery.operation(node)).bind(*node.args, **node.kwargs).arguments
    x = given.pop("input")
    if names := surgery.data_among(given):
        refuse(surgery, node, f"it is linear in its input, but {names[0].name!r} depends on the image too")
    options = ("window_size", "num_heads", "shift_size", "qkv_bias", "proj_bias")
    weights = (given[name] for name in ("qkv_weight", "proj_weight", "relative_position_bias"))
    surgery.replace(node, uniform_windows, x, *weights, **{k: v for k, v in given.items() if k in options})


def uniform_windows(
    x: Float[Tensor, "n h w c"],
    qkv_weight: Float[Tensor, "c3 c"],
    proj_weight: Float[Tensor, "c c"],
    position_bias: Tensor,
    *,
    window_size: Sequence[int],
    num_heads: int,
    shift_size: Sequence[int],
    qkv_bias: Tensor | None = None,
    proj_bias: Tensor | None = None,
) -> Float[Tensor, "n h w c"]:
    """Windowed attention of torchvision whose scores are zero, but for the mask of shifted windows (-100)."""
    from torchvision.models.swin_transformer import shifted_window_attention  # here: slow to import

    values = torch.arange(len(qkv_weight), device=x.device) >= 2 * x.shape[-1]
    return shifted_window_attention(
        x,
        qkv_weight * values[:, None],
        proj_weight,
        torch.zeros_like(position_bias),
        list(window_size),
        num_heads,
        list(shift_size),
        qkv_bias=None if qkv_bias is None else qkv_bias * values,
        proj_bias=proj_bias,
        training=False,
    )
