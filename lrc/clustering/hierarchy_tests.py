"""Does C follow what classes mean? Every level of a hierarchy tested for what it adds, and the Mantel test."""

import math
from dataclasses import asdict, dataclass
from itertools import permutations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

from lrc.clustering.permutations import EXACT_LIMIT, PermutationTest, holm, permutation_test, placed, random_splits
from lrc.clustering.similarity import BLOCK, as_matrix
from lrc.clustering.trees import off_diagonal
from lrc.hierarchy import Hierarchy, Level
from lrc.utils.checks import check_flag, check_generator, check_whole
from lrc.utils.errors import InputError
from lrc.utils.tensors import Matrix

TINY = 1e-12
"""A share of squared rank correlation that is rounding."""


@dataclass(frozen=True)
class LevelTest(PermutationTest):
    """The test of one level, beside those of the others; `statistic` is its contrast.

    Attributes:
        level: its name.
        units: what was dealt out: "class", or the name of the finer level whose groups were.
        within: name of the coarser level within whose groups they were dealt out; None if among all.
        corrected: p value corrected for the number of levels (`holm`).
    """

    level: str
    units: str
    within: str | None
    corrected: float


def permutation_tests(
    C: Matrix,
    hierarchy: Hierarchy,
    *,
    conditional: bool = True,
    samples: int = 10_000,
    generator: Generator | None = None,
) -> tuple[LevelTest, ...]:
    """`permutation_test` at each level of a hierarchy, fine to coarse, with p values corrected for their number.

    A level would pass for no other reason than that another one holds. Superclasses, because pairs within one are all
    pairs of animals or all of vehicles; kinds, because they contain the pairs within superclasses. So each level is
    tested for what it adds to those beside it, where they nest:

    - *Within the next coarser level*: units change places only with others of the same coarser group, and the
      contrast is that of siblings.
    - *With the groups of the next finer level as units*: whole groups change places, on the matrix of the mean
      correlations between them; pairs within them do not count.

    The finest level deals out classes, the coarsest deals out its units among all. A level of few units has few splits,
    and no p value below 1 / n_splits.

    Args:
        hierarchy: of the same classes in the same order, made without a look at C.
        conditional: as above; if not, each level is tested as if it were the only one.
        samples: number of random splits of a level, where not all are tried.
        generator: of the random splits; without one, a new one with seed 0 for each level.

    Raises:
        InputError: a hierarchy of another number of classes or without levels, a level that leaves nothing to compare
            (no group of two units, no two groups in one coarser group), or as `permutation_test`.

    >>> pair = Level("pair", tuple("abcd"), (0, 0, 1, 1, 2, 2, 3, 3))
    >>> half = Level("half", tuple("ef"), (0, 0, 0, 0, 1, 1, 1, 1))
    >>> C = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4))  # the halves are all there is
    >>> for test in permutation_tests(C, Hierarchy(tuple("stuvwxyz"), (pair, half), "made up")):
    ...     print(test.level, test.units, test.within, test.statistic, test.n_splits, round(test.corrected, 3))
    pair class half 0.0 9 1.0
    half pair None 1.0 3 0.667
    """
    if not isinstance(hierarchy, Hierarchy):
        raise InputError(f"hierarchy must be an lrc.hierarchy.Hierarchy, not {type(hierarchy).__name__}")
    check_flag("conditional", conditional)
    C = as_matrix(C)
    if len(C) != len(hierarchy.classes) or not hierarchy.levels:
        has = f"{len(hierarchy.classes)} classes in {len(hierarchy.levels)} levels"
        raise InputError(f"C of {len(C)} classes needs a hierarchy of these, with a level or more: this one has {has}")
    classes = Level("class", hierarchy.classes, tuple(range(len(C))))
    finer, coarser = (classes, *hierarchy.levels), (*hierarchy.levels[1:], None)
    tests = []
    for below, level, above in zip(finer, hierarchy.levels, coarser, strict=False):
        units = below if conditional and below.nests_in(level) else classes
        within = above if conditional and above is not None and level.nests_in(above) else None
        groups, inside = _grouped(level, units), None if within is None else _grouped(within, units)
        try:
            test = permutation_test(_means(C, units), groups, within=inside, samples=samples, generator=generator)
        except InputError as error:
            raise InputError(f"level {level.name!r}: {error}") from error
        tests.append((test, level.name, units.name, None if within is None else within.name))
    corrected = holm([test.p_value for test, *_ in tests])
    return tuple(
        LevelTest(**asdict(test), level=level, units=units, within=within, corrected=p)
        for (test, level, units, within), p in zip(tests, corrected, strict=True)
    )


