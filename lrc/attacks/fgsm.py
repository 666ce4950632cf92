"""The fast gradient sign method."""

from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from lrc.attacks.losses import Loss
from lrc.attacks.pgd import pgd
from lrc.utils.checks import check_flag, check_number


def fgsm(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    y: Int[Tensor, "n"],
    *,
    eps: float,
    loss: str | Loss = "ce",
    random_start: bool = False,
    target: Int[Tensor, "n"] | None = None,
    generator: Generator | None = None,
) -> Float[Tensor, "n *shape"]:
    """One signed gradient step of length eps from x, or one of 1.25 eps from a random point of the ball.

    Args:
        random_start: the second of these.
        model, x, y, eps, loss, target, generator: as in `lrc.attacks.pgd`, as are the image returned and the errors.

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
    )
