"""Natural evolution strategies: gradient steps along a gradient estimated from logits alone."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from lrc.attacks.common import Rows, Victim, attacked, laid_out_like, step_length
from lrc.attacks.losses import Loss, fooled, loss_function
from lrc.attacks.rng import image_keys, normal
from lrc.attacks.threat_model import Ball, ball, spread, unit
from lrc.utils.checks import check_number, check_whole
from lrc.utils.errors import InputError

AT_ONCE = 512  # images in one forward pass, about


def nes(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    y: Int[Tensor, "n"],
    *,
    eps: float,
    queries: int = 10_000,
    samples: int = 50,
    sigma: float = 0.001,
    step: float | None = None,
    momentum: float = 0.9,
    norm: str = "linf",
    loss: str | Loss = "ce",
    generator: Generator | None = None,
) -> Float[Tensor, "n *shape"]:
    """Images within eps of x that fool the model, by projected steps along an estimate of the gradient.

    The gradient of the loss, smoothed by a Gaussian of width sigma, is the mean of
    u (l(x + sigma u) - l(x - sigma u)) / (2 sigma) over standard normal u. Points asked for are cut to [0, 1].

    Args:
        model, x, y, eps, norm, loss: as in `lrc.attacks.pgd`.
        queries: most logits asked for an image; each step takes `samples` + 1 of them.
        samples: points from which each gradient is estimated; even, as they come in pairs.
        sigma: width of the Gaussian, in units of a pixel.
        step: length of one step, in the units of eps; eps / 10 by default.
        momentum: weight of the former estimates: g <- momentum g + (1 - momentum) estimate.
        generator: of the points, each image's of its own (`lrc.attacks.rng`).

    Returns:
        For each image the first iterate that fools the model, else the last; x itself where it is misclassified as it
        is. In the ball and in [0, 1] to the last bit.

    Raises:
        InputError: as in `lrc.attacks.pgd`; samples not even and positive, sigma <= 0, or a momentum outside [0, 1).

    Warns:
        RuntimeWarning: the network gave NaN or infinite logits; these count as fooled.

    Source: Ilyas et al., *Black-box adversarial attacks with limited queries and information* (2018), algorithm 1.
    """
    check_whole("samples", samples, 2)
    check_whole("queries", queries, samples + 1)
    check_number("sigma", sigma, "(0, inf)")
    check_number("momentum", momentum, "[0, 1)")
    if samples % 2:
        raise InputError(f"samples must be even, not {samples}: they come in pairs")
    objective, length = loss_function(loss), step_length(step, eps, steps=10)
    with attacked(model, x, y, eps=eps, norm=norm) as (victim, images, labels):
        found, keys = images.clone(), image_keys(images, generator)
        rows = torch.arange(len(images), device=images.device)
        s = _State(rows, ball(images, eps, norm), labels, keys, images, torch.zeros_like(images))
        s = s[~fooled(victim.logits(images), labels)]
        for turn in range(queries // (samples + 1)):
            if not len(s.row):
                break
            estimate = _gradient(victim, s, turn * samples, samples=samples, sigma=sigma, loss=objective)
            slope = momentum * s.slope + (1 - momentum) * estimate
            s = replace(s, z=s.inside.project(s.z + length * unit(slope, norm)), slope=slope)
            hit = fooled(victim.logits(s.z), s.y)
            found[s.row] = s.z
            s = s[~hit]
    return laid_out_like(x, found)


@dataclass(frozen=True)
class _State(Rows):
    """Where the search stands for the images still in it, a row each."""

    row: Int[Tensor, "n"]
    inside: Ball
    y: Int[Tensor, "n"]
    keys: Int[Tensor, "n"]
    z: Float[Tensor, "n *shape"]
    slope: Float[Tensor, "n *shape"]


def _gradient(victim: Victim, s: _State, draw: int, *, samples: int, sigma: float, loss: Loss) -> Tensor:
    """Pairs are numbered and summed one by one, so that an image's sum does not depend on how many go at once."""
    total, shape = torch.zeros_like(s.z), tuple(s.z.shape[1:])
    pairs = range(draw, draw + samples // 2)
    together = max(1, AT_ONCE // (2 * len(s.z)))
    for start in range(0, len(pairs), together):
        noise = [normal(s.keys, shape, draw=pair).to(s.z) for pair in pairs[start : start + together]]
        points = torch.cat([(s.z + sign * sigma * u).clamp(0, 1) for u in noise for sign in (1, -1)])
        values = loss(victim.logits(points), s.y.repeat(2 * len(noise))).view(len(noise), 2, -1)
        for u, (above, below) in zip(noise, values.unbind(), strict=True):
            total += u * spread((above - below).to(u.dtype), u)
    return total / (samples * sigma)
