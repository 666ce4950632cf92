"""Carlini & Wagner's L2 attack: the smallest perturbation, by its original optimization."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Generator, Tensor, nn

from lrc.attacks.common import Rows, Victim, attacked, laid_out_like, pulled_back
from lrc.attacks.losses import fooled, margin, targeted_margin
from lrc.attacks.threat_model import ball, distance, spread, within
from lrc.utils.checks import check_number, check_whole
from lrc.utils.tensors import Goals, Labels, PerImage, Pixels

INSIDE = 1 - 1e-6  # keeps the inverse of tanh finite at black and white pixels
MOST = 1e10  # the largest constant c
CHECKS = 10  # times in a run that an image which stands still may end it
STILL = 0.9999  # of the objective at the last check: above it the image stands still


def cw(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    eps: float | None = None,
    steps: int = 1000,
    rate: float = 0.01,
    searches: int = 9,
    c: float = 1e-3,
    confidence: float = 0.0,
    target: Labels | None = None,
    generator: Generator | None = None,
    precision: str = "float32",
) -> Pixels:
    """The nearest misclassified images in L2, found by descent on distance and a hinge on the logits.

    Minimized is ``|x' - x|^2 + c max(z_y - max_{k != y} z_k, -confidence)``. The variable is w with
    x' = (tanh(w) + 1) / 2, so that x' stays in [0, 1]; Adam minimizes; the weight c of each image is found by binary
    search. An image's run ends early when its objective stands still.

    Args:
        model, x, y, target, precision: as in `lrc.attacks.pgd`; objective and logits stay float32.
        eps: radius, in L2; the image found is moved into the ball where it lies outside. None: the nearest found.
        steps: of Adam, in each run (10,000 in the paper).
        rate: learning rate of Adam.
        searches: values of c that are tried for an image.
        c: the first of them.
        confidence: lead, in logits, that the wrong class is to have (kappa of the paper).

    Returns:
        The nearest image found that fools the model (in a targeted attack: is taken for the target) by the confidence;
        x itself where none was found, or where x does so as it is.

    Raises:
        InputError: as in `lrc.attacks.pgd`; steps or searches < 1, c or rate <= 0, or a negative confidence.

    Source: Carlini & Wagner, *Towards evaluating the robustness of neural networks* (2017), sections V and VI.
    """
    check_whole("steps", steps, 1)
    check_whole("searches", searches, 1)
    c, rate = check_number("c", c, "(0, inf)"), check_number("rate", rate, "(0, inf)")
    confidence = check_number("confidence", confidence)
    radius = 0.0 if eps is None else eps
    with attacked(model, x, y, eps=radius, norm="l2", target=target, precision=precision) as (victim, images, labels):
        s = _begin(victim, images, labels, c=c, confidence=confidence)
        best = s.best.clone()
        s = s[s.nearest > 0]
        for search in range(searches):
            if not len(s.row):
                break
            last = search == searches - 1 and searches >= 10
            weight = torch.where(last & (s.high < MOST), s.high, s.c)  # the paper's code ends on the best known c
            s = _search(victim, replace(s, c=weight), steps=steps, rate=rate, confidence=confidence)
        best[s.row] = s.best
        return laid_out_like(x, best if eps is None else ball(images, radius, "l2").project(best))


@dataclass(frozen=True)
class _State(Rows):
    """Where the search over c stands, a row an image."""

    row: Int[Tensor, " n"]
    x: Pixels
    y: Goals
    best: Pixels
    nearest: PerImage  # distance of `best`; infinite where nothing was found
    c: PerImage
    low: PerImage
    high: PerImage


def _begin(victim: Victim, x: Tensor, y: Tensor, *, c: float, confidence: float) -> _State:
    logits = victim.verdict(x)
    done = fooled(logits, y) & ~(_lead(logits, y) < confidence)  # not (lead < ...): a lead of NaN counts
    ones = torch.ones(len(x), dtype=x.dtype, device=x.device)
    nearest = torch.where(done, 0.0, torch.inf).to(x.dtype)
    return _State(torch.arange(len(x), device=x.device), x, y, x, nearest, c * ones, 0 * ones, MOST * ones)


def _lead(logits: Tensor, y: Tensor) -> Tensor:
    return margin(logits, y) if y.dim() == 1 else targeted_margin(logits, y)


def _search(victim: Victim, s: _State, *, steps: int, rate: float, confidence: float) -> _State:
    """One run of Adam with each image's c, and then the next c: larger after a failure, smaller after a success."""
    best, nearest = _minimize(victim, s, steps=steps, rate=rate, confidence=confidence)
    found = nearest.isfinite()
    better = nearest < s.nearest
    high = torch.where(found, torch.minimum(s.high, s.c), s.high)
    low = torch.where(found, s.low, torch.maximum(s.low, s.c))
    return replace(
        s,
        best=torch.where(spread(better, best), best, s.best),
        nearest=torch.where(better, nearest, s.nearest),
        c=torch.where(high < MOST, (low + high) / 2, s.c * 10),
        low=low,
        high=high,
    )


@dataclass(frozen=True)
class _Run(Rows):
    """Where Adam stands, a row an image."""

    row: Int[Tensor, " n"]
    x: Pixels
    y: Goals
    c: PerImage
    w: Pixels
    mean: Pixels
    square: Pixels
    mark: PerImage  # the objective at the last check


def _minimize(victim: Victim, s: _State, *, steps: int, rate: float, confidence: float) -> tuple[Pixels, PerImage]:
    """The nearest image that a run with each image's c comes upon, and how near."""
    best, nearest = s.x.clone(), torch.full_like(s.nearest, torch.inf)
    rows, zero = torch.arange(len(s.x), device=s.x.device), torch.zeros_like(s.x)
    w = torch.atanh((2 * s.x - 1) * INSIDE)
    run = _Run(rows, s.x, s.y, s.c, w, zero, zero, torch.full_like(s.c, torch.inf))
    for step in range(1, steps + 1):
        gradient, image, values, logits = _objective(victim, run, confidence=confidence)
        away = distance(image, run.x, "l2").to(nearest.dtype)
        wins = fooled(logits, run.y) & ~(_lead(logits, run.y) < confidence) & (away < nearest[run.row])
        wins = victim.confirmed(wins, image, run.y)
        best[run.row[wins]], nearest[run.row[wins]] = image[wins], away[wins]
        run = _adam(run, gradient, step, rate=rate)
        if step % max(steps // CHECKS, 1) == 0:
            run = replace(run, mark=values)[values <= STILL * run.mark]
        if not len(run.row):
            break
    return best, nearest


def _objective(victim: Victim, run: _Run, *, confidence: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient by w of |x' - x|^2 + c max(-lead, -confidence); x'; the objective; the logits at x'."""
    with torch.enable_grad():
        w = run.w.detach().requires_grad_()
        image = (torch.tanh(w) + 1) / 2
        logits = victim(image)
        hinge = (-_lead(logits, run.y)).clamp(min=-confidence).to(w.dtype)
        values = (image - run.x).square().sum(within(run.x)) + run.c * hinge
    return pulled_back(victim, values, w), image.detach(), values.detach(), logits.detach()


def _adam(run: _Run, gradient: Tensor, step: int, *, rate: float) -> _Run:
    """Kingma & Ba (2015), algorithm 1, with their constants."""
    mean = 0.9 * run.mean + 0.1 * gradient
    square = 0.999 * run.square + 0.001 * gradient.square()
    move = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return replace(run, w=run.w - rate * move, mean=mean, square=square)
