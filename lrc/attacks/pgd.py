"""Projected gradient descent."""

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from lrc.attacks.common import Victim, attacked, input_gradient, laid_out_like, step_length
from lrc.attacks.losses import Loss, fooled, loss_function
from lrc.attacks.rng import image_keys
from lrc.attacks.threat_model import Ball, ball, unit
from lrc.utils.checks import check_flag, check_tensor, check_whole
from lrc.utils.errors import InputError


def pgd(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    y: Int[Tensor, "n"],
    *,
    eps: float,
    steps: int,
    step: float | None = None,
    norm: str = "linf",
    loss: str | Loss = "ce",
    random_start: bool = True,
    start: Float[Tensor, "n *shape"] | None = None,
    restarts: int = 1,
    target: Int[Tensor, "n"] | None = None,
    generator: Generator | None = None,
) -> Float[Tensor, "n *shape"]:
    """Images within eps of x on which the loss is large, found by `steps` projected gradient steps.

    Args:
        model: images in [0, 1] to logits (n, classes). It is run in eval mode, whatever its mode, and left as it was.
        x: images in [0, 1], float32 or float64.
        y: true labels, in range(classes).
        eps: radius of the ball, in units of a pixel in [0, 1] (8/255, say).
        steps: number of gradient steps.
        step: length of one step, in the units of eps; 2.5 eps / steps by default (Madry et al., 2018).
        norm: "linf" (steps along the sign of the gradient) or "l2" (along the gradient, scaled to length one an image).
        loss: "ce", "margin" (Carlini & Wagner), "dlr" (Croce & Hein), or a function (logits, y) -> (n,); in a
            targeted attack its y (n, 2) are pairs of label and target.
        random_start: start at a uniformly random point of the ball instead of at x.
        start: start here, moved into the ball, whatever `random_start` says.
        restarts: number of runs; a further one is made, from another random start, for images that are not yet fooled.
        target: the class that each image is to be taken for; absent, any but its own.
        generator: of the random starts, on any device; each image's depends on it and on the image alone
            (`lrc.attacks.rng`). Absent, every call draws anew.

    Returns:
        The last iterate of the last run made, in the ball and in [0, 1] to the last bit, on the device of x.

    Raises:
        InputError: x not in [0, 1] or in half precision, labels out of range, eps negative, steps < 0,
            restarts < 1 (or more than one from a `start`), an unknown norm or loss.

    Warns:
        RuntimeWarning: the network gave NaN or infinite logits.

    Source: Madry et al., *Towards deep learning models resistant to adversarial attacks* (2018), equation 2.1
    and section 4.

    >>> model = nn.Linear(2, 2, bias=False)  # logits are the pixels: the brighter one wins
    >>> model.weight.data = torch.eye(2)
    >>> pgd(model, torch.tensor([[0.7, 0.4]]), torch.tensor([0]), eps=0.1, steps=10)
    tensor([[0.6000, 0.5000]])
    """
    check_whole("steps", steps)
    check_whole("restarts", restarts, 1)
    check_flag("random_start", random_start)
    if start is not None:
        _check_start(start, x)
    if restarts > 1 and start is not None:
        raise InputError(
            f"{restarts} runs from one and the same start would all end alike: leave out start or restarts"
        )
    objective = loss_function(loss, targeted=target is not None)
    length = step_length(step, eps, steps=steps, times=2.5)
    with attacked(model, x, y, eps=eps, norm=norm, target=target) as (victim, images, labels):
        balls = ball(images, eps, norm)
        keys = image_keys(images, generator) if random_start and start is None else None
        origin = images if start is None else balls.project(start.detach().to(images))
        found = images.clone()
        left = torch.arange(len(images), device=images.device)
        for restart in range(restarts):
            inside, goals = (balls, labels) if restart == 0 else (balls[left], labels[left])
            begin = origin[left] if keys is None else inside.sample(keys[left], draw=2 * restart)
            found[left] = _walk(victim, begin, goals, inside=inside, steps=steps, step=length, loss=objective)
            if restart + 1 < restarts:
                left = left[~fooled(victim.logits(found[left]), goals)]
            if not len(left):
                break
    return laid_out_like(x, found)


def _check_start(start: Tensor, x: Tensor) -> None:
    check_tensor("start", start)
    check_tensor("images", x)
    if start.shape != x.shape or not start.is_floating_point() or not start.isfinite().all():
        raise InputError(
            f"start must be finite images {tuple(x.shape)} like the others, not {start.dtype} {tuple(start.shape)}"
        )


def _walk(victim: Victim, z: Tensor, y: Tensor, *, inside: Ball, steps: int, step: float, loss: Loss) -> Tensor:
    for _ in range(steps):
        gradient = input_gradient(victim, z, y, loss=loss)
        z = inside.project(z + step * unit(gradient, inside.norm))
    return z
