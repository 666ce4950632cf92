"""Square attack: random search by squares of colour, from the logits alone."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Generator, Tensor, nn

from lrc.attacks.common import Rows, attacked, laid_out_like, until_fooled
from lrc.attacks.rng import image_keys, signs, uniform
from lrc.attacks.threat_model import Ball, ball, norms, spread
from lrc.utils.checks import check_number, check_whole
from lrc.utils.tensors import Labels, PerImage, Pixels

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, of 10,000, after which the share of pixels changed at once halves."""
BLOCK = 64  # queries whose random numbers are made together


def square(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    eps: float,
    queries: int = 5000,
    norm: str = "linf",
    share: float = 0.8,
    horizon: int | None = None,
    generator: Generator | None = None,
    precision: str = "float32",
) -> Pixels:
    """Images within eps of x that fool the model, by trying random squares and keeping those that raise the margin.

    "linf": starts from vertical stripes of +-eps; a trial sets one square, channel by channel, to +eps or -eps. "l2":
    starts from a grid of tiles; a trial moves the budget of one square to another. No gradient is used.

    Args:
        model, x, y, eps, norm, generator: as in `lrc.attacks.pgd`; x are images (n, c, h, w).
        queries: most logits asked for an image, the start included (the image itself is asked once more, before).
        share: of the pixels that the first squares cover (p of the paper), in (0, 1]; see `side`.
        horizon: number of queries over which the squares shrink to the smallest; `queries` by default. AutoAttack stops
            after 5,000 of 10,000.
        precision: "bf16" runs the network in bfloat16 for the margins that the search goes by; it is asked itself, in
            float32, whether an image fools it.

    Returns:
        For each image the first point found that fools the model, else that of the largest margin; x itself where
        it is misclassified as it is.

    Raises:
        InputError: as in `lrc.attacks.pgd`; queries < 1, a share outside (0, 1], or x that are not images.

    Source: Andriushchenko et al., *Square attack: a query-efficient black-box adversarial attack via random search*
    (2020), algorithms 1 to 3.
    """
    check_whole("queries", queries, 1)
    check_number("share", share, "(0, 1]")
    if horizon is not None:
        check_whole("horizon", horizon, 1)
    with attacked(model, x, y, eps=eps, norm=norm, dims=4, precision=precision) as (victim, images, labels):

        def advance(s: _State, query: int) -> tuple[_State, Tensor, Tensor]:
            if query % BLOCK == 0:
                numbers = uniform(s.keys, (BLOCK, 5 + images.shape[1]), draw=1 + query // BLOCK)
                s = replace(s, numbers=numbers)
            z = _first(s) if query == 0 else _propose(s, query, share=share_at(query, horizon or queries, share=share))
            lead, hit = victim.search(z, s.y, best=s.loss)
            loss = lead.to(s.loss.dtype)
            better = hit | (loss > s.loss)
            s = replace(s, z=torch.where(spread(better, z), z, s.z), loss=torch.where(better, loss, s.loss))
            return s, s.z, hit

        keys, loss = image_keys(images, generator), torch.full((len(images),), -torch.inf, device=images.device)
        s = _State(ball(images, eps, norm), labels, keys, keys[:, None], images, loss)
        return laid_out_like(x, until_fooled(victim, images, labels, s, advance, turns=queries))


def share_at(query: int, horizon: int, *, share: float = 0.8) -> float:
    """Share of the pixels that the square of this query covers: `share`, halved on the schedule of the paper.

    >>> [share_at(query, 10_000) for query in (10, 11, 50, 51, 8001)]
    [0.8, 0.4, 0.4, 0.2, 0.0015625]
    """
    at = query * 10_000 // horizon
    return share / 2 ** sum(at > halving for halving in HALVINGS)


def side(share: float, height: int, width: int, *, norm: str = "linf") -> int:
    """Side of the square that covers this share of an image, in pixels, at least 1; for "l2" odd and at least 3.

    >>> side(0.8, 32, 32), side(0.8 / 512, 32, 32), side(0.4, 32, 32, norm="l2")
    (29, 1, 21)
    """
    length = round(math.sqrt(share * height * width))
    if norm == "l2":
        length = max(length, 3) | 1
    return max(1, min(length, height, width))


@dataclass(frozen=True)
class _State(Rows):
    """Where the search stands for the images still in it, a row each."""

    inside: Ball
    y: Labels
    keys: Int[Tensor, " n"]
    numbers: Shaped[Tensor, "n ..."]  # in (0, 1): of the queries of the current block, 5 + channels each
    z: Float[Tensor, "n c h w"]
    loss: PerImage


def _first(s: _State) -> Tensor:
    """Stripes ("linf"), or a grid of tiles, five on the shorter side ("l2")."""
    n, c, h, w = s.z.shape
    if s.inside.norm == "linf":
        up = signs(s.keys, (c, 1, w), draw=0) > 0
        return torch.where(up, s.inside.upper, s.inside.lower).contiguous(memory_format=torch.channels_last)
    tile = max(min(h, w) // 5, 1)
    pattern = _tent(tile, s.z)[0].repeat(h // tile, w // tile)
    down, right = (h - len(pattern)) // 2, (w - pattern.shape[1]) // 2
    sign = signs(s.keys, (c, h // tile, w // tile), draw=0).to(s.z.dtype)
    sign = sign.repeat_interleave(tile, 2).repeat_interleave(tile, 3)
    delta = torch.zeros_like(s.z)
    delta[:, :, down : down + sign.shape[2], right : right + sign.shape[3]] = sign * pattern
    return _at_radius(s.inside, delta)


def _propose(s: _State, query: int, *, share: float) -> Tensor:
    n, c, h, w = s.z.shape
    length = side(share, h, w, norm=s.inside.norm)
    numbers = s.numbers[:, query % BLOCK].to(s.z.dtype)
    up = numbers[:, 5:, None, None] < 0.5
    here = _window(numbers[:, 0:2], length, s.z)
    if s.inside.norm == "linf":
        z = s.z.clone()
        z[here] = torch.where(up, s.inside.upper[here], s.inside.lower[here])
        return z
    there = _window(numbers[:, 2:4], length, s.z)
    shape = _tent(length, s.z)[(numbers[:, 4] < 0.5).long()][:, None]
    return _at_radius(s.inside, _move(s.z - s.inside.x, here, there, torch.where(up, shape, -shape), s.inside.eps))


def _window(place: Tensor, length: int, like: Tensor) -> tuple[Tensor, ...]:
    """Indices of a square of each image, (n, c, length, length), at a place given by two numbers in (0, 1)."""
    n, c, h, w = like.shape
    span = torch.arange(length, device=like.device)
    corner = (place * place.new_tensor([h - length + 1, w - length + 1])).long()
    rows, columns = corner[:, :1] + span, corner[:, 1:] + span
    image, channel = torch.arange(n, device=like.device), torch.arange(c, device=like.device)
    return image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]


def _move(delta: Tensor, here: tuple[Tensor, ...], there: tuple[Tensor, ...], shape: Tensor, eps: float) -> Tensor:
    """Takes the perturbation of both squares, and spends it, with what eps leaves, on a new shape in the first."""
    before = delta.square().sum((2, 3), keepdim=True)
    old = delta[here]
    delta[there] = 0
    delta[here] = 0
    unused = (eps**2 - before.sum(1, keepdim=True)).clamp(min=0) / delta.shape[1]
    available = (before - delta.square().sum((2, 3), keepdim=True)).clamp(min=0) + unused
    delta[here] = _unit(shape + _unit(old)) * available.sqrt()
    return delta


def _unit(v: Tensor) -> Tensor:
    return v / v.square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-12)


def _at_radius(inside: Ball, delta: Tensor) -> Tensor:
    return inside.project(inside.x + delta * (inside.eps / norms(delta).clamp(min=1e-12)))


def _tent(side: int, like: Tensor) -> Float[Tensor, "2 side side"]:
    """Two bumps of opposite sign that fall off like squares around their centres, of norm one; and the same turned."""
    top = side // 2
    bumps = torch.cat([_bump(top, side, like), -_bump(side - top, side, like)])
    bumps = bumps / bumps.norm()
    return torch.stack([bumps, bumps.T])


def _bump(height: int, width: int, like: Tensor) -> Float[Tensor, "height width"]:
    """At distance m (of rows or columns, the larger) from the middle: the sum of 1 / j^2, j > m; scaled to norm one."""
    rows = (torch.arange(height, device=like.device) - height // 2).abs()
    columns = (torch.arange(width, device=like.device) - width // 2).abs()
    ring = torch.maximum(rows[:, None], columns)
    terms = 1 / torch.arange(1, max(height, width) // 2 + 2, device=like.device, dtype=like.dtype).square()
    bump = terms.flip(0).cumsum(0).flip(0)[ring]
    return bump / bump.norm().clamp(min=1e-12)
