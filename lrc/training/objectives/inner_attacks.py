"""Inner maximization: attacks of TRADES, local linearity and local flatness, and noise; others use `lrc.attacks`."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from lrc.attacks import pgd
from lrc.attacks.common import Victim, ascent, attacked, laid_out_like
from lrc.attacks.losses import cross_entropy
from lrc.attacks.rng import image_keys, normal
from lrc.attacks.threat_model import ball, spread, within
from lrc.training.objectives.objective import logits
from lrc.utils.checks import check_images, check_whole, explained
from lrc.utils.errors import InputError
from lrc.utils.networks import untouched
from lrc.utils.tensors import Labels, Logits, PerImage, Pixels
from lrc.utils.typed import typed

Gradient = Callable[[Tensor], Tensor]
"""Images to the gradient of the quantity that the attack maximizes."""


@typed
def gaussian_noise(
    model: nn.Module, x: Pixels, y: Labels, *, sigma: float = 0.25, generator: Generator | None = None
) -> Pixels:
    """The images with Gaussian noise of standard deviation `sigma`, in units of a pixel, clipped to [0, 1]."""
    noise = normal(image_keys(x, generator), tuple(x.shape[1:]), draw=0).to(x.dtype)
    return (x + sigma * noise).clamp(0, 1)


@typed
def trades_attack(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    eps: float = 8 / 255,
    steps: int = 10,
    step: float = 0.007,
    sigma: float = 0.001,
    loss: str = "ce",
    generator: Generator | None = None,
) -> Pixels:
    """PGD examples (Linf) that start next to the image, at x + sigma N(0, 1), as TRADES and MART make theirs.

    Args:
        eps, steps, step: of the attack, in units of a pixel.
        sigma: of the start, in the same units.
        loss: "ce", or "kl" for KL(p(x) || p(x')), which needs no label and has no gradient at x itself.
        generator: of the start.

    Raises:
        InputError: another loss; and as `lrc.attacks.pgd`.

    Source: Zhang et al., *Theoretically principled trade-off between robustness and accuracy* (2019), algorithm 1.
    """
    if loss not in ("ce", "kl"):
        raise InputError(f'the inner attack raises the loss "ce" or "kl", not {loss!r}')
    check_images(x)
    noise = normal(image_keys(x, generator), tuple(x.shape[1:]), draw=0).to(x.dtype)
    goal = loss if loss == "ce" else _divergence(model, x)
    return pgd(model, x, y, eps=eps, steps=steps, step=step, loss=goal, start=x + sigma * noise)


@typed
def local_linearity_attack(
    model: nn.Module, x: Pixels, y: Labels, *, eps: float = 8 / 255, steps: int = 2, generator: Generator | None = None
) -> Pixels:
    """Images within eps (Linf) where the loss l is least like its tangent: ``max |l(x') - l(x) - (x' - x) l'(x)|``.

    Signed gradient steps of 2.5 eps / steps from a random start; the authors take the same number by Adam.

    Source: Qin et al., *Adversarial robustness through local linearization* (2019).
    """

    def slope(victim: Victim, x: Tensor, y: Tensor) -> Gradient:
        tangent, base, _ = ascent(victim, x, y, loss=cross_entropy)

        def at(z: Tensor) -> Tensor:
            gradient, value, _ = ascent(victim, z, y, loss=cross_entropy)
            error = value - base - ((z - x) * tangent).sum(within(x))
            return spread(error.sign(), x) * (gradient - tangent)

        return at

    return _climb(model, x, y, slope, eps=eps, steps=steps, generator=generator)


@typed
def gradient_norm_attack(
    model: nn.Module, x: Pixels, y: Labels, *, eps: float = 8 / 255, steps: int = 2, generator: Generator | None = None
) -> Pixels:
    """Images within eps (Linf) where the gradient of the loss is long: ``max |l'(x')|_1``, by signed gradient steps.

    The steps are of 2.5 eps / steps, from a random start.

    Source: the local flatness of Xu et al., *Adversarial defense via local flatness regularization* (2020).
    """

    def slope(victim: Victim, x: Tensor, y: Tensor) -> Gradient:
        def at(z: Tensor) -> Tensor:
            with torch.enable_grad(), explained(victim, z):
                z = z.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(cross_entropy(victim(z), y).sum(), z, create_graph=True)
                return torch.autograd.grad(gradient.abs().sum(), z)[0]

        return at

    return _climb(model, x, y, slope, eps=eps, steps=steps, generator=generator)


def _climb(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    slope: Callable[[Victim, Tensor, Tensor], Gradient],
    *,
    eps: float,
    steps: int,
    generator: Generator | None,
) -> Pixels:
    """Signed gradient ascent from a random point of the ball."""
    check_whole("steps", steps, 1)
    with attacked(model, x, y, eps=eps) as (victim, images, labels):
        inside, up = ball(images, eps, "linf"), slope(victim, images, labels)
        z = inside.sample(image_keys(images, generator), draw=0)
        for _ in range(steps):
            z = inside.project(z + 2.5 * eps / steps * up(z).sign())
    return laid_out_like(x, z)


def _divergence(model: nn.Module, x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """KL(p(x) || p(x')) up to the entropy of p(x), which x' does not change, as a loss of an attack on x."""
    with untouched(model), torch.no_grad():
        p = logits(model, x).softmax(1)

    def divergence(z: Logits, _: Labels) -> PerImage:
        return -(p * z.log_softmax(1)).sum(1)

    return divergence
