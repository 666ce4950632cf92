"""Whether a contrast is more than chance: the given groups against other ways to deal out the classes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from lrc.clustering.contrasts import Groups, contrasts, labels_of, labels_within
from lrc.clustering.similarity import BLOCK, as_matrix
from lrc.utils.checks import check_generator, check_whole
from lrc.utils.errors import InputError
from lrc.utils.tensors import Matrix

EXACT_LIMIT = 20_000
"""Up to so many splits, all are tried."""
LEVELS = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class PermutationTest:
    """A statistic among those that other ways to deal out the classes give.

    Attributes:
        statistic: that of the classes as they are, such as the contrast of the given groups.
        p_value: the probability of one at least as large if chance had dealt out the classes; in (0, 1].
        rank: 1 + the number of splits of larger statistic.
        n_splits: number of splits compared, the given one included.
        exact: whether these are all there are.
        quantiles: 5 %, 50 % and 95 % quantile of the statistic over these splits.
    """

    statistic: float
    p_value: float
    rank: int
    n_splits: int
    exact: bool
    quantiles: tuple[float, float, float] = field(repr=False)


def permutation_test(
    C: Matrix,
    groups: Groups,
    *,
    within: Groups | None = None,
    samples: int = 10_000,
    generator: Generator | None = None,
) -> PermutationTest:
    """Whether the classes within groups are more alike than if chance had dealt them out to groups of the same sizes.

    Exact where there are no more than 20,000 distinct splits, such as 210 for ten classes in 6 + 4. Otherwise random
    splits are drawn, and p = (1 + number of at least the contrast) / (1 + samples), which holds its level for any
    number of samples (Phipson & Smyth 2010).

    Args:
        groups: a partition of the classes, chosen without a look at C.
        within: a coarser partition. Then classes change places only with others of the same coarser group, and the
            statistic is the contrast among siblings. So fine groups pass only if they hold more than the coarse ones,
            whereas without it any fine groups within true coarse ones are better than chance.
        samples: number of random splits, where not all are tried.

    Raises:
        InputError: as `contrast`, or no samples.

    >>> C = torch.block_diag(torch.ones(6, 6), torch.ones(4, 4))
    >>> permutation_test(C, [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]])
    PermutationTest(statistic=1.0, p_value=0.00476..., rank=1, n_splits=210, exact=True)
    """
    check_whole("samples", samples, 1)
    check_generator(generator)
    C = as_matrix(C)
    given = labels_of(groups, len(C))
    coarse = labels_within(within, given)
    exact = _number_within(given, coarse) <= EXACT_LIMIT
    others = splits_within(given, coarse) if exact else random_splits(given, samples, generator, coarse=coarse)
    statistic = float(contrasts(C, given[None], coarse))
    values = torch.cat([contrasts(C, block, coarse) for block in others.split(max(1, BLOCK // C.numel()))])
    return placed(statistic, values, exact=exact, rounding=1e-12 * float(C.abs().max()))


def placed(statistic: float, values: Float[Tensor, " n"], *, exact: bool, rounding: float) -> PermutationTest:
    """Where the statistic of the classes as they are stands among `values`.

    These are all there are, the statistic included, if `exact`; otherwise a sample, which the statistic joins. Those
    within `rounding` of it, summed in another order, are equal.
    """
    given_apart = 0 if exact else 1
    n = len(values) + given_apart
    level = int((values >= statistic - rounding).sum()) + given_apart
    above = int((values > statistic + rounding).sum())
    every = values.double() if exact else torch.cat([values.double(), torch.tensor([statistic], dtype=torch.float64)])
    low, middle, high = every.quantile(torch.tensor(LEVELS, dtype=torch.float64)).tolist()
    return PermutationTest(statistic, level / n, 1 + above, n, exact, (low, middle, high))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of several tests, each made so large that all of them together keep their level (Holm 1979).

    The smallest is multiplied by their number m, the next by m - 1 and so on; none falls below one before it. To
    reject where the result is at most alpha errs anywhere with probability at most alpha, however the tests depend on
    each other.

    Raises:
        InputError: one that is no probability.

    >>> [round(p, 3) for p in holm([0.04, 0.01, 0.03])]
    [0.06, 0.03, 0.06]
    """
    try:
        p = torch.as_tensor(p_values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"p values must be a list of numbers, not {p_values!r:.80}") from error
    if p.dim() != 1:
        raise InputError(f"p values must be one list of numbers, not of shape {tuple(p.shape)}")
    if not ((p >= 0) & (p <= 1)).all():
        raise InputError(f"p values must be in [0, 1], not {[value for value in p.tolist() if not 0 <= value <= 1][0]}")
    order = p.argsort()
    factors = torch.arange(len(p), 0, -1)
    corrected = torch.empty_like(p)
    corrected[order] = (p[order] * factors).clamp(max=1).cummax(0).values
    return corrected.tolist()


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


def splits_within(given: Int[Tensor, " classes"], coarse: Int[Tensor, " classes"]) -> Int[Tensor, "splits classes"]:
    """Each partition once that splits every coarse group into groups of the sizes that it is given split into."""
    tables = [all_splits(sizes) for sizes in _sizes_within(given, coarse)]
    choice = torch.meshgrid(*[torch.arange(len(table)) for table in tables], indexing="ij")
    splits = torch.empty(choice[0].numel(), len(given), dtype=torch.int64)
    first = 0
    for number, (table, row) in enumerate(zip(tables, choice, strict=True)):
        splits[:, coarse == number] = first + table[row.flatten()]
        first += int(table.max()) + 1
    return splits


def _number_within(given: Int[Tensor, " classes"], coarse: Int[Tensor, " classes"]) -> int:
    return math.prod(number_of_splits(sizes) for sizes in _sizes_within(given, coarse))


def _sizes_within(given: Int[Tensor, " classes"], coarse: Int[Tensor, " classes"]) -> list[list[int]]:
    return [given[coarse == k].unique(return_counts=True)[1].tolist() for k in range(int(coarse.max()) + 1)]


def random_splits(
    given: Int[Tensor, " classes"],
    samples: int,
    generator: Generator | None,
    *,
    coarse: Int[Tensor, " classes"] | None = None,
) -> Int[Tensor, "splits classes"]:
    """The group numbers dealt out anew (within each coarse group), each order as likely as any other.

    Raises InputError: no samples.
    """
    check_whole("samples", samples, 1)
    if coarse is None:
        coarse = torch.zeros_like(given)
    generator = generator or Generator().manual_seed(0)
    keys = torch.rand(samples, len(given), generator=generator, device=generator.device).cpu()
    order = (keys.double() + coarse).argsort(1)  # coarse group by coarse group, at random within each
    splits = torch.empty_like(order)
    splits[:, coarse.argsort(stable=True)] = given[order]
    return splits
