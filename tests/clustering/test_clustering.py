"""C, F, contrast, permutation test and tree against closed forms and plain loops."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lrc
from lrc.clustering import (
    agreement,
    class_correlation,
    contrast,
    cut,
    feature_distance,
    p_value,
    permutation_test,
    tree,
)
from lrc.clustering.permutations import all_splits, number_of_splits, random_splits

TEN = [[0, 1, 8, 9], [2, 3, 4, 5, 6, 7]]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def blocks(groups: list[list[int]], within: float = 1.0, between: float = 0.0) -> Tensor:
    """A matrix with one value within groups, another between them, and ones on the diagonal."""
    n = sum(map(len, groups))
    C = torch.full((n, n), between, dtype=torch.float64)
    for group in groups:
        C[np.ix_(group, group)] = within
    return C.fill_diagonal_(1)


def contrast_by_loops(C: Tensor, groups: list[list[int]]) -> float:
    of = {c: g for g, group in enumerate(groups) for c in group}
    within, between = [], []
    for i, j in itertools.combinations(range(len(C)), 2):
        (within if of[i] == of[j] else between).append(float(C[i, j]))
    return sum(within) / len(within) - sum(between) / len(between)


# --- C ---------------------------------------------------------------------------------------------------------------


def test_orthogonal_rows_give_the_identity_and_parallel_rows_ones():
    q = torch.linalg.qr(normal(8, 5)).Q.T * torch.tensor([1.0, 2, 3, 4, 5])[:, None]
    assert torch.allclose(class_correlation(q), torch.eye(5, dtype=torch.float64), atol=1e-14)
    v = normal(1, 2, 3)
    assert torch.allclose(
        class_correlation(torch.cat([v, 3 * v, -v])), torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]]).double()
    )


@pytest.mark.parametrize("centre", [False, True])
def test_c_is_the_matrix_of_cosines(centre):
    W = normal(6, 3, 4, 4)
    rows = [row.flatten().numpy() for row in W]
    if centre:
        mean = sum(rows) / len(rows)
        rows = [row - mean for row in rows]
    expected = [[a @ b / math.sqrt((a @ a) * (b @ b)) for b in rows] for a in rows]
    C = class_correlation(W, centre=centre)
    assert torch.allclose(C, torch.tensor(expected), atol=1e-14)
    assert torch.equal(C, C.T) and (C.diag() == 1).all() and C.abs().max() == 1


def test_centred_c_has_no_gauge_and_raw_c_has():
    W, shift = normal(6, 3, 4, 4), 10 * normal(3, 4, 4, seed=1)
    assert torch.allclose(class_correlation(W + shift, centre=True), class_correlation(W, centre=True), atol=1e-12)
    assert (class_correlation(W + shift) - class_correlation(W)).abs().max() > 0.5


def test_scale_of_rows_does_not_matter():
    W, scale = normal(6, 10), torch.logspace(-3, 3, 6, dtype=torch.float64)[:, None]
    assert torch.allclose(class_correlation(W * scale), class_correlation(W), atol=1e-14)
    assert torch.allclose(class_correlation(W * -7, centre=True), class_correlation(W, centre=True), atol=1e-14)


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_no_overflow_and_no_underflow(factor, centre):
    W = normal(6, 10, dtype=torch.float32)
    assert torch.allclose(class_correlation(W * factor, centre=centre), class_correlation(W, centre=centre), atol=1e-6)


def test_relabelling_the_classes_permutes_c():
    W, order = normal(6, 10), torch.tensor([3, 1, 0, 5, 2, 4])
    for centre in (False, True):
        C = class_correlation(W, centre=centre)
        assert torch.allclose(class_correlation(W[order], centre=centre), C[order][:, order], atol=1e-14)


def test_an_isotropic_change_of_pixels_leaves_c():
    W, rotation = normal(6, 10), torch.linalg.qr(normal(10, 10, seed=1)).Q
    assert torch.allclose(class_correlation(W @ rotation), class_correlation(W), atol=1e-13)


def test_c_does_not_change_w_and_keeps_its_type():
    W = normal(4, 5, dtype=torch.float32).requires_grad_()
    before = W.detach().clone()
    C = class_correlation(W, centre=True)
    assert C.dtype == torch.float32 and C.requires_grad and torch.equal(W.detach(), before)
    C.square().sum().backward()
    assert W.grad is not None and W.grad.isfinite().all()


def test_rows_without_a_direction():
    W = normal(4, 5)
    W[2] = 0
    with pytest.raises(lrc.InputError, match=r"classes \[2\] are zero"):
        class_correlation(W)
    class_correlation(W, centre=True)
    W[1, 3] = torch.nan
    with pytest.raises(lrc.InputError, match=r"classes \[1, 2\]"):
        class_correlation(W)
    same = torch.full((7, 5), 0.1, dtype=torch.float32)
    with pytest.raises(lrc.InputError, match="equal the mean row"):
        class_correlation(same, centre=True)


# --- F ---------------------------------------------------------------------------------------------------------------


def test_f_by_loops():
    logits, labels = normal(40, 5), torch.arange(40) % 4
    means = [logits[labels == c].mean(0) for c in range(4)]
    distance = torch.stack([torch.stack([((a - b) ** 2).mean() for b in means]) for a in means])
    expected = torch.stack([row / row.max() for row in distance])
    F = feature_distance(logits, labels)
    assert torch.allclose(F, expected, atol=1e-14)
    assert (F.diag() == 0).all() and torch.allclose(F.amax(1), torch.ones(4).double()) and not torch.allclose(F, F.T)


def test_f_does_not_cancel_far_from_zero():
    logits, labels = normal(40, 5, dtype=torch.float64), torch.arange(40) % 4
    far = feature_distance((logits + 1000).float(), labels)
    assert torch.allclose(far, feature_distance(logits, labels).float(), atol=2e-3)


def test_f_ignores_shift_scale_and_the_order_of_images():
    logits, labels, order = normal(40, 5), torch.arange(40) % 4, torch.randperm(40, generator=torch.Generator())
    F = feature_distance(logits, labels)
    assert torch.allclose(feature_distance(3 * logits[order] + 2, labels[order].int()), F)


def test_f_needs_every_class():
    with pytest.raises(lrc.InputError, match=r"classes \[1\] have no images"):
        feature_distance(normal(3, 2), torch.tensor([0, 2, 2]))
    with pytest.raises(lrc.InputError, match="number the classes from 0"):
        feature_distance(normal(3, 2), torch.tensor([0, -1, 1]))
    with pytest.raises(lrc.InputError, match="must be rows"):
        feature_distance(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(lrc.InputError, match="coincide"):
        feature_distance(torch.ones(3, 2), torch.tensor([0, 1, 2]))


# --- contrast --------------------------------------------------------------------------------------------------------


def test_contrast_of_blocks_is_exact():
    assert contrast(blocks(TEN, 0.75, -0.5), TEN) == 1.25
    assert contrast(blocks([[0, 1], [2], [3]], 0.5, 0.25), [[0, 1], [2], [3]]) == 0.25


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=9), st.integers(0, 1000))
def test_contrast_by_loops(numbers, seed):
    groups = [[c for c, g in enumerate(numbers) if g == number] for number in sorted(set(numbers))]
    C = class_correlation(normal(len(numbers), 6, seed=seed))
    if len(groups) in (1, len(numbers)):
        with pytest.raises(lrc.InputError, match="at least one pair"):
            contrast(C, groups)
    else:
        assert contrast(C, groups) == pytest.approx(contrast_by_loops(C, groups), abs=1e-13)


def test_contrast_takes_classes_groups_and_names_in_any_order():
    C, order = class_correlation(normal(10, 6)), torch.tensor([3, 1, 0, 5, 2, 4, 9, 8, 6, 7])
    place = order.argsort().tolist()
    moved = [[place[c] for c in reversed(group)] for group in reversed(TEN)]
    assert contrast(C[order][:, order], moved) == pytest.approx(contrast(C, TEN), abs=1e-14)
    assert contrast(C.float(), TEN) == pytest.approx(contrast(C, TEN), abs=1e-6)


@pytest.mark.parametrize("groups", [[[0, 1], [2]], [[0, 1], [1, 2, 3]], [[0, 1, 2, 3], []], [[0, 1], [2, 4]], []])
def test_groups_must_be_a_partition(groups):
    for function in (contrast, permutation_test):
        with pytest.raises(lrc.InputError, match="each class from 0 to 3 once"):
            function(torch.eye(4), groups)


def test_a_matrix_that_is_not_finite():
    C = torch.eye(4)
    C[0, 1] = torch.nan
    for function in (lambda: contrast(C, [[0, 1], [2, 3]]), lambda: tree(C)):
        with pytest.raises(lrc.InputError, match="not finite"):
            function()


# --- permutation test ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[6, 4], [5, 5], [2, 2, 2], [3, 2, 1], [1, 1, 2, 2], [1, 1, 1], [4]])
def test_all_splits_are_all_and_different(sizes):
    n = sum(sizes)
    found = {
        frozenset(frozenset((row == k).nonzero().flatten().tolist()) for k in set(row.tolist()))
        for row in all_splits(sizes)
    }
    ends = list(itertools.accumulate(sizes, initial=0))
    brute = (
        {
            frozenset(frozenset(order[a:b]) for a, b in itertools.pairwise(ends))
            for order in itertools.permutations(range(n))
        }
        if n < 8
        else None
    )
    assert len(found) == len(all_splits(sizes)) == number_of_splits(sizes)
    assert brute is None or found == brute


def test_ideal_groups_rank_first_of_210():
    result = permutation_test(blocks(TEN), TEN)
    assert (result.statistic, result.p_value, result.rank, result.n_splits, result.exact) == (
        1.0,
        1 / 210,
        1,
        210,
        True,
    )


def test_the_worst_groups_rank_last():
    result = permutation_test(-blocks(TEN), TEN)
    assert (result.p_value, result.rank) == (1.0, 210)


def test_exact_test_by_loops():
    C = class_correlation(normal(7, 4))
    groups = [[0, 3, 4], [1, 2, 5, 6]]
    values = []
    for first in itertools.combinations(range(7), 3):
        values.append(contrast_by_loops(C, [list(first), [c for c in range(7) if c not in first]]))
    ours = contrast_by_loops(C, groups)
    result = permutation_test(C, groups)
    assert result.statistic == pytest.approx(ours, abs=1e-14)
    assert result.p_value == sum(v >= ours - 1e-12 for v in values) / 35
    assert result.rank == 1 + sum(v > ours + 1e-12 for v in values)


def test_ties_count_as_at_least_the_contrast():
    result = permutation_test(torch.full((6, 6), 0.1).fill_diagonal_(1), [[0, 1, 2], [3, 4, 5]])
    assert (result.p_value, result.rank, result.n_splits) == (1.0, 1, 10)


def exact_contrast(C: list[list[Fraction]], labels: list[int]) -> Fraction:
    pairs = list(itertools.combinations(range(len(C)), 2))
    within = [C[i][j] for i, j in pairs if labels[i] == labels[j]]
    between = [C[i][j] for i, j in pairs if labels[i] != labels[j]]
    return sum(within) / len(within) - sum(between) / len(between)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_ties_by_exact_arithmetic(seed, sampled, monkeypatch):
    """Of a matrix of tenths many splits have the same contrast, which rounding tears apart: 0.1 + 0.2 is not 0.3."""
    tenths = torch.randint(0, 3, (7, 7), generator=torch.Generator().manual_seed(seed)).double().triu(1)
    tenths = tenths + tenths.T
    exact = [[Fraction(int(v), 10) for v in row] for row in tenths]
    groups = [[0, 1, 2], [3, 4, 5, 6]]
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    if sampled:
        monkeypatch.setattr("lrc.clustering.permutations.EXACT_LIMIT", 1)
    others = random_splits(labels, 200, None) if sampled else all_splits([3, 4])
    values, ours = [exact_contrast(exact, row) for row in others.tolist()], exact_contrast(exact, labels.tolist())
    assert sum(value == ours for value in values) > 1 + sampled
    result = permutation_test(tenths / 10, groups, samples=200)
    assert result.p_value == (sum(value >= ours for value in values) + sampled) / (len(values) + sampled)
    assert result.rank == 1 + sum(value > ours for value in values)


def test_a_null_distribution_with_ties():
    assert p_value(0.5, torch.tensor([0.5, 0.1, 0.5, 0.7])) == 4 / 5


def test_p_is_uniform_when_classes_are_exchangeable():
    groups = [[0, 1, 2, 3], [4, 5, 6]]
    p = [permutation_test(class_correlation(normal(7, 5, seed=seed)), groups).p_value for seed in range(350)]
    ranks = (np.array(p) * 35).round().astype(int)
    assert set(ranks) <= set(range(1, 36))
    chi2 = ((np.bincount(ranks, minlength=36)[1:] - 10) ** 2 / 10).sum()
    assert chi2 < 66  # 34 degrees of freedom: beyond this once in a thousand
    assert np.mean(np.array(p) <= 0.2) == pytest.approx(0.2, abs=0.08)


def test_sampled_p_approximates_the_exact_one(monkeypatch):
    C = class_correlation(normal(10, 6, seed=3)) + 0.2 * blocks(TEN)
    exact = permutation_test(C, TEN)
    monkeypatch.setattr("lrc.clustering.permutations.EXACT_LIMIT", 209)
    sampled = permutation_test(C, TEN)
    assert exact.exact and not sampled.exact and sampled.n_splits == 10_001
    assert sampled.statistic == exact.statistic
    assert 0.01 < exact.p_value < 0.9
    assert sampled.p_value == pytest.approx(exact.p_value, abs=4 * math.sqrt(exact.p_value / 10_000))


def test_sampled_test_of_many_classes():
    groups = [list(range(5 * g, 5 * g + 5)) for g in range(20)]
    C = class_correlation(normal(100, 50)) + 0.5 * blocks(groups)
    result = permutation_test(C, groups, samples=1999)
    assert (result.p_value, result.rank, result.n_splits, result.exact) == (1 / 2000, 1, 2000, False)
    assert result == permutation_test(C, groups, samples=1999)
    noise = class_correlation(normal(100, 50, seed=1))
    one, two = (
        permutation_test(noise, groups, samples=500, generator=torch.Generator().manual_seed(s)) for s in (1, 2)
    )
    assert one.p_value > 0.01 and one.p_value != two.p_value
    with pytest.raises(lrc.InputError, match="samples"):
        permutation_test(C, groups, samples=0)


def test_random_splits_are_evenly_spread():
    given_labels = torch.tensor([0, 0, 0, 1, 1, 2])
    splits = random_splits(given_labels, 6000, torch.Generator().manual_seed(0))
    assert (splits.sort(1).values == given_labels).all()
    for number, expected in ((0, 3000), (1, 2000), (2, 1000)):
        counts = (splits == number).sum(0)
        assert ((counts - expected).abs() < 5 * math.sqrt(expected)).all()


# --- tree ------------------------------------------------------------------------------------------------------------


def test_the_tree_of_nested_groups_cuts_into_them():
    C = blocks([[0, 1, 8, 9], [2, 3, 4, 5, 6, 7]], 0.3, -0.4)
    for group in ([0, 8], [1, 9], [2, 6, 4], [3, 5, 7]):
        C[np.ix_(group, group)] = 0.8
    C.fill_diagonal_(1)
    merges = tree(C)
    assert cut(merges, 2) == TEN
    assert cut(merges, 4) == [[0, 8], [1, 9], [2, 4, 6], [3, 5, 7]]
    assert cut(merges, 1) == [list(range(10))]
    assert cut(merges, 10) == [[c] for c in range(10)]
    assert sorted(set(merges[:, 2].round(9))) == [0.2, 0.7, 1.4]


def average_linkage_by_loops(C: Tensor, k: int) -> list[list[int]]:
    clusters = [[c] for c in range(len(C))]
    while len(clusters) > k:
        pairs = itertools.combinations(clusters, 2)
        a, b = min(pairs, key=lambda pair: np.mean([1 - C[i, j] for i in pair[0] for j in pair[1]]))
        clusters = [c for c in clusters if c not in (a, b)] + [sorted(a + b)]
    return sorted(clusters)


@pytest.mark.parametrize("seed", range(3))
def test_average_linkage_by_loops(seed):
    C = class_correlation(normal(8, 5, seed=seed))
    for k in range(1, 9):
        assert cut(tree(C), k) == average_linkage_by_loops(C, k)


def test_tree_and_cut_out_of_range():
    with pytest.raises(lrc.InputError, match="at least two classes"):
        tree(torch.eye(1))
    for k in (0, 4):
        with pytest.raises(lrc.InputError, match=f"1 to 3 groups, not {k}"):
            cut(tree(torch.eye(3)), k)


def test_a_tree_takes_c_in_single_precision():
    C = class_correlation(normal(10, 6, dtype=torch.float32).requires_grad_())
    assert cut(tree(C), 3) == cut(tree(C.detach().double()), 3)


# --- agreement -------------------------------------------------------------------------------------------------------


def test_agreement_by_hand():
    # of 15 pairs, 6 are together in the first, 3 in the second, 2 in both; 6 * 3 / 15 by chance
    assert agreement([[0, 1, 2], [3, 4, 5]], [[0, 1], [2, 3], [4, 5]]) == pytest.approx(
        (2 - 18 / 15) / ((6 + 3) / 2 - 18 / 15)
    )
    assert agreement(TEN, [list(reversed(TEN[1])), TEN[0]]) == 1.0
    assert agreement([[0, 1], [2, 3]], [[0, 2], [1, 3]]) < 0


def test_agreement_by_chance_is_zero_on_average():
    splits = random_splits(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 1]), 200, torch.Generator().manual_seed(0)).tolist()
    values = [agreement(TEN, [[c for c in range(10) if row[c] == k] for k in (0, 1)]) for row in splits]
    assert abs(np.mean(values)) < 4 * np.std(values) / 200**0.5


def test_agreement_takes_partitions_of_the_same_classes():
    with pytest.raises(lrc.InputError, match="each class from 0 to 3 once"):
        agreement([[0, 1], [2, 3]], [[0, 1], [2]])
