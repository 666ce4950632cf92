"""Gradient attacks with a fixed step: FGSM, PGD, and momentum iterative FGSM with diverse inputs."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from lrc.attacks.common import Victim, attacked, input_gradient, laid_out_like, step_length
from lrc.attacks.losses import Loss, fooled, lead, loss_function
from lrc.attacks.rng import image_keys, uniform
from lrc.attacks.threat_model import Ball, ball, spread, unit, within
from lrc.utils.checks import check_flag, check_number, check_tensor, check_whole
from lrc.utils.errors import InputError
from lrc.utils.tensors import Labels, Logits, PerImage, Pixels


def pgd(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    eps: float,
    steps: int,
    step: float | None = None,
    norm: str = "linf",
    loss: str | Loss = "ce",
    random_start: bool = True,
    start: Pixels | None = None,
    restarts: int = 1,
    target: Labels | None = None,
    generator: Generator | None = None,
    precision: str = "float32",
) -> Pixels:
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
        precision: "bf16" takes the gradients from a network run in bfloat16, a faster search; images, projection and
            verdicts stay float32. An image's gradient then may hang on its neighbours, in the last of its 8 bits.

    Returns:
        The last iterate; of several runs that of the first one that fools the model, else the one where a wrong class
        (the target) leads by most. In the ball and in [0, 1] to the last bit, on the device of x.

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
    with attacked(model, x, y, eps=eps, norm=norm, target=target, precision=precision) as (victim, images, labels):
        balls = ball(images, eps, norm)
        keys = image_keys(images, generator) if random_start and start is None else None
        origin = images if start is None else balls.project(start.detach().to(images))
        found, left = images.clone(), torch.arange(len(images), device=images.device)
        most = torch.full((len(images),), -torch.inf, device=images.device)
        for restart in range(restarts):
            inside, goals = (balls, labels) if restart == 0 else (balls[left], labels[left])
            begin = origin[left] if keys is None else inside.sample(keys[left], draw=2 * restart)
            z = _walk(victim, begin, goals, inside=inside, steps=steps, step=length, loss=objective)
            if restarts == 1:
                found = z
                break
            logits = victim.verdict(z)
            hit, ahead = fooled(logits, goals), lead(logits, goals).to(most.dtype)
            better = hit | (ahead > most[left])
            found[left[better]], most[left[better]] = z[better], ahead[better]
            left = left[~hit]
            if not len(left):
                break
    return laid_out_like(x, found)


def fgsm(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    eps: float,
    loss: str | Loss = "ce",
    random_start: bool = False,
    target: Labels | None = None,
    generator: Generator | None = None,
    precision: str = "float32",
) -> Pixels:
    """One signed gradient step of length eps from x, or one of 1.25 eps from a random point of the ball.

    Args:
        random_start: the second of these.
        model, x, y, eps, loss, target, generator, precision: as in `lrc.attacks.pgd`, as are the image returned and
            the errors.

    Source: Goodfellow et al., *Explaining and harnessing adversarial examples* (2015); the random start and its step:
    Wong et al., *Fast is better than free* (2020).
    """
    check_flag("random_start", random_start)
    check_number("eps", eps)
    return pgd(
        model,
        x,
        y,
        eps=eps,
        steps=1,
        step=1.25 * eps if random_start else eps,
        loss=loss,
        random_start=random_start,
        target=target,
        generator=generator,
        precision=precision,
    )


def mifgsm(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    eps: float,
    steps: int = 10,
    step: float | None = None,
    decay: float = 1.0,
    diversity: float = 0.0,
    smallest: float = 0.9,
    norm: str = "linf",
    loss: str | Loss = "ce",
    target: Labels | None = None,
    generator: Generator | None = None,
    precision: str = "float32",
) -> Pixels:
    """Images within eps of x on which the loss is large, by steps along an accumulated gradient.

    The steps go along g, where ``g <- decay g + gradient / |gradient|_1`` before each.

    Args:
        model, x, y, eps, norm, loss, target, precision: as in `pgd`.
        steps: number of steps, from x.
        step: length of one, in the units of eps; eps / steps by default.
        decay: mu of the paper; 1 is MI-FGSM, 0 is iterative FGSM.
        diversity: probability, at each step, that an image's gradient is taken at a shrunken copy of it, put somewhere
            on black (DI); x are then images (n, c, h, w).
        smallest: size that such a copy has at least, as a part of the whole, in (0, 1].
        generator: of these copies, each image's of its own (`lrc.attacks.rng`).

    Returns:
        The last iterate.

    Raises:
        InputError: as in `pgd`; a diversity outside [0, 1], a `smallest` outside (0, 1], or a diversity where x are not
            images.

    Source: Dong et al., *Boosting adversarial attacks with momentum* (2018), algorithm 1; Xie et al., *Improving
    transferability of adversarial examples with input diversity* (2019), section 3.2, here with sizes that need not be
    whole and bilinear interpolation.
    """
    check_whole("steps", steps)
    decay = check_number("decay", decay)
    check_number("diversity", diversity, "[0, 1]")
    check_number("smallest", smallest, "(0, 1]")
    objective, length = loss_function(loss, targeted=target is not None), step_length(step, eps, steps=steps)
    with attacked(
        model, x, y, eps=eps, norm=norm, target=target, dims=4 if diversity else None, precision=precision
    ) as (victim, z, labels):
        inside, keys, slope = ball(z, eps, norm), image_keys(z, generator), torch.zeros_like(z)
        for turn in range(steps):
            seen = _Diverse(victim, keys, turn, diversity, smallest) if diversity else victim
            gradient = input_gradient(seen, z, labels, loss=objective, half=victim.bf16)
            size = gradient.abs().sum(within(z))
            slope = decay * slope + torch.where(spread(size > 0, z), gradient / spread(size, z), 0.0)
            z = inside.project(z + length * unit(slope, norm))
    return laid_out_like(x, z)


def _check_start(start: Tensor, x: Tensor) -> None:
    check_tensor("start", start)
    check_tensor("images", x)
    if start.shape != x.shape or not start.is_floating_point() or not start.isfinite().all():
        raise InputError(
            f"start must be finite images {tuple(x.shape)} like the others, not {start.dtype} {tuple(start.shape)}"
        )


def _walk(victim: Victim, z: Tensor, y: Tensor, *, inside: Ball, steps: int, step: float, loss: Loss) -> Tensor:
    for _ in range(steps):
        gradient = input_gradient(victim, z, y, loss=loss, half=victim.bf16)
        z = inside.project(z + step * unit(gradient, inside.norm))
    return z


class _Diverse(nn.Module):
    """The model behind a random shrinking of each image, other ones at each turn."""

    def __init__(self, victim: nn.Module, keys: Tensor, turn: int, diversity: float, smallest: float) -> None:
        super().__init__()
        self.victim, self.numbers = victim, uniform(keys, (4,), draw=turn)
        self.diversity, self.smallest = diversity, smallest

    def forward(self, x: Float[Tensor, "n c h w"]) -> Logits:
        chance, size, down, right = self.numbers.unbind(1)
        size = torch.where(chance < self.diversity, self.smallest + (1 - self.smallest) * size, 1.0)
        return self.victim(shrink(x, size, down=down, right=right))


def shrink(x: Float[Tensor, "n c h w"], size: PerImage, *, down: PerImage, right: PerImage) -> Float[Tensor, "n c h w"]:
    """Each image shrunken to `size` of itself, on black; `down` and `right` in [0, 1] say where in the room left."""
    if not len(x):
        return x
    moved = (1 - size) * (1 - 2 * torch.stack([right, down]))  # of the middle, in [-1, 1] over the canvas
    theta = (
        torch.cat([torch.eye(2, device=x.device).expand(len(x), 2, 2), moved.T[:, :, None]], 2) / size[:, None, None]
    )
    grid = F.affine_grid(theta.to(x), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
