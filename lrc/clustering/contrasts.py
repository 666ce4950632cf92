"""How much more alike classes are within groups than between them, and what random weights give."""

import operator
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from lrc.clustering.similarity import as_matrix, class_correlation
from lrc.linearization import linear_map
from lrc.utils.checks import check_generator, check_number, check_tensor, check_whole
from lrc.utils.errors import InputError
from lrc.utils.tensors import Matrix

Groups = Sequence[Sequence[int]]
"""Class indices, each class in exactly one group."""


def contrast(C: Matrix, groups: Groups, *, within: Groups | None = None) -> float:
    """Mean of C over pairs of classes in one group, less its mean over pairs in two: in [-2, 2] for correlations.

    Args:
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
    C = as_matrix(C)
    labels = labels_of(groups, len(C))
    return float(contrasts(C, labels[None], labels_within(within, labels)))


def contrasts(
    C: Matrix, labels: Int[Tensor, "splits classes"], coarse: Int[Tensor, " classes"]
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

    Raises InputError: not each of the classes is in exactly one group, or a group is empty.
    """
    members = listed(groups)
    if sorted(c for group in members for c in group) != list(range(classes)) or not all(members):
        raise InputError(f"groups must hold each class from 0 to {classes - 1} once and none be empty, not {members}")
    labels = torch.empty(classes, dtype=torch.int64)
    for number, group in enumerate(members):
        labels[group] = number
    return labels


def listed(groups: Groups) -> list[list[int]]:
    """The groups as lists of whole numbers. Raises InputError for what are no such groups."""
    try:
        return [[operator.index(c) for c in group] for group in groups]
    except (TypeError, ValueError) as error:
        raise InputError(f"groups must be lists of class indices, as [[0, 1], [2, 3]], not {groups!r:.80}") from error


def labels_within(within: Groups | None, labels: Int[Tensor, " classes"]) -> Int[Tensor, " classes"]:
    """The number of the coarser group of each class; all classes are in one if there are no coarser groups.

    Raises InputError: no partition, or one that cuts through a group.
    """
    if within is None:
        return torch.zeros_like(labels)
    coarse = labels_of(within, len(labels))
    if len(torch.stack([labels, coarse]).unique(dim=1).T) != len(labels.unique()):
        raise InputError("each group must lie within one of the coarser groups: `within` cuts through some")
    return coarse


def _built(build: Callable[[Generator], nn.Module | Tensor], generator: Generator) -> nn.Module | Tensor:
    try:
        return build(generator)
    except TypeError as error:
        raise InputError(f"build must take a generator, and fails on one: {error}") from error


def random_contrasts(
    build: Callable[[Generator], nn.Module | Tensor],
    groups: Groups,
    *,
    n: int = 100,
    centre: bool = False,
    generator: Generator | None = None,
) -> Float[Tensor, " n"]:
    """Contrasts of networks with random weights: what the architecture gives before it has seen an image.

    Args:
        build: draws weights with the generator and returns the network (with an `input_shape`), or its W, where
            `linear_map` is to be called with other choices than its own.
        centre: as for `class_correlation`.

    Raises:
        InputError: no networks, or as `linear_map`, `class_correlation` and `contrast`.

    >>> null = random_contrasts(lambda g: torch.randn(4, 1, 8, 8, generator=g), [[0, 1], [2, 3]], n=200)
    >>> bool(null.mean().abs() < 0.03), round(float(null.std()), 2), p_value(0.5, null) < 0.01
    (True, 0.11, True)
    """
    check_whole("n", n, 1)
    if not callable(build):
        raise InputError(f"build must be a function of a generator, not {type(build).__name__}")
    check_generator(generator)
    generator = generator or Generator().manual_seed(0)
    maps = (_built(build, generator) for _ in range(n))
    matrices = (class_correlation(W if isinstance(W, Tensor) else linear_map(W), centre=centre) for W in maps)
    return torch.tensor([contrast(C, groups) for C in matrices], dtype=torch.float64)


def p_value(value: float, null: Float[Tensor, " n"]) -> float:
    """The probability of a value at least as large under a null distribution, from a sample of it.

    (1 + number at least as large) / (1 + n), which holds its level for any n (Phipson & Smyth 2010).

    Raises:
        InputError: the value or the sample is not finite.

    >>> p_value(0.5, torch.tensor([0.1, 0.7, 0.2, -0.1]))
    0.4
    """
    check_number("the value", value, "(-inf, inf)")
    check_tensor("null", null)
    if null.is_complex() or null.dim() != 1 or not null.isfinite().all():
        raise InputError("the sample of the null distribution must be a vector of finite numbers")
    return (1 + int((null >= value).sum())) / (1 + len(null))
