"""Attention made uniform mixing of the values, where it is one operation of the graph."""

import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx
from torchvision.models.swin_transformer import shifted_window_attention

from lrc.linearization.surgery import Surgery, refuse

__all__ = ["attention", "uniform_windows", "windows"]


def attention(surgery: Surgery, node: fx.Node) -> None:
    """Made to mix its values uniformly: queries and keys become zeros of their shapes, so that all tokens score alike.

    Masks act as they are: a token that a mask excludes gets nothing, one that it lowers gets less. They must not depend
    on the image. The weights of the attention, where they are asked for, become constant too.
    """
    names = ("query", "key", "value")
    given = {name: node.args[i] if i < len(node.args) else node.kwargs[name] for i, name in enumerate(names)}
    rest = (node.args[3:], {k: v for k, v in node.kwargs.items() if k not in names})
    if masks := surgery.data_among(rest):
        refuse(surgery, node, f"its mask {masks[0].name!r} depends on the image")
    for name in ("query", "key"):
        if given[name] in surgery.data:
            given[name] = surgery.insert(node, torch.zeros_like, given[name])
    node.args, node.kwargs = (*given.values(), *rest[0]), rest[1]
    if node.target is F.scaled_dot_product_attention:  # whose dropout knows no mode
        node.args = tuple(0.0 if i == 4 else arg for i, arg in enumerate(node.args))
        node.kwargs = {k: 0.0 if k == "dropout_p" else v for k, v in rest[1].items()}
    surgery.mark()


def windows(surgery: Surgery, node: fx.Node) -> None:
    """The attention of Swin transformers: within a window, each value is the mean of those that the mask lets it see.

    In a shifted window these are the tokens that were neighbours in the image before the shift came around its edge.
    """
    given = inspect.signature(shifted_window_attention).bind(*node.args, **node.kwargs).arguments
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
