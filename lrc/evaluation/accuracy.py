"""What a trained classifier says, how often it is right, and which of its errors matter for superclasses."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Generator, Tensor, nn

from lrc.attacks.autoattack import called
from lrc.clustering.contrasts import Groups, labels_of, listed
from lrc.data import Images, batches
from lrc.data.images import check_set
from lrc.utils.checks import (
    check_generator,
    check_labels,
    check_logits,
    check_network,
    check_tensor,
    check_whole,
    explained,
)
from lrc.utils.errors import InputError
from lrc.utils.networks import Asked, check_independent, untouched
from lrc.utils.tensors import Labels, Logits

Attack = Callable[..., Tensor]
"""`attack(model, x, y, *, generator) -> x_adv`: one of `lrc.attacks`, its options fixed by `functools.partial`."""


def logits(
    model: nn.Module,
    images: Images,
    *,
    attack: Attack | None = None,
    batch_size: int = 500,
    generator: Generator | None = None,
) -> Logits:
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
        InputError: no images, or a network that does not give logits (n, classes), or whose answer to an image
            depends on the others in its batch.
    """
    batch_size = check_data(model, images, batch_size=batch_size, generator=generator)
    device, out, asked = device_of(model, images), [], Asked(model)
    with untouched(model):
        for x, y in batches(images, batch_size):
            x, y = x.to(device), y.to(device)
            if attack is not None:
                x = called(attack, model, x, y, {"generator": generator})
            with torch.no_grad(), explained(model, x):
                out.append(check_logits(asked(x), len(x)).float())
            if len(out) == 1:
                check_independent(model, x)
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

    Raises:
        InputError: as in `logits`, or a network with other classes than the images.
    """
    z = logits(model, images, attack=attack, batch_size=batch_size, generator=generator)
    check_classes(z, images)
    return int((predictions(z).cpu() == images.y.cpu()).sum()) / len(images)


def predictions(z: Logits) -> Int64[Tensor, " n"]:
    """The class of the largest logit; -1, no class, where some logit is not finite.

    >>> predictions(torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]))
    tensor([ 1, -1])
    """
    return torch.where(z.isfinite().all(1), z.argmax(1), -1)


@dataclass(frozen=True)
class Split:
    """What part of the images is classified rightly, wrongly within the superclass, and across superclasses.

    Attributes:
        right: the subclass is right.
        within: another subclass of the right superclass.
        across: another superclass. The three sum to 1.
    """

    right: float
    within: float
    across: float

    @property
    def superclass(self) -> float:
        """Part for which the superclass is right."""
        return self.right + self.within


def confusions(predicted: Labels, y: Int[Tensor, " labels"], groups: Groups) -> Split:
    """How the answers of a classifier part into right, wrong within the superclass, and wrong across superclasses.

    Args:
        predicted: the class predicted for each image, -1 for none: see `lrc.evaluation.Report.predictions`.
        y: labels, in range(classes).
        groups: the classes of each superclass.

    Raises:
        InputError: groups that are no partition of the classes, no images, or labels or predictions that do not fit.

    >>> confusions(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0]), [[0, 1], [2]])
    Split(right=0.333..., within=0.333..., across=0.333...)
    """
    groups = listed(groups)
    classes = sum(map(len, groups))
    check_tensor("predictions", predicted)
    of = labels_of(groups, classes).to(predicted.device)
    if predicted.dim() != 1 or predicted.is_floating_point() or predicted.is_complex():
        raise InputError(f"predictions must be whole numbers (n,), not {predicted.dtype} {tuple(predicted.shape)}")
    predicted = predicted.long()
    y = _fitting(y, predicted, classes)
    if predicted.amin() < -1 or predicted.amax() >= classes:
        raise InputError(f"predictions {predicted.amin()}..{predicted.amax()}, the classes are 0..{classes - 1}")
    right = int((predicted == y).sum())
    superclass = int(((of[predicted] == of[y]) & (predicted >= 0)).sum())
    n = len(predicted)
    return Split(right / n, (superclass - right) / n, (n - superclass) / n)


def per_superclass(z: Float[Tensor, "n superclasses"], y: Int[Tensor, " labels"]) -> Float[Tensor, " superclasses"]:
    """The accuracy on the images of each superclass, in [0, 1]; NaN for one without images.

    Args:
        z: logits of the superclasses, those of `lrc.models.Superclasses`, say; not finite ones count as wrong.
        y: labels, in range(superclasses).

    Raises:
        InputError: no images, or labels that do not fit.

    >>> per_superclass(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 0, 1]))
    tensor([0.5000, 1.0000,    nan])
    """
    check_tensor("logits", z)
    z = check_logits(z, len(z) if z.dim() else 0)
    y = _fitting(y, z, z.shape[1])
    predicted = predictions(z)
    return y[predicted == y].bincount(minlength=z.shape[1]) / y.bincount(minlength=z.shape[1])


def check_data(model: nn.Module, images: Images, *, batch_size: int, generator: Generator | None) -> int:
    """Refuses what cannot be evaluated, before anything runs; the batch size."""
    check_network(model)
    check_set(images, "the images")
    if not len(images):
        raise InputError("there are no images to classify: give at least one")
    check_generator(generator)
    return check_whole("batch_size", batch_size, 1)


def check_classes(z: Logits, images: Images) -> None:
    """Refuses logits of other classes than the images'."""
    if z.shape[1] != len(images.classes):
        mend = "take images of its classes, or give it a head for these"
        raise InputError(f"the network has {z.shape[1]} classes, the data {len(images.classes)}: {mend}")


def device_of(model: nn.Module, images: Images) -> torch.device:
    """That of the model, or where it has no weights that of the images."""
    return next((t.device for t in (*model.parameters(), *model.buffers())), images.y.device)


def _fitting(y: Tensor, answers: Tensor, classes: int) -> Tensor:
    """The labels, beside the answers, if there is one in range for each."""
    if not len(answers):
        raise InputError("there are no answers to count: give those for one image at least")
    check_labels(y, len(answers), classes=classes)
    return y.to(answers.device, torch.int64)
