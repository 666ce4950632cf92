"""Does C follow what classes mean, pair by pair? Rank correlation with a semantic distance."""

import math
from itertools import permutations

import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Generator, Tensor

from lrc.clustering.contrasts import as_matrix
from lrc.clustering.permutations import EXACT_LIMIT, PermutationTest, placed, random_splits
from lrc.clustering.trees import off_diagonal
from lrc.utils.errors import InputError

__all__ = ["mantel_test"]

BLOCK = 2**20
"""Entries of permuted matrices weighed at a time, which bounds the memory."""


def mantel_test(
    C: Float[Tensor, "classes classes"],
    distance: Float[Tensor, "others others"],
    *,
    given: Float[Tensor, "others others"] | None = None,
    samples: int = 10_000,
    generator: Generator | None = None,
) -> PermutationTest:
    """Spearman's rank correlation of 1 - C with a distance, over all pairs of classes, and whether it is chance.

    Positive where classes that mean more alike things have more similar rows. The pairs are not independent, so its p
    value comes from the classes of one matrix permuted, rows and columns together (Mantel 1967); one-sided, for a
    positive correlation. Ties share their mean rank. All permutations are tried up to 7 classes, beyond that a sample.

    Args:
        C: the class correlation. A matrix that is not symmetric counts each pair in both orders.
        distance: such as `Hierarchy.distance` or `wordnet_distance`, of the same classes in the same order.
        given: a third distance, what of the correlation it explains is left out: the partial test, on the residuals of
            the ranks by those of `given`, which are permuted (Smouse et al. 1986; Legendre 2000, method 2).
        samples: number of random permutations, where not all are tried.
        generator: of the random permutations; a new one with seed 0 if absent.

    Raises:
        InputError: matrices of different size, values that are not finite, all correlations or distances alike, one
            that `given` explains altogether, or no samples.

    >>> C = torch.tensor([[1.0, 0.8, 0.1, 0.2], [0.8, 1.0, 0.3, 0.1], [0.1, 0.3, 1.0, 0.9], [0.2, 0.1, 0.9, 1.0]])
    >>> distance = torch.tensor([[0.0, 1, 2, 2], [1, 0, 2, 2], [2, 2, 0, 1], [2, 2, 1, 0]])
    >>> mantel_test(C, distance)
    PermutationTest(statistic=0.840..., p_value=0.333..., rank=1, n_splits=24, exact=True)
    """
    ours, theirs = _ranks(1 - as_matrix(C)), _ranks(as_matrix(distance))
    off_diagonal(ours, theirs)
    if given is not None:
        third = _ranks(as_matrix(given))
        off_diagonal(ours, third)
        ours, theirs = _residual(ours, third), _residual(theirs, third)
    n = len(ours)
    exact = math.factorial(n) <= EXACT_LIMIT
    identity = torch.arange(n)
    orders = torch.tensor([*permutations(range(n))]) if exact else random_splits(identity, samples, generator)
    blocks = orders.split(max(1, BLOCK // n**2))
    values = torch.cat([(ours[p[:, :, None], p[:, None]] * theirs).sum((1, 2)) for p in blocks])
    return placed(float((ours * theirs).sum()), values, exact=exact, rounding=1e-12)


def _ranks(matrix: Float[Tensor, "classes classes"]) -> Float[Tensor, "classes classes"]:
    """Ranks off the diagonal, of mean zero and norm one; zeros on it. The product of two sums up to Spearman's rho."""
    off = ~torch.eye(len(matrix), dtype=torch.bool)
    ranks = torch.from_numpy(rankdata(matrix[off].numpy()))
    ranks -= ranks.mean()
    if not (size := ranks.norm()):
        raise InputError("all classes are equally far apart: there is nothing to correlate")
    return torch.zeros_like(matrix).masked_scatter_(off, ranks / size)


def _residual(
    ranks: Float[Tensor, "classes classes"], given: Float[Tensor, "classes classes"]
) -> Float[Tensor, "classes classes"]:
    """What of the ranks is orthogonal to those given, of norm one."""
    rest = ranks - (ranks * given).sum() * given
    if not (size := rest.norm()) > 1e-9:
        raise InputError("`given` orders the classes as the other distance does: nothing is left to correlate")
    return rest / size
