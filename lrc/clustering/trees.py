"""The groups that a class correlation itself suggests: its hierarchical clustering, cut, and compared."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from torch import Tensor

from lrc.clustering.contrasts import Groups, labels_of, listed
from lrc.clustering.similarity import BLOCK, as_matrix
from lrc.utils.checks import check_whole
from lrc.utils.errors import InputError, first_line
from lrc.utils.tensors import Matrix


def tree(C: Matrix) -> Float[np.ndarray, "merges 4"]:
    """The classes merged step by step by average linkage on the distance 1 - C, as SciPy's linkage matrix.

    Returns:
        Row m: the two clusters that become cluster classes + m, their mean distance, and the number of classes in it.

    Raises:
        InputError: fewer than two classes, or C is not finite or not symmetric.

    >>> tree(torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])).round(6)
    array([[0. , 1. , 0.2, 2. ],
           [2. , 3. , 0.8, 3. ]])
    """
    C = as_matrix(C)
    if len(C) < 2:
        raise InputError(f"a tree takes at least two classes, not {len(C)}")
    if not torch.allclose(C, C.T, atol=1e-5):
        raise InputError("a tree is that of a symmetric matrix, such as C: (F + F.T) / 2 makes one of another")
    distance = (1 - C).clamp(min=0).numpy()
    linkage: Float[np.ndarray, "merges 4"] = hierarchy.linkage(squareform(distance, checks=False), method="average")
    return linkage


def cut(merges: Float[np.ndarray, "merges 4"], k: int) -> list[list[int]]:
    """The k groups that a `tree` has before its last k - 1 merges, each sorted, in the order of their first classes.

    Args:
        k: number of groups, from 1 to the number of classes.

    Raises:
        InputError: k is out of range.

    >>> cut(tree(torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])), 2)
    [[0, 1], [2]]
    """
    classes = _check(merges)
    if check_whole("k", k) not in range(1, classes + 1):
        raise InputError(f"a tree of {classes} classes can be cut into 1 to {classes} groups, not {k}")
    labels = hierarchy.cut_tree(merges, n_clusters=k).ravel()
    return sorted(np.flatnonzero(labels == group).tolist() for group in range(k))


def agreement(groups: Groups, others: Groups) -> float:
    """Adjusted Rand index of two partitions: 1 if they are equal, 0 by chance on average (Hubert & Arabie 1985).

    Raises:
        InputError: not partitions of the same classes.

    >>> agreement([[0, 1], [2, 3]], [[2, 3], [0, 1]])
    1.0
    """
    from sklearn.metrics import adjusted_rand_score  # here: slow to import

    groups = listed(groups)
    classes = sum(map(len, groups))
    if not classes:
        raise InputError("there are no classes in the groups: give at least one")
    return float(adjusted_rand_score(labels_of(groups, classes), labels_of(others, classes)))


def agreements(merges: Float[np.ndarray, "merges 4"], groups: Groups) -> Float[Tensor, " classes"]:
    """`agreement` of a `tree` with given groups of its classes wherever it is cut: entry k - 1 is `cut(merges, k)`'s.

    Raises:
        InputError: no partition of the classes.

    >>> agreements(tree(torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])), [[0, 1], [2]])
    tensor([0., 1., 0.], dtype=torch.float64)
    """
    labels = labels_of(groups, _check(merges))
    cuts = torch.from_numpy(hierarchy.cut_tree(merges)).flip(1).long()  # (classes, k): 1 group to as many as classes
    clusters, given = F.one_hot(cuts).double(), F.one_hot(labels).double()
    both = _pairs(torch.einsum("cka,cg->kag", clusters, given)).sum((1, 2))
    first, second = _pairs(clusters.sum(0)).sum(1), _pairs(given.sum(0)).sum()
    by_chance = first * second / _pairs(torch.tensor(float(len(cuts)), dtype=torch.float64))
    largest = (first + second) / 2
    return torch.where(largest == by_chance, 1.0, (both - by_chance) / (largest - by_chance))  # both trivial, so equal


def _pairs(count: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return count * (count - 1) / 2


def cophenetic(merges: Float[np.ndarray, "merges 4"]) -> Matrix:
    """The distance at which a tree joins each two classes.

    >>> cophenetic(tree(torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]]))).round(decimals=6)
    tensor([[0.0000, 0.2000, 0.8000],
            [0.2000, 0.0000, 0.8000],
            [0.8000, 0.8000, 0.0000]], dtype=torch.float64)
    """
    _check(merges)
    return torch.from_numpy(squareform(hierarchy.cophenet(merges)))


def _check(merges: Float[np.ndarray, "merges 4"]) -> int:
    """The number of classes of a tree. Raises InputError for what is none."""
    try:
        hierarchy.is_valid_linkage(merges, throw=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"this is no tree ({first_line(error)}): lrc.tree(C) makes one") from error
    return len(merges) + 1


def cophenetic_correlation(merges: Float[np.ndarray, "merges 4"], distance: Matrix) -> float:
    """Pearson correlation, over all pairs of classes, of `cophenetic` with a distance (Sokal & Rohlf 1962).

    With 1 - C, of which the tree was made, it says how well a tree describes C at all; with the distance of a reference
    (`Hierarchy.distance`, `wordnet_distance`), how well it is that tree.

    Args:
        distance: of the same classes, symmetric.

    Raises:
        InputError: another number of classes, values that are not finite, or all distances alike.

    >>> C = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])
    >>> round(cophenetic_correlation(tree(C), 1 - C), 4)
    0.9608
    """
    ours, theirs = off_diagonal(cophenetic(merges), as_matrix(distance))
    pairs = torch.stack([ours, theirs])
    if not (pairs.std(1, correction=0) > 0).all():
        raise InputError("all classes are equally far apart: there is nothing to correlate")
    return float(torch.corrcoef(pairs)[0, 1])


def triplet_agreement(distance: Matrix, reference: Float[Tensor, "others others"]) -> float:
    """The share of triplets of classes whose closest pair is that of the reference: in [0, 1], by chance 1/3.

    Only the order of distances counts, so it compares a hierarchy in levels with a tree in correlations. Triplets of
    which the reference names no one closest pair are left out: all in one group, or in three. Where m pairs are the
    closest in `distance` alike, the one of the reference among them, the triplet counts 1 / m.

    The cost is cubic in the classes: 0.2 s for 100, minutes for 1,000.

    Args:
        distance: symmetric, such as `cophenetic(tree(C))`, or 1 - C itself.
        reference: symmetric, such as `Hierarchy.distance` or `wordnet_distance`.

    Raises:
        InputError: matrices of different size, values that are not finite, or a reference that resolves no triplet.

    >>> C = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])
    >>> reference = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0], [2.0, 2.0, 0.0]])
    >>> triplet_agreement(cophenetic(tree(C)), reference)
    1.0
    """
    matrices = [as_matrix(distance), as_matrix(reference)]
    off_diagonal(*matrices)
    agreed, resolved = torch.zeros(2, dtype=torch.float64)
    n = len(distance)
    for first in torch.arange(n).split(max(1, BLOCK // n**2)):
        ours, theirs = (_closest(matrix, first) for matrix in matrices)
        ordered = (first[:, None] < torch.arange(n))[:, :, None] & torch.ones(n, n, dtype=torch.bool).triu(1)
        counts = ordered & (theirs.sum(0) == 1)
        agreed += ((ours & theirs).sum(0).double() / ours.sum(0))[counts].sum()
        resolved += counts.sum()
    if not resolved:
        raise InputError("the reference says of no three classes which two are closest")
    return float(agreed / resolved)


def _closest(matrix: Matrix, first: Int[Tensor, " m"]) -> Bool[Tensor, "3 m classes classes"]:
    """Of classes i (in `first`), j and k, which of ij, ik and jk are closest."""
    rows = matrix[first]
    sides = torch.stack(torch.broadcast_tensors(rows[:, :, None], rows[:, None, :], matrix))
    return sides <= sides.amin(0) + 1e-12 * matrix.abs().max()


def off_diagonal(
    first: Matrix, second: Float[Tensor, "others others"]
) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """The entries of both matrices for pairs of classes, each pair in both orders.

    Raises InputError: matrices of different size.
    """
    if first.shape != second.shape:
        raise InputError(f"matrices of {len(first)} and of {len(second)} classes cannot be compared")
    off = ~torch.eye(len(first), dtype=torch.bool)
    return first[off], second[off]
