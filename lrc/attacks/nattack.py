"""NATTACK: learns a distribution of adversarial examples from logits alone."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from lrc.attacks.common import Rows, Victim, attacked, laid_out_like
from lrc.attacks.losses import fooled, margin
from lrc.attacks.rng import image_keys, normal
from lrc.attacks.threat_model import Ball, ball, spread
from lrc.utils.checks import check_number, check_whole

AT_ONCE = 512  # images in one forward pass, about
INSIDE = 1 - 1e-6  # keeps the inverse of tanh finite at black and white pixels


def nattack(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    y: Int[Tensor, "n"],
    *,
    eps: float,
    queries: int = 20_000,
    samples: int = 300,
    sigma: float = 0.1,
    rate: float = 0.02,
    norm: str = "linf",
    generator: Generator | None = None,
) -> Float[Tensor, "n *shape"]:
    """Images within eps of x that fool the model, drawn from a Gaussian whose mean is learnt by evolution strategies.

    A sample is an image P((tanh(mu + sigma u) + 1) / 2), with P the projection onto the ball. The mean mu, at x to
    begin with, moves by rate / (samples sigma) times the sum of the u, each weighted by how far its margin loss lies
    above the mean, in standard deviations.

    Args:
        model, x, y, eps, norm: as in `lrc.attacks.pgd`.
        queries: most logits asked for an image.
        samples: points asked for at each step, at least 2.
        sigma: width of the Gaussian, before the tanh.
        rate: of the steps of the mean.
        generator: of the samples, each image's of its own (`lrc.attacks.rng`).

    Returns:
        For each image the first sample that fools the model; where none did, the image at the last mean, or x itself
        where it is misclassified as it is. In the ball and in [0, 1] to the last bit.

    Raises:
        InputError: as in `lrc.attacks.pgd`; samples < 2, or sigma or rate <= 0.

    Warns:
        RuntimeWarning: the network gave NaN or infinite logits; these count as fooled.

    Source: Li et al., *NATTACK: learning the distributions of adversarial examples for an improved black-box attack on
    deep neural networks* (2019), algorithm 1.
    """
    check_whole("samples", samples, 2)
    check_whole("queries", queries, samples)
    check_number("sigma", sigma, "(0, inf)")
    check_number("rate", rate, "(0, inf)")
    with attacked(model, x, y, eps=eps, norm=norm) as (victim, images, labels):
        found, keys = images.clone(), image_keys(images, generator)
        rows, balls = torch.arange(len(images), device=images.device), ball(images, eps, norm)
        mean = torch.atanh((2 * images - 1) * INSIDE)
        s = _State(rows, balls, labels, keys, mean)[~fooled(victim.logits(images), labels)]
        for turn in range(queries // samples):
            if not len(s.row):
                break
            push, hit, winner = _sample(victim, s, turn * samples, samples=samples, sigma=sigma)
            s = replace(s, mean=s.mean + rate / (samples * sigma) * push)
            found[s.row] = torch.where(spread(hit, winner), winner, _image(s.inside, s.mean))
            s = s[~hit]
    return laid_out_like(x, found)


@dataclass(frozen=True)
class _State(Rows):
    """Where the search stands for the images still in it, a row each."""

    row: Int[Tensor, "n"]
    inside: Ball
    y: Int[Tensor, "n"]
    keys: Int[Tensor, "n"]
    mean: Float[Tensor, "n *shape"]


def _image(inside: Ball, z: Tensor) -> Tensor:
    return inside.project((torch.tanh(z) + 1) / 2)


def _sample(
    victim: Victim, s: _State, draw: int, *, samples: int, sigma: float
) -> tuple[Float[Tensor, "n *shape"], Bool[Tensor, "n"], Float[Tensor, "n *shape"]]:
    """The weighted sum of the noise; which images some sample fools; the first such sample.

    The weights need the mean over all samples, known only at the end: so the sums of u and of l u are kept. Samples are
    numbered and summed one by one, so that an image's sum does not depend on how many go at once.
    """
    shape, noise_sum, loss_sum = tuple(s.mean.shape[1:]), torch.zeros_like(s.mean), torch.zeros_like(s.mean)
    hit, winner, losses = torch.zeros_like(s.row, dtype=torch.bool), torch.zeros_like(s.mean), []
    together = max(1, AT_ONCE // len(s.mean))
    for start in range(0, samples, together):
        numbers = range(draw + start, draw + min(start + together, samples))
        noise = [normal(s.keys, shape, draw=number).to(s.mean) for number in numbers]
        points = [_image(s.inside, s.mean + sigma * u) for u in noise]
        for u, point, logits in zip(noise, points, victim.logits(torch.cat(points)).chunk(len(noise)), strict=True):
            fools = fooled(logits, s.y)
            winner = torch.where(spread(fools & ~hit, point), point, winner)
            hit = hit | fools
            losses.append(margin(logits, s.y).to(u.dtype))
            noise_sum += u
            loss_sum += u * spread(losses[-1], u)
    deviation, average = torch.std_mean(torch.stack(losses), 0)
    return (loss_sum - spread(average, loss_sum) * noise_sum) / spread(deviation + 1e-7, loss_sum), hit, winner
