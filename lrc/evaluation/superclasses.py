"""Classifiers of subclasses asked for the superclass: as a network of its own, and which of its errors matter then."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lrc.clustering.contrasts import Groups, labels_of
from lrc.evaluation.accuracy import answers
from lrc.utils.errors import InputError

__all__ = ["Split", "Superclasses", "confusions", "per_superclass"]

WAYS = ("max", "sum")


class Superclasses(nn.Module):
    """A classifier of subclasses as one of superclasses: logits (n, superclasses).

    It is a network like any other: its labels are those of `lrc.data.as_superclasses`, and an attack on it is aimed at
    the superclass, whatever becomes of the subclass.

    Args:
        model: images to logits of the subclasses; shared, not copied.
        groups: the subclasses of each superclass, as indices of the logits; each in one group.
        by: "max" for the largest logit of the members, so that the answer is the superclass of the subclass that the
            model says; or "sum" for the logarithm of their summed exponentials, so that the probability of a superclass
            is the sum of its members'.

    Raises:
        InputError: groups that are no partition of the logits, or another `by`; the number of logits is known only when
            the network is run.

    Source: "max" is how Bai et al., *Clustering effect of adversarial robust models* (2021), section 4.1, count an
    answer as right; their script attacks the subclasses instead.

    >>> z = torch.tensor([[2.0, 0.0, 1.5, 1.5]])
    >>> Superclasses(nn.Identity(), [[0, 1], [2, 3]])(z)
    tensor([[2.0000, 1.5000]])
    >>> Superclasses(nn.Identity(), [[0, 1], [2, 3]], by="sum")(z)
    tensor([[2.1269, 2.1931]])
    """

    members: Tensor

    def __init__(self, model: nn.Module, groups: Groups, *, by: str = "max") -> None:
        super().__init__()
        if by not in WAYS:
            raise InputError(f"logits of a superclass are taken by {' or '.join(WAYS)} over its subclasses, not {by!r}")
        of = labels_of(groups, sum(map(len, groups)))
        self.model, self.by = model, by
        # bool and not kept among the weights: no change of precision touches it
        self.register_buffer("members", of == torch.arange(len(groups))[:, None], persistent=False)
        self.input_shape: Sequence[int] | None = getattr(model, "input_shape", None)

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n superclasses"]:
        z = self.model(x)
        if isinstance(z, Tensor) and z.shape[-1] != self.members.shape[1]:  # torch.fx traces with what is no tensor
            raise InputError(f"groups part {self.members.shape[1]} subclasses, the network has {z.shape[-1]} logits")
        own = torch.where(self.members.to(z.device), z[:, None], -torch.inf)
        return own.amax(2) if self.by == "max" else own.logsumexp(2)

    def extra_repr(self) -> str:
        return f"by={self.by!r}"


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


def confusions(said: Int[Tensor, " n"], y: Int[Tensor, " labels"], groups: Groups) -> Split:
    """How the answers of a classifier part into right, wrong within the superclass, and wrong across superclasses.

    Args:
        said: the class that is said of each image, -1 for none: see `lrc.evaluation.Report.said`.
        y: labels, in range(classes).
        groups: the classes of each superclass.

    Raises:
        InputError: groups that are no partition of the classes, no images, or labels or answers that do not fit.

    >>> confusions(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0]), [[0, 1], [2]])
    Split(right=0.333..., within=0.333..., across=0.333...)
    """
    classes = sum(map(len, groups))
    of = labels_of(groups, classes).to(said.device)
    y = _fitting(y, said, classes)
    said = said.long()
    if said.amin() < -1 or said.amax() >= classes:
        raise InputError(f"answers go from {said.amin()} to {said.amax()}, the classes are 0..{classes - 1}")
    right, superclass = int((said == y).sum()), int(((of[said] == of[y]) & (said >= 0)).sum())
    n = len(said)
    return Split(right / n, (superclass - right) / n, (n - superclass) / n)


def per_superclass(z: Float[Tensor, "n superclasses"], y: Int[Tensor, " labels"]) -> Float[Tensor, " superclasses"]:
    """The accuracy on the images of each superclass, in [0, 1]; NaN for one without images.

    Args:
        z: logits of the superclasses, those of `Superclasses`, say; not finite ones count as wrong.
        y: labels, in range(superclasses).

    Raises:
        InputError: no images, or labels that do not fit.

    >>> per_superclass(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 0, 1]))
    tensor([0.5000, 1.0000,    nan])
    """
    y = _fitting(y, z, z.shape[1])
    said = answers(z)
    return y[said == y].bincount(minlength=z.shape[1]) / y.bincount(minlength=z.shape[1])


def _fitting(y: Tensor, answers: Tensor, classes: int) -> Tensor:
    """The labels, beside the answers, if there is one in range for each."""
    if not len(answers) or len(y) != len(answers):
        raise InputError(
            f"answers for {len(answers)} images with {len(y)} labels: give one label an image, at least one"
        )
    if y.amin() < 0 or y.amax() >= classes:
        raise InputError(f"labels go from {y.amin()} to {y.amax()}, the classes are 0..{classes - 1}")
    return y.to(answers.device, torch.int64)
