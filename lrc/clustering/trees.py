"""The groups that a class correlation itself suggests: its hierarchical clustering, cut, and compared."""

import numpy as np
from jaxtyping import Float
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from lrc.clustering.contrasts import Groups, as_matrix, labels_of
from lrc.errors import InputError

__all__ = ["agreement", "cut", "tree"]


def tree(C: Float[Tensor, "classes classes"]) -> Float[np.ndarray, "merges 4"]:
    """The classes merged step by step by average linkage on the distance 1 - C, as SciPy's linkage matrix.

    Args:
        C: the class correlation, symmetric, for two classes or more.

    Returns:
        Row m: the two clusters that become cluster classes + m, their mean distance, and the number of classes in it.

    Raises:
        InputError: fewer than two classes, or C is not finite.

    >>> import torch
    >>> tree(torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])).round(6)
    array([[0. , 1. , 0.2, 2. ],
           [2. , 3. , 0.8, 3. ]])
    """
    if len(C) < 2:
        raise InputError(f"a tree takes at least two classes, not {len(C)}")
    distance = (1 - as_matrix(C)).clamp(min=0).numpy()
    linkage: Float[np.ndarray, "merges 4"] = hierarchy.linkage(squareform(distance, checks=False), method="average")
    return linkage


def cut(merges: Float[np.ndarray, "merges 4"], k: int) -> list[list[int]]:
    """The k groups that a tree has before its last k - 1 merges, each sorted, in the order of their first classes.

    Args:
        merges: a `tree`.
        k: number of groups, from 1 to the number of classes.

    Raises:
        InputError: k is out of range.

    >>> import torch
    >>> cut(tree(torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])), 2)
    [[0, 1], [2]]
    """
    classes = len(merges) + 1
    if not 1 <= k <= classes:
        raise InputError(f"a tree of {classes} classes can be cut into 1 to {classes} groups, not {k}")
    labels = hierarchy.cut_tree(merges, n_clusters=k).ravel()
    return sorted(np.flatnonzero(labels == group).tolist() for group in range(k))


def agreement(groups: Groups, others: Groups) -> float:
    """Adjusted Rand index of two partitions: 1 if they are equal, 0 by chance on average (Hubert & Arabie 1985).

    Args:
        groups, others: partitions of the same classes.

    Raises:
        InputError: not partitions of the same classes.

    >>> agreement([[0, 1], [2, 3]], [[2, 3], [0, 1]])
    1.0
    """
    classes = sum(map(len, groups))
    return float(adjusted_rand_score(labels_of(groups, classes), labels_of(others, classes)))
