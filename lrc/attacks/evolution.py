"""Attacks by evolution strategies, from the logits alone: NES estimates a gradient, NATTACK learns a distribution."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Generator, Tensor, nn

from lrc.attacks.common import Rows, Victim, attacked, laid_out_like, step_length, until_fooled
from lrc.attacks.losses import Loss, fooled, loss_function, margin
from lrc.attacks.rng import image_keys, normal
from lrc.attacks.threat_model import Ball, ball, spread, unit
from lrc.utils.checks import check_number, check_whole
from lrc.utils.errors import InputError
from lrc.utils.tensors import Labels, Mask, Pixels

AT_ONCE = 512  # images in one forward pass, about
INSIDE = 1 - 1e-6  # keeps the inverse of tanh finite at black and white pixels


def nes(
    model: nn.Module,
    x: Pixels,
    y: Labels,
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
    precision: str = "float32",
) -> Pixels:
    """Images within eps of x that fool the model, by projected steps along an estimate of the gradient.

    The gradient of the loss, smoothed by a Gaussian of width sigma, is the mean of
    u (l(x + sigma u) - l(x - sigma u)) / (2 sigma) over standard normal u. Points asked for are cut to [0, 1].

    Args:
        model, x, y, eps, norm, loss, generator: as in `lrc.attacks.pgd`.
        queries: most logits asked for an image; each step takes `samples` + 1 of them.
        samples: points from which each gradient is estimated; even, as they come in pairs.
        sigma: width of the Gaussian, in units of a pixel.
        step: length of one step, in the units of eps; eps / 10 by default.
        momentum: weight of the former estimates: g <- momentum g + (1 - momentum) estimate.

    Returns:
        For each image the first iterate that fools the model, else the last; x itself where it is misclassified.

    Raises:
        InputError: as in `lrc.attacks.pgd`; samples not even and positive, queries too few for one step, sigma <= 0, or
            a momentum outside [0, 1).

    Source: Ilyas et al., *Black-box adversarial attacks with limited queries and information* (2018), algorithm 1.
    """
    check_whole("samples", samples, 2)
    check_whole("queries", queries, samples + 1)
    sigma, momentum = check_number("sigma", sigma, "(0, inf)"), check_number("momentum", momentum, "[0, 1)")
    if samples % 2:
        raise InputError(f"samples must be even, not {samples}: they come in pairs")
    objective, length = loss_function(loss), step_length(step, eps, steps=10)
    with attacked(model, x, y, eps=eps, norm=norm, precision=precision) as (victim, images, labels):

        def advance(s: _Climb, turn: int) -> tuple[_Climb, Tensor, Tensor]:
            slope = momentum * s.slope + (1 - momentum) * _gradient(
                victim, s, turn * samples, samples, sigma, objective
            )
            z = s.inside.project(s.z + length * unit(slope, norm))
            return replace(s, z=z, slope=slope), z, fooled(victim.verdict(z), s.y)

        keys = image_keys(images, generator)
        s = _Climb(ball(images, eps, norm), labels, keys, images, torch.zeros_like(images))
        found = until_fooled(victim, images, labels, s, advance, turns=queries // (samples + 1))
        return laid_out_like(x, found)


def nattack(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    eps: float,
    queries: int = 20_000,
    samples: int = 300,
    sigma: float = 0.1,
    rate: float = 0.02,
    norm: str = "linf",
    generator: Generator | None = None,
    precision: str = "float32",
) -> Pixels:
    """Images within eps of x that fool the model, drawn from a Gaussian whose mean is learnt by evolution strategies.

    A sample is an image P((tanh(mu + sigma u) + 1) / 2), with P the projection onto the ball. The mean mu, at x to
    begin with, moves by rate / (samples sigma) times the sum of the u, each weighted by how far its margin loss lies
    above the mean, in standard deviations.

    Args:
        model, x, y, eps, norm, generator: as in `lrc.attacks.pgd`.
        queries: most logits asked for an image.
        samples: points asked for at each step, at least 2.
        sigma: width of the Gaussian, before the tanh.
        rate: of the steps of the mean.

    Returns:
        For each image the first sample that fools the model; where none did, the image at the last mean, or x itself
        where it is misclassified as it is.

    Raises:
        InputError: as in `lrc.attacks.pgd`; samples < 2, queries too few for one step, or sigma or rate <= 0.

    Source: Li et al., *NATTACK: learning the distributions of adversarial examples for an improved black-box attack on
    deep neural networks* (2019), algorithm 1.
    """
    check_whole("samples", samples, 2)
    check_whole("queries", queries, samples)
    sigma, rate = check_number("sigma", sigma, "(0, inf)"), check_number("rate", rate, "(0, inf)")
    with attacked(model, x, y, eps=eps, norm=norm, precision=precision) as (victim, images, labels):

        def advance(s: _Search, turn: int) -> tuple[_Search, Tensor, Tensor]:
            push, hit, winner = _sample(victim, s, turn * samples, samples=samples, sigma=sigma)
            s = replace(s, z=s.z + rate / (samples * sigma) * push)
            return s, torch.where(spread(hit, winner), winner, _image(s.inside, s.z)), hit

        keys, mean = image_keys(images, generator), torch.atanh((2 * images - 1) * INSIDE)
        s = _Search(ball(images, eps, norm), labels, keys, mean)
        return laid_out_like(x, until_fooled(victim, images, labels, s, advance, turns=queries // samples))


@dataclass(frozen=True)
class _Search(Rows):
    """Where the search stands for the images still in it, a row each."""

    inside: Ball
    y: Labels
    keys: Int[Tensor, " n"]
    z: Pixels  # the iterate (NES), or the mean before the tanh (NATTACK)


@dataclass(frozen=True)
class _Climb(_Search):
    slope: Pixels  # the gradient estimated so far


def _ask(
    victim: Victim, s: _Search, draws: range, points: Callable[[Tensor], tuple[Tensor, ...]], *, each: int
) -> Iterator[tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """For each draw its noise u, the `each` points made of u, and their logits; as many in one forward pass as fit.

    Draws are numbered and handed out one by one, so that an image's sum does not depend on how many go at once.
    """
    shape = tuple(s.z.shape[1:])
    together = max(1, AT_ONCE // (each * len(s.z)))
    for start in range(0, len(draws), together):
        noise = [normal(s.keys, shape, draw=draw).to(s.z) for draw in draws[start : start + together]]
        asked = [points(u) for u in noise]
        logits = victim.logits(torch.cat([z for group in asked for z in group])).split(len(s.z))
        for i, (u, group) in enumerate(zip(noise, asked, strict=True)):
            yield u, group, logits[each * i : each * (i + 1)]


def _gradient(victim: Victim, s: _Climb, draw: int, samples: int, sigma: float, loss: Loss) -> Tensor:
    total = torch.zeros_like(s.z)
    pairs = range(draw, draw + samples // 2)

    def around(u: Tensor) -> tuple[Tensor, Tensor]:
        return (s.z + sigma * u).clamp(0, 1), (s.z - sigma * u).clamp(0, 1)

    for u, _, logits in _ask(victim, s, pairs, around, each=2):
        above, below = (loss(z, s.y) for z in logits)
        total += u * spread((above - below).to(u.dtype), u)
    return total / (samples * sigma)


def _image(inside: Ball, z: Tensor) -> Tensor:
    return inside.project((torch.tanh(z) + 1) / 2)


def _sample(victim: Victim, s: _Search, draw: int, *, samples: int, sigma: float) -> tuple[Pixels, Mask, Pixels]:
    """The weighted sum of the noise; which images some sample fools; the first such sample.

    The weights need the mean over all samples, known only at the end: so the sums of u and of l u are kept.
    """
    noise_sum, loss_sum, winner = torch.zeros_like(s.z), torch.zeros_like(s.z), torch.zeros_like(s.z)
    hit, losses = torch.zeros_like(s.y, dtype=torch.bool), []
    draws = range(draw, draw + samples)
    for u, (point,), (logits,) in _ask(victim, s, draws, lambda u: (_image(s.inside, s.z + sigma * u),), each=1):
        fools = victim.confirmed(fooled(logits, s.y), point, s.y)
        winner = torch.where(spread(fools & ~hit, point), point, winner)
        hit = hit | fools
        losses.append(margin(logits, s.y).to(u.dtype))
        noise_sum += u
        loss_sum += u * spread(losses[-1], u)
    deviation, average = torch.std_mean(torch.stack(losses), 0)
    return (loss_sum - spread(average, loss_sum) * noise_sum) / spread(deviation + 1e-7, loss_sum), hit, winner
