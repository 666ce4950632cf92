"""Whether a contrast is more than chance: the given groups against other splits of the classes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from lrc.clustering.contrasts import Groups, as_matrix, contrasts, labels_of
from lrc.errors import InputError

__all__ = ["PermutationTest", "permutation_test"]

EXACT_LIMIT = 20_000
"""Up to so many splits, all are tried."""

BLOCK = 1_000
"""Splits weighed at a time, which bounds the memory."""


@dataclass(frozen=True)
class PermutationTest:
    """The contrast of the given groups among those of splits into groups of the same sizes.

    Attributes:
        statistic: the contrast of the given groups.
        p_value: the probability of a contrast at least as large if chance had dealt out the classes; in (0, 1].
        rank: 1 + the number of splits of larger contrast.
        n_splits: number of splits compared, the given one included.
        exact: whether these are all there are.
    """

    statistic: float
    p_value: float
    rank: int
    n_splits: int
    exact: bool


def permutation_test(
    C: Float[Tensor, "classes classes"],
    groups: Groups,
    *,
    samples: int = 10_000,
    generator: Generator | None = None,
) -> PermutationTest:
    """Whether the classes within groups are more alike than if chance had dealt them out to groups of the same sizes.

    Exact where there are no more than 20,000 distinct splits, such as 210 for ten classes in 6 + 4. Otherwise random
    splits are drawn, and p = (1 + number of at least the contrast) / (1 + samples), which holds its level for any
    number of samples (Phipson & Smyth 2010).

    Args:
        C: the class correlation.
        groups: a partition of the classes, chosen without a look at C.
        samples: number of random splits, where not all are tried.
        generator: of the random splits; a new one with seed 0 if absent.

    Raises:
        InputError: as `contrast`, or no samples.

    >>> C = torch.block_diag(torch.ones(6, 6), torch.ones(4, 4))
    >>> permutation_test(C, [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]])
    PermutationTest(statistic=1.0, p_value=0.00476..., rank=1, n_splits=210, exact=True)
    """
    if samples < 1:
        raise InputError(f"samples must be at least 1, not {samples}")
    C, given = as_matrix(C), labels_of(groups, len(C))
    sizes = [len(group) for group in groups]
    exact = number_of_splits(sizes) <= EXACT_LIMIT
    others = all_splits(sizes) if exact else random_splits(given, samples, generator)
    statistic = float(contrasts(C, given[None]))
    values = torch.cat([contrasts(C, block) for block in torch.split(others, BLOCK)])
    rounding = 1e-12 * float(C.abs().max())  # equal contrasts, summed in another order
    given_apart = 0 if exact else 1  # all splits contain the given one, a sample is beside it
    n = len(values) + given_apart
    level = int((values >= statistic - rounding).sum()) + given_apart
    above = int((values > statistic + rounding).sum())
    return PermutationTest(statistic, level / n, 1 + above, n, exact)


def number_of_splits(sizes: list[int]) -> int:
    """Partitions into groups of these sizes that bear no names: n! / prod(size!) / prod(groups of a size!)."""
    same = [sizes.count(size) for size in set(sizes)]
    return math.factorial(sum(sizes)) // math.prod(math.factorial(k) for k in sizes + same)


def all_splits(sizes: list[int]) -> Int[Tensor, "splits classes"]:
    """Each of these partitions once, as the number of the group of each class."""
    classes = range(sum(sizes))
    rows = []
    for parts in _partitions(tuple(classes), tuple(sizes)):
        number = {c: k for k, part in enumerate(parts) for c in part}
        rows.append([number[c] for c in classes])
    return torch.tensor(rows)


def _partitions(classes: tuple[int, ...], sizes: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """The first class in a group of any size with any mates, then the other classes likewise: none comes twice."""
    if not sizes:
        yield ()
        return
    for size in sorted(set(sizes)):
        left = list(sizes)
        left.remove(size)
        for mates in combinations(classes[1:], size - 1):
            rest = tuple(c for c in classes[1:] if c not in mates)
            for parts in _partitions(rest, tuple(left)):
                yield ((classes[0], *mates), *parts)


def random_splits(
    given: Int[Tensor, " classes"], samples: int, generator: Generator | None
) -> Int[Tensor, "splits classes"]:
    """The group numbers dealt out anew, each order as likely as any other."""
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    keys = torch.rand(samples, len(given), generator=generator, device=generator.device)
    return given[keys.argsort(1).cpu()]
