"""Momentum iterative FGSM, with diverse inputs: the attack whose examples transfer to other networks."""

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from lrc.attacks.common import attacked, input_gradient, laid_out_like, step_length
from lrc.attacks.losses import Loss, loss_function
from lrc.attacks.rng import image_keys, uniform
from lrc.attacks.threat_model import ball, spread, unit, within
from lrc.utils.checks import check_number, check_whole


def mifgsm(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    y: Int[Tensor, "n"],
    *,
    eps: float,
    steps: int = 10,
    step: float | None = None,
    decay: float = 1.0,
    diversity: float = 0.0,
    smallest: float = 0.9,
    norm: str = "linf",
    loss: str | Loss = "ce",
    target: Int[Tensor, "n"] | None = None,
    generator: Generator | None = None,
) -> Float[Tensor, "n *shape"]:
    """Images within eps of x on which the loss is large, by steps along an accumulated gradient.

    The steps go along g, where ``g <- decay g + gradient / |gradient|_1`` before each.

    Args:
        model, x, y, eps, norm, loss, target: as in `lrc.attacks.pgd`.
        steps: number of steps, from x.
        step: length of one, in the units of eps; eps / steps by default.
        decay: mu of the paper; 1 is MI-FGSM, 0 is iterative FGSM.
        diversity: probability, at each step, that an image's gradient is taken at a shrunken copy of it, put somewhere
            on black (DI); x are then images (n, c, h, w).
        smallest: size that such a copy has at least, as a part of the whole, in (0, 1].
        generator: of these copies, each image's of its own (`lrc.attacks.rng`).

    Returns:
        The last iterate, in the ball and in [0, 1] to the last bit.

    Raises:
        InputError: as in `lrc.attacks.pgd`; steps < 0, a diversity outside [0, 1], a `smallest` outside (0, 1], or a
            diversity where x are not images.

    Warns:
        RuntimeWarning: the network gave NaN or infinite logits.

    Source: Dong et al., *Boosting adversarial attacks with momentum* (2018), algorithm 1; Xie et al., *Improving
    transferability of adversarial examples with input diversity* (2019), section 3.2, here with sizes that need not be
    whole and bilinear interpolation.
    """
    check_whole("steps", steps)
    check_number("decay", decay)
    check_number("diversity", diversity, "[0, 1]")
    check_number("smallest", smallest, "(0, 1]")
    objective, length = loss_function(loss, targeted=target is not None), step_length(step, eps, steps=steps)
    with attacked(model, x, y, eps=eps, norm=norm, target=target, dims=4 if diversity else None) as (victim, z, labels):
        inside, keys, slope = ball(z, eps, norm), image_keys(z, generator), torch.zeros_like(z)
        for turn in range(steps):
            seen = _Diverse(victim, keys, turn, diversity, smallest) if diversity else victim
            gradient = input_gradient(seen, z, labels, loss=objective)
            size = gradient.abs().sum(within(z))
            slope = decay * slope + torch.where(spread(size > 0, z), gradient / spread(size, z), 0.0)
            z = inside.project(z + length * unit(slope, norm))
    return laid_out_like(x, z)


class _Diverse(nn.Module):
    """The model behind a random shrinking of each image, other ones at each turn."""

    def __init__(self, victim: nn.Module, keys: Tensor, turn: int, diversity: float, smallest: float) -> None:
        super().__init__()
        self.victim, self.numbers = victim, uniform(keys, (4,), draw=turn)
        self.diversity, self.smallest = diversity, smallest

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        chance, size, down, right = self.numbers.unbind(1)
        size = torch.where(chance < self.diversity, self.smallest + (1 - self.smallest) * size, 1.0)
        return self.victim(shrink(x, size, down=down, right=right))


def shrink(
    x: Float[Tensor, "n c h w"], size: Float[Tensor, "n"], *, down: Float[Tensor, "n"], right: Float[Tensor, "n"]
) -> Float[Tensor, "n c h w"]:
    """Each image shrunken to `size` of itself, on black; `down` and `right` in [0, 1] say where in the room left."""
    rows, columns = _places(x.shape[2], size, down), _places(x.shape[3], size, right)
    grid = torch.stack(
        [
            columns[:, None, :].expand(-1, x.shape[2], -1),
            rows[:, :, None].expand(-1, -1, x.shape[3]),
        ],
        dim=3,
    )
    return nn.functional.grid_sample(x, grid.to(x), mode="bilinear", padding_mode="zeros", align_corners=False)


def _places(length: int, size: Tensor, shift: Tensor) -> Tensor:
    """Where in the whole image, in [-1, 1], each pixel of the shrunken one's canvas looks."""
    centres = (torch.arange(length, device=size.device) + 0.5) / length
    return 2 * (centres - (shift * (1 - size))[:, None]) / size[:, None] - 1
