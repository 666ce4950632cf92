"""Fast adaptive boundary attack: the nearest misclassified image, by steps to the linearized decision boundary."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Generator, Tensor, nn

from lrc.attacks.common import Rows, Victim, ascent, attacked, laid_out_like, pulled_back
from lrc.attacks.losses import fooled, likely_targets, pick, true_label
from lrc.attacks.rng import image_keys, normal
from lrc.attacks.threat_model import SLACK, ball, distance, spread, unit, within
from lrc.utils.checks import check_whole
from lrc.utils.tensors import Goals, Labels, PerImage, Pixels

OVERSHOOT = 1.05  # eta: how far beyond the boundary a step goes
TO_ORIGIN = 0.1  # alpha_max: the largest weight of the step that starts at the original image
BACKWARD = 0.9  # beta: part of the way that remains after a misclassified point was found
ROUNDS = 64  # of Newton's method, far more than it needs


def fab(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    eps: float | None = None,
    steps: int = 100,
    norm: str = "linf",
    targets: int = 0,
    restarts: int = 1,
    generator: Generator | None = None,
    precision: str = "float32",
) -> Pixels:
    """The nearest misclassified images found, or those within eps if a radius is given.

    Each step goes to the hyperplane where the linearized classifier changes its mind, from the current point and, with
    a small weight, from the original; a point found beyond the boundary is drawn back toward the original.

    Args:
        model, x, y, norm, generator: as in `lrc.attacks.pgd`.
        eps: radius, in units of a pixel; an image's search ends when it is fooled within it. None: the nearest found.
        steps: in each run.
        targets: number of runs, each toward the boundary with one of the likeliest wrong classes (all there are if
            fewer); AutoAttack has 9. 0: one run, at each step toward the class whose boundary is nearest, which takes a
            backward pass for each class.
        restarts: how often all runs are repeated, after the first time from a random point.
        precision: as in `lrc.attacks.pgd`; the logits that say how far a boundary is stay float32.

    Returns:
        Without eps, the nearest misclassified image found, or x itself where none was (or x is misclassified).
        With eps, that image, moved into the ball where it lies outside.

    Raises:
        InputError: as in `lrc.attacks.pgd`, or steps < 1.

    Source: Croce & Hein, *Minimally distorted adversarial examples with a fast adaptive boundary attack* (2020),
    algorithm 1; targeted runs: Croce & Hein, *Reliable evaluation ...* (2020), section 5.

    >>> model = nn.Linear(2, 2, bias=False)  # logits are the pixels: the brighter one wins
    >>> model.weight.data = torch.eye(2)
    >>> fab(model, torch.tensor([[0.7, 0.4]]), torch.tensor([0])).round(decimals=2)
    tensor([[0.5500, 0.5500]])
    """
    check_whole("steps", steps, 1)
    check_whole("restarts", restarts, 1)
    check_whole("targets", targets)
    radius = 0.0 if eps is None else eps
    with attacked(model, x, y, eps=radius, norm=norm, precision=precision) as (victim, images, labels):
        balls, keys = ball(images, radius, norm), image_keys(images, generator)
        logits = victim.verdict(images)
        state = _begin(images, labels)[~fooled(logits, labels)]
        likely = likely_targets(logits, labels, count=targets)
        best = images.clone()
        for run in range(restarts * max(likely.shape[1], 1)):
            restart, which = divmod(run, max(likely.shape[1], 1))
            goals = torch.stack([labels, likely[:, which]], 1) if targets else labels
            begin = replace(state, y=goals[state.row], z=_origin(state, keys, restart, run, radius, norm))
            state = _run(victim, begin, best, steps=steps, norm=norm, eps=eps)
        return laid_out_like(x, best if eps is None else balls.project(best))


@dataclass(frozen=True)
class _State(Rows):
    """Where the search stands for the images still in it, a row each."""

    row: Int[Tensor, " n"]
    x: Pixels
    y: Goals
    z: Pixels
    nearest: PerImage  # distance of the nearest misclassified point


def _begin(x: Tensor, y: Tensor) -> _State:
    rows = torch.arange(len(x), device=x.device)
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    return _State(rows, x, y, x, torch.full((len(x),), torch.inf, device=x.device, dtype=wide))


def _origin(s: _State, keys: Tensor, restart: int, run: int, eps: float, norm: str) -> Tensor:
    """x at first; later a random point half as far as the nearest misclassified one, or as eps if that is nearer."""
    if restart == 0 or not len(s.row):
        return s.x
    reach = s.nearest.clamp(max=eps if eps > 0 else 1.0) / 2
    noise = unit(normal(keys[s.row], tuple(s.x.shape[1:]), draw=run), "l2").to(s.x.dtype)
    length = distance(noise, torch.zeros_like(noise), norm)
    return (s.x + noise * spread(reach / length, noise).to(s.x.dtype)).clamp(0, 1)


def _run(victim: Victim, s: _State, best: Tensor, *, steps: int, norm: str, eps: float | None) -> _State:
    """The steps of one run; writes what it finds into `best`, returns the images still in the search."""
    if not len(s.row):
        return s
    gap, gradient, hit = _boundary(victim, s.z, s.y, norm=norm)
    for _ in range(steps):
        z = _step(s, gap, gradient, norm=norm)
        likely = hit  # what was misclassified before will mostly be so again, and then needs no gradient where it is
        if likely.any():
            hit = likely.clone()
            hit[likely] = fooled(victim.logits(z[likely]), true_label(s.y[likely]))
            if not likely.all():
                gap[~likely], gradient[~likely], hit[~likely] = _boundary(victim, z[~likely], s.y[~likely], norm=norm)
        else:
            gap, gradient, hit = _boundary(victim, z, s.y, norm=norm)
        away = distance(z, s.x, norm)
        better = hit & (away < s.nearest)
        counts = better if eps is None else better & (away <= eps * (1 - SLACK))  # what lies outside is no verdict yet
        better &= ~counts | victim.confirmed(counts, z, true_label(s.y))
        best[s.row[better]] = z[better]
        z = torch.where(spread(hit, z), s.x + BACKWARD * (z - s.x), z)
        s = replace(s, z=z, nearest=torch.where(better, away, s.nearest))
        anew = hit | likely
        if eps is not None:
            going = s.nearest > eps * (1 - SLACK)
            s, gap, gradient, hit, anew = s[going], gap[going], gradient[going], hit[going], anew[going]
        if anew.any():
            gap[anew], gradient[anew], _ = _boundary(victim, s.z[anew], s.y[anew], norm=norm)
        if not len(s.row):
            break
    return s


def _step(s: _State, gap: Tensor, gradient: Tensor, *, norm: str) -> Tensor:
    """The next point: beyond the hyperplane gap + <gradient, . - z> = 0, from z and a little from x."""
    zero = torch.zeros_like(s.z)
    from_z = to_hyperplane(s.z, gradient, -gap, norm=norm)
    gap_at_x = gap + (gradient * (s.x - s.z)).sum(within(zero))
    from_x = to_hyperplane(s.x, gradient, -gap_at_x, norm=norm)
    far_z, far_x = distance(from_z, zero, norm).clamp(min=1e-8), distance(from_x, zero, norm).clamp(min=1e-8)
    weight = spread((far_z / (far_z + far_x)).clamp(max=TO_ORIGIN), zero).to(zero.dtype)
    return ((1 - weight) * (s.z + OVERSHOOT * from_z) + weight * (s.x + OVERSHOOT * from_x)).clamp(0, 1)


def to_hyperplane(x: Pixels, w: Pixels, need: PerImage, *, norm: str) -> Pixels:
    """The shortest step d with <w, d> = need and x + d in [0, 1]; where none reaches so far, the farthest there is.

    A step of length t moves pixel i by min(t s_i, room_i), with s = 1 ("linf") or |w| ("l2"), so <w, d> is a concave,
    piecewise linear function of t: Newton's method from 0 comes up to its solution in finitely many rounds.
    """
    w, need = (w * spread(need.sign(), w)).nan_to_num(), need.abs()
    room = torch.where(w > 0, 1 - x, x)
    size = w.abs()
    pace = size if norm == "l2" else 1.0
    weight, t = size * pace, torch.zeros_like(need)
    for _ in range(ROUNDS):
        reach = spread(t, x) * pace
        missing = need - (size * torch.minimum(room, reach)).sum(within(x))
        slope = torch.where(room > reach, weight, 0.0).sum(within(x))
        going = (missing > 1e-6 * need) & (slope > 0)
        if not going.any():
            break
        t = torch.where(going, t + missing / slope, t)
    return w.sign() * torch.minimum(room, spread(t, x) * pace)


def _boundary(victim: Victim, z: Tensor, y: Tensor, *, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """z_l - z_y for the target l, or the class whose boundary is nearest; its gradient; whether z is misclassified."""
    if y.dim() == 2:
        gradient, gap, logits = ascent(
            victim, z, y, loss=lambda out, pair: pick(out, pair[:, 1]) - pick(out, pair[:, 0])
        )
        return gap.to(z.dtype), gradient, fooled(logits, true_label(y))
    return _nearest_boundary(victim, z, y, norm=norm)


def _nearest_boundary(victim: Victim, z: Tensor, y: Tensor, *, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """As `_boundary`, over all classes: one backward pass after the other, so that memory does not grow with them."""
    gap, slope = torch.zeros(len(z), dtype=z.dtype, device=z.device), torch.zeros_like(z)
    least = torch.full_like(gap, torch.inf)
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        logits = victim(z)
        gaps = (logits - pick(logits, y)[:, None]).to(z.dtype)
    for k in range(gaps.shape[1]):
        gradient = pulled_back(victim, gaps[:, k], z, keep=True)
        dual = torch.linalg.vector_norm(gradient, 1 if norm == "linf" else 2, within(z))
        away = (gaps[:, k].detach().abs() / dual.clamp(min=1e-12)).where(y != k, torch.inf)
        nearer = away < least
        least, gap = torch.where(nearer, away, least), torch.where(nearer, gaps[:, k].detach(), gap)
        slope = torch.where(spread(nearer, z), gradient, slope)
    return gap, slope, fooled(logits.detach(), y)
