"""How much more alike classes are within groups than between them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lrc.utils.errors import InputError

__all__ = ["Groups", "as_matrix", "contrast", "contrasts", "labels_of", "labels_within"]

Groups = Sequence[Sequence[int]]
"""Class indices, each class in exactly one group."""


def contrast(C: Float[Tensor, "classes classes"], groups: Groups, *, within: Groups | None = None) -> float:
    """Mean of C over pairs of classes in one group, less its mean over pairs in two: in [-2, 2] for correlations.

    Args:
        C: the class correlation.
        groups: a partition of the classes. All pairs weigh the same, so a group counts by its pairs, and a group of one
            class counts between groups only.
        within: a coarser partition. Then only pairs within one of its groups count: by how much siblings of the same
            group are more alike than siblings of two. What the coarser groups themselves explain is left out.

    Raises:
        InputError: no partition of the classes, no pair within groups or none between them, a group that is not within
            one coarser group, or C is not finite.

    >>> C = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])
    >>> round(contrast(C, [[0, 1], [2]]), 6)
    0.6
    """
    labels = labels_of(groups, len(C))
    return float(contrasts(as_matrix(C), labels[None], labels_within(within, labels)))


def contrasts(
    C: Float[Tensor, "classes classes"], labels: Int[Tensor, "splits classes"], coarse: Int[Tensor, " classes"]
) -> Float[Tensor, " splits"]:
    """The contrast of many splits of the same sizes, each given by the number of the group of each class.

    Only pairs in the same coarse group count.
    """
    pairs = (coarse[:, None] == coarse).to(C).fill_diagonal_(0)
    counted = C * pairs
    member = F.one_hot(labels).to(C)
    within = (counted @ member * member).sum((1, 2))
    n_within = member.sum(1).square().sum(1) - len(C)
    n_between = pairs.sum() - n_within
    if not (n_within.all() and n_between.all()):
        raise InputError("contrast needs at least one pair of classes within a group and one between groups")
    return within / n_within - (counted.sum() - within) / n_between


def labels_of(groups: Groups, classes: int) -> Int[Tensor, " classes"]:
    """The number of the group of each class.

    Raises:
        InputError: not each of the classes is in exactly one group, or a group is empty.
    """
    if sorted(c for group in groups for c in group) != list(range(classes)) or not all(map(len, groups)):
        shown = [list(group) for group in groups]
        raise InputError(f"groups must hold each class from 0 to {classes - 1} once and none be empty, not {shown}")
    labels = torch.empty(classes, dtype=torch.int64)
    for number, group in enumerate(groups):
        labels[list(group)] = number
    return labels


def labels_within(within: Groups | None, labels: Int[Tensor, " classes"]) -> Int[Tensor, " classes"]:
    """The number of the coarser group of each class; all classes are in one if there are no coarser groups.

    Raises:
        InputError: no partition, or one that cuts through a group.
    """
    if within is None:
        return torch.zeros_like(labels)
    coarse = labels_of(within, len(labels))
    if len(torch.stack([labels, coarse]).unique(dim=1).T) != len(labels.unique()):
        raise InputError("each group must lie within one of the coarser groups: `within` cuts through some")
    return coarse


def as_matrix(C: Float[Tensor, "classes classes"]) -> Float[Tensor, "classes classes"]:
    """C for statistics: in double precision, on the CPU.

    Raises:
        InputError: C is not finite.
    """
    if not C.isfinite().all():
        raise InputError("the matrix of classes holds values that are not finite")
    return C.detach().cpu().double()