def _means(C: Matrix, units: Level) -> Float[Tensor, "units units"]:
    """Mean of C between any two units, over all pairs of a class of one and a class of the other."""
    member = F.one_hot(torch.tensor(units.of)).double()
    member /= member.sum(0)
    return member.T @ C @ member


def _grouped(level: Level, units: Level) -> list[list[int]]:
    """Numbers of the units in each group."""
    group_of = dict(zip(units.of, level.of, strict=True))
    return [[unit for unit in sorted(group_of) if group_of[unit] == g] for g in range(len(level.names))]


def mantel_test(
    C: Matrix,
    distance: Float[Tensor, "others others"],
    *,
    given: Float[Tensor, "third third"] | None = None,
    samples: int = 10_000,
    generator: Generator | None = None,
) -> PermutationTest:
    """Spearman's rank correlation of 1 - C with a distance, over all pairs of classes, and whether it is chance.

    Positive where classes that mean more alike things have more similar rows. The pairs are not independent, so its p
    value comes from the classes of one matrix permuted, rows and columns together (Mantel 1967); one-sided, for a
    positive correlation. Ties share their mean rank. All permutations are tried up to 7 classes, beyond that a sample.

    With `given` it is the partial correlation: whether C follows the distance beyond what both share with a third
    matrix (Smouse, Long & Sokal 1986). C is permuted, the other two keep their relation (Legendre 2000, method 1).

    Args:
        C: the class correlation. A matrix that is not symmetric counts each pair in both orders.
        distance: such as `Hierarchy.distance` or `wordnet_distance`, of the same classes in the same order.
        given: a distance to be held constant, such as that of the classes' mean images.
        samples: number of random permutations, where not all are tried.

    Raises:
        InputError: matrices of different size, values that are not finite, all correlations or distances alike, a
            `given` that orders the pairs as C or as the distance does, or no samples.

    >>> C = torch.tensor([[1.0, 0.8, 0.1, 0.2], [0.8, 1.0, 0.3, 0.1], [0.1, 0.3, 1.0, 0.9], [0.2, 0.1, 0.9, 1.0]])
    >>> distance = torch.tensor([[0.0, 1, 2, 2], [1, 0, 2, 2], [2, 2, 0, 1], [2, 2, 1, 0]])
    >>> mantel_test(C, distance)
    PermutationTest(statistic=0.840..., p_value=0.333..., rank=1, n_splits=24, exact=True)
    """
    check_whole("samples", samples, 1)
    check_generator(generator)
    ours, theirs = _ranks(1 - as_matrix(C)), _ranks(as_matrix(distance))
    off_diagonal(ours, theirs)
    held = torch.zeros_like(ours) if given is None else _ranks(as_matrix(given))
    off_diagonal(ours, held)
    theirs = _residual(theirs, held)
    _residual(ours, held)

    def correlations(orders: Int[Tensor, "m classes"]) -> Float[Tensor, " m"]:
        moved = ours[orders[:, :, None], orders[:, None]]
        shared = (moved * held).sum((1, 2))
        return (moved * theirs).sum((1, 2)) / (1 - shared.square()).clamp(min=TINY).sqrt()

    n = len(ours)
    exact = math.factorial(n) <= EXACT_LIMIT
    identity = torch.arange(n)
    orders = torch.tensor([*permutations(range(n))]) if exact else random_splits(identity, samples, generator)
    values = torch.cat([correlations(some) for some in orders.split(max(1, BLOCK // n**2))])
    return placed(float(correlations(identity[None])), values, exact=exact, rounding=1e-12)


def _residual(ranks: Matrix, held: Matrix) -> Matrix:
    """What is left of ranks once those of `held` are taken out, of norm one again."""
    rest = ranks - (ranks * held).sum() * held
    if not (size := rest.norm()) > TINY**0.5:
        raise InputError("`given` orders the pairs of classes as one of the two others does: there is nothing left")
    return rest / size


def _ranks(matrix: Matrix) -> Matrix:
    """Ranks off the diagonal, of mean zero and norm one; zeros on it. The product of two sums up to Spearman's rho."""
    from scipy.stats import rankdata  # here: slow to import

    off = ~torch.eye(len(matrix), dtype=torch.bool)
    ranks = torch.from_numpy(rankdata(matrix[off].numpy()))
    ranks -= ranks.mean()
    if not (size := ranks.norm()):
        raise InputError("all classes are equally far apart: there is nothing to correlate")
    return torch.zeros_like(matrix).masked_scatter_(off, ranks / size)
