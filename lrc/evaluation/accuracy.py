"""What a trained classifier says, and how often it is right."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor, nn

from lrc.data import Images, batches
from lrc.utils.errors import InputError
from lrc.utils.networks import untouched

__all__ = ["accuracy", "answers", "logits"]

Attack = Callable[..., Tensor]
"""`attack(model, x, y, *, generator) -> x_adv`: one of `lrc.attacks`, its options fixed by `functools.partial`."""


def logits(
    model: nn.Module,
    images: Images,
    *,
    attack: Attack | None = None,
    batch_size: int = 500,
    generator: Generator | None = None,
) -> Float[Tensor, "n classes"]:
    """Logits of all the images in their order, attacked first if an attack is given.

    Args:
        model: images in [0, 1] to logits; run in eval mode, and left as it was.
        images: as many as fit in memory, at least one; they go to the device of the model batch by batch.
        attack: an attack with its options fixed, or None; it gets the model in eval mode, its parameters frozen.
        batch_size: images at a time.
        generator: of the attack's random choices.

    Returns:
        float32, on the device of the model.

    Raises:
        InputError: no images.
    """
    if not len(images):
        raise InputError("there are no images to classify")
    device, out = device_of(model, images), []
    with untouched(model):
        for x, y in batches(images, batch_size):
            x, y = x.to(device), y.to(device)
            if attack is not None:
                x = attack(model, x, y, generator=generator)
            with torch.no_grad():
                out.append(model(x).float())
    return torch.cat(out)


def accuracy(
    model: nn.Module,
    images: Images,
    *,
    attack: Attack | None = None,
    batch_size: int = 500,
    generator: Generator | None = None,
) -> float:
    """Fraction of the images, attacked first if an attack is given, that the model classifies rightly; in [0, 1].

    One with logits that are not finite is none of these.

    Args: as in `logits`.
    """
    z = logits(model, images, attack=attack, batch_size=batch_size, generator=generator)
    return int((answers(z).cpu() == images.y.cpu()).sum()) / len(images)


def answers(z: Float[Tensor, "n classes"]) -> Int64[Tensor, " n"]:
    """The class of the largest logit; -1, no class, where some logit is not finite.

    >>> answers(torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]))
    tensor([ 1, -1])
    """
    return torch.where(z.isfinite().all(1), z.argmax(1), -1)


def device_of(model: nn.Module, images: Images) -> torch.device:
    """That of the model, or where it has no weights that of the images."""
    return next((t.device for t in (*model.parameters(), *model.buffers())), images.y.device)
