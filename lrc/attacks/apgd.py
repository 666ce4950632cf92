"""Auto-PGD: projected gradient descent that chooses its step by itself."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Generator, Tensor, nn

from lrc.attacks.common import Rows, Victim, ascent, attacked, laid_out_like
from lrc.attacks.losses import Loss, fooled, lead, likely_targets, loss_function, true_label
from lrc.attacks.rng import image_keys
from lrc.attacks.threat_model import Ball, ball, spread, unit
from lrc.utils.checks import check_flag, check_whole
from lrc.utils.tensors import Goals, Labels, Mask, PerImage, Pixels

MOMENTUM = 0.75
ENOUGH = 0.75  # of the steps since the last checkpoint should have raised the loss


def apgd(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    eps: float,
    steps: int = 100,
    norm: str = "linf",
    loss: str | Loss = "ce",
    targets: int = 0,
    restarts: int = 1,
    until_fooled: bool = True,
    generator: Generator | None = None,
    precision: str = "float32",
) -> Pixels:
    """Images within eps of x that fool the model, by gradient steps with momentum whose length halves when they stall.

    The first step is 2 eps long. At checkpoints (see `checkpoints`) an image whose loss rose in fewer than 75 % of
    the steps since the last one, or whose step and best loss have not changed since, goes on from its best point with
    half the step. An image that is misclassified as it is comes back unchanged.

    Args:
        model, x, y, eps, norm, generator: as in `lrc.attacks.pgd`.
        steps: gradient steps in each run.
        loss: "ce" (APGD-CE), "dlr" (APGD-DLR), "margin", or a function (logits, y) -> (n,).
        targets: number of targeted runs, toward the likeliest wrong classes in turn, or toward all there are if
            fewer; with "dlr" and 9 this is the targeted APGD-DLR of AutoAttack. 0: one untargeted run.
        restarts: how often all runs are repeated from other random starts.
        until_fooled: an image's search ends as soon as it is misclassified, whatever the run. Otherwise all runs are
            made to their end.
        precision: as in `lrc.attacks.pgd`; the losses by which steps are halved and points kept stay float32.

    Returns:
        For each image the first point found that fools the model, if it may stop there. Else each run's point of
        largest loss, and of these the one where a wrong class leads by most.

    Raises:
        InputError: as in `lrc.attacks.pgd`, or steps < 1.

    Source: Croce & Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks* (2020), algorithm 1 and sections 3 and 4.
    """
    check_whole("steps", steps, 1)
    check_whole("restarts", restarts, 1)
    check_whole("targets", targets)
    check_flag("until_fooled", until_fooled)
    objective = loss_function(loss, targeted=targets > 0)
    with attacked(model, x, y, eps=eps, norm=norm, precision=precision) as (victim, images, labels):
        balls, keys, found = ball(images, eps, norm), image_keys(images, generator), images.clone()
        logits = victim.verdict(images)
        most = torch.full((len(images),), -torch.inf, dtype=logits.dtype, device=images.device)
        left = (~fooled(logits, labels)).nonzero().squeeze(1)
        for draw, goals in enumerate(_runs(logits, labels, targets=targets, restarts=restarts)):
            if not len(left):
                break
            begin = balls[left].sample(keys[left], draw=2 * draw)
            state = _start(victim, begin, goals[left], inside=balls[left], loss=objective)
            z, ahead, hit = _run(victim, state, steps=steps, loss=objective, until_fooled=until_fooled)
            better = hit | (ahead > most[left])
            found[left[better]], most[left[better]] = z[better], ahead[better]
            left = left[~hit]
    return laid_out_like(x, found)


def checkpoints(steps: int) -> list[int]:
    """Steps after which progress is judged: ceil(p_j steps), p = 0.22, then gaps smaller by 0.03 each, to 0.06.

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    percent, gap, at = 22, 22, []
    while percent <= 100:
        at.append(-(-percent * steps // 100))  # in whole numbers: a float's 0.57 * 100 exceeds 57
        gap = max(gap - 3, 6)
        percent += gap
    return sorted({step for step in at if step < steps})


@dataclass(frozen=True)
class _State(Rows):
    """Where the search stands for the images still in it, a row each."""

    row: Int[Tensor, " n"]
    inside: Ball
    y: Goals
    z: Pixels
    before: Pixels
    gradient: Pixels
    loss: PerImage
    best: Pixels
    best_gradient: Pixels
    best_loss: PerImage
    step: PerImage
    rises: Int[Tensor, " n"]  # since the last checkpoint
    halved: Mask  # at the last checkpoint
    mark: PerImage  # the best loss at the last checkpoint
    hit: Mask  # z fools the model
    best_lead: PerImage  # of the best wrong class at the best point: comparable between targets


def _runs(logits: Tensor, y: Tensor, *, targets: int, restarts: int) -> Iterator[Tensor]:
    """Labels, or pairs of label and target, for each run."""
    for _ in range(restarts):
        if targets:
            likely = likely_targets(logits, y, count=targets)
            yield from (torch.stack([y, target], 1) for target in likely.unbind(1))
        else:
            yield y


def _start(victim: Victim, z: Tensor, y: Tensor, *, inside: Ball, loss: Loss) -> _State:
    gradient, values, logits = ascent(victim, z, y, loss=loss)
    rows = torch.arange(len(z), device=z.device)
    step = torch.full_like(values, 2 * inside.eps, dtype=z.dtype)
    here, still = (z, gradient, values), torch.zeros_like(rows, dtype=torch.bool)
    hit, ahead = fooled(logits, true_label(y)), lead(logits, true_label(y))
    return _State(rows, inside, y, z, z, *here[1:], *here, step, torch.zeros_like(rows), still, values, hit, ahead)


def _run(victim: Victim, state: _State, *, steps: int, loss: Loss, until_fooled: bool) -> tuple[Pixels, PerImage, Mask]:
    """Image found for each row, how far the best wrong class is ahead there, and whether the search may end for it."""
    found, ahead, hit = state.z.clone(), state.best_lead.clone(), torch.zeros_like(state.hit)
    last = 0
    judged = set(checkpoints(steps))
    for k in range(steps + 1):
        if k:
            state = _advance(victim, state, momentum=MOMENTUM if k > 1 else 1.0, loss=loss)
        if until_fooled and (sure := victim.confirmed(state.hit, state.z, true_label(state.y))).any():
            done = state[sure]
            found[done.row], hit[done.row] = done.z, True
            state = state[~sure]
        if not len(state.row):
            break
        if k in judged:
            state, last = _judge(state, gap=k - last), k
    found[state.row], ahead[state.row] = state.best, state.best_lead
    return found, ahead, hit


def _advance(victim: Victim, s: _State, *, momentum: float, loss: Loss) -> _State:
    """One step: along the gradient, then with momentum, each projected; and what is found there."""
    inside = s.inside
    straight = inside.project(s.z + spread(s.step, s.z) * unit(s.gradient, inside.norm))
    z = inside.project(s.z + momentum * (straight - s.z) + (1 - momentum) * (s.z - s.before))
    gradient, values, logits = ascent(victim, z, s.y, loss=loss)
    rises = s.rises + (values > s.loss)
    better = values > s.best_loss
    s = replace(s, z=z, before=s.z, gradient=gradient, loss=values, rises=rises, hit=fooled(logits, true_label(s.y)))
    return _keep_best(s, better, lead(logits, true_label(s.y)))


def _keep_best(s: _State, better: Tensor, ahead: Tensor) -> _State:
    wide = spread(better, s.z)
    return replace(
        s,
        best=torch.where(wide, s.z, s.best),
        best_gradient=torch.where(wide, s.gradient, s.best_gradient),
        best_loss=torch.where(better, s.loss, s.best_loss),
        best_lead=torch.where(better, ahead, s.best_lead),
    )


def _judge(s: _State, *, gap: int) -> _State:
    """At a checkpoint: half the step, and back to the best point, where the search has stalled."""
    stalled = (s.rises < ENOUGH * gap) | (~s.halved & (s.best_loss <= s.mark))
    wide = spread(stalled, s.z)
    return replace(
        s,
        z=torch.where(wide, s.best, s.z),
        gradient=torch.where(wide, s.best_gradient, s.gradient),
        loss=torch.where(stalled, s.best_loss, s.loss),
        step=torch.where(stalled, s.step / 2, s.step),
        rises=torch.zeros_like(s.rises),
        halved=stalled,
        mark=s.best_loss,
    )
