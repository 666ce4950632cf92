"""Tests of levels that nest: each level for what it adds, against enumeration by hand and at its nominal level."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import lrc
from lrc.clustering import class_correlation, contrast, holm, permutation_test, permutation_tests
from lrc.clustering.permutations import random_splits, splits_within
from lrc.hierarchy import CIFAR10, CIFAR100, Hierarchy, Level

COARSE, FINE = [[0, 1, 2, 3], [4, 5, 6]], [[0, 1], [2, 3], [4], [5, 6]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hierarchy(*levels: list[int], nested: bool = True) -> Hierarchy:
    """Levels of these group numbers, named 0, 1, ..."""
    made = [Level(str(n), tuple(f"{n}.{g}" for g in sorted(set(of))), tuple(of)) for n, of in enumerate(levels)]
    return Hierarchy(tuple(map(str, range(len(levels[0])))), tuple(made), "made up", nested)


def planted(levels: Hierarchy, strengths: tuple[float, ...], *, seed: int, dimensions: int = 60) -> Tensor:
    """C of random rows, to which each group of each level adds a random vector of its own."""
    W = normal(len(levels.classes), dimensions, seed=seed)
    for number, (level, strength) in enumerate(zip(levels.levels, strengths, strict=True)):
        W += (
            strength * normal(len(level.names), dimensions, seed=1_000_000 + 10 * seed + number)[torch.tensor(level.of)]
        )
    return class_correlation(W)


def siblings_by_loops(C: Tensor, fine: list[list[int]], coarse: list[list[int]]) -> float:
    of, kind = ({c: g for g, group in enumerate(groups) for c in group} for groups in (fine, coarse))
    same, other = [], []
    for i, j in itertools.combinations(range(len(C)), 2):
        if kind[i] == kind[j]:
            (same if of[i] == of[j] else other).append(float(C[i, j]))
    return sum(same) / len(same) - sum(other) / len(other)


# --- contrast and permutation test within coarser groups -------------------------------------------------------------


def test_contrast_within_counts_siblings_only():
    C = class_correlation(normal(7, 5))
    assert contrast(C, FINE, within=COARSE) == pytest.approx(siblings_by_loops(C, FINE, COARSE), abs=1e-14)
    assert contrast(C, FINE, within=[list(range(7))]) == pytest.approx(contrast(C, FINE), abs=1e-14)
    far = C.clone()
    far[:4, 4:] = far[4:, :4] = -1
    assert contrast(far, FINE, within=COARSE) == pytest.approx(contrast(C, FINE, within=COARSE), abs=1e-14)


def test_within_must_not_cut_through_groups():
    for function in (contrast, permutation_test):
        with pytest.raises(lrc.InputError, match="cuts through"):
            function(torch.eye(7), FINE, within=[[0, 2, 4], [1, 3, 5, 6]])
        with pytest.raises(lrc.InputError, match="each class from 0 to 6 once"):
            function(torch.eye(7), FINE, within=[[0, 2, 4]])
        with pytest.raises(lrc.InputError, match="at least one pair"):
            function(torch.eye(7), COARSE, within=COARSE)


def test_exact_test_within_by_hand():
    C = class_correlation(normal(7, 4, seed=2))
    firsts = [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0, 3], [1, 2]]]  # all there are
    seconds = [[[4], [5, 6]], [[5], [4, 6]], [[6], [4, 5]]]
    values = [siblings_by_loops(C, a + b, COARSE) for a in firsts for b in seconds]
    result = permutation_test(C, FINE, within=COARSE)
    assert result.statistic == pytest.approx(values[0], abs=1e-14)
    assert (result.n_splits, result.exact) == (9, True)
    assert result.p_value == sum(v >= values[0] - 1e-12 for v in values) / 9
    assert result.rank == 1 + sum(v > values[0] + 1e-12 for v in values)


def test_splits_within_are_all_and_different():
    given, coarse = torch.tensor([0, 2, 0, 1, 2, 1, 1, 3]), torch.tensor([0, 1, 0, 0, 1, 0, 0, 1])
    found = {
        tuple(tuple((row == k).nonzero().flatten().tolist()) for k in range(4)) for row in splits_within(given, coarse)
    }
    found = {frozenset(groups) for groups in found}
    assert len(found) == len(splits_within(given, coarse)) == 10 * 3  # 5 classes in 2 + 3, 3 in 2 + 1
    for groups in found:
        assert sorted(len(g) for g in groups) == [1, 2, 2, 3]
        assert all(len(set(coarse[list(group)].tolist())) == 1 for group in groups)


def test_random_splits_within_are_evenly_spread():
    given, coarse = torch.tensor([0, 2, 0, 1, 2, 1, 1, 3]), torch.tensor([0, 1, 0, 0, 1, 0, 0, 1])
    splits = random_splits(given, 6000, torch.Generator().manual_seed(0), coarse=coarse)
    for kind in (0, 1):
        here = coarse == kind
        assert (splits[:, here].sort(1).values == given[here].sort().values).all()
        for label, share in zip(*given[here].unique(return_counts=True), strict=True):
            counts, expected = (splits[:, here] == label).sum(0), 6000 * float(share) / int(here.sum())
            assert ((counts - expected).abs() < 5 * math.sqrt(expected)).all()


def test_sampled_test_within_approximates_the_exact_one(monkeypatch):
    C = class_correlation(normal(7, 4, seed=2))
    exact = permutation_test(C, FINE, within=COARSE)
    monkeypatch.setattr("lrc.clustering.permutations.EXACT_LIMIT", 8)
    sampled = permutation_test(C, FINE, within=COARSE, samples=5000)
    assert not sampled.exact and 0.1 < exact.p_value < 0.9
    assert sampled.p_value == pytest.approx(exact.p_value, abs=0.03)


# --- levels ----------------------------------------------------------------------------------------------------------


def test_a_planted_hierarchy_is_found_at_both_levels():
    results = permutation_tests(planted(CIFAR100, (0.5, 0.5), seed=0), CIFAR100, samples=999)
    assert [(r.level, r.units, r.within) for r in results] == [
        ("superclass", "class", "kind"),
        ("kind", "superclass", None),
    ]
    assert [(r.p_value, r.corrected, r.exact) for r in results] == [(1 / 1000, 2 / 1000, False)] * 2


@pytest.mark.parametrize("there, missing", [(0, 1), (1, 0)])
def test_one_level_does_not_make_the_other_significant(there, missing):
    strengths = (0.8, 0.0) if there == 0 else (0.0, 0.8)
    C = planted(CIFAR100, strengths, seed=1)
    both = permutation_tests(C, CIFAR100, samples=999)
    assert both[there].corrected <= 0.002 and both[missing].p_value > 0.05
    alone = permutation_tests(C, CIFAR100, conditional=False, samples=999)
    assert [r.p_value for r in alone] == [1 / 1000] * 2  # which is why levels are tested for what they add
    assert {(r.units, r.within) for r in alone} == {("class", None)}


def test_statistics_of_levels_by_loops():
    levels = hierarchy([0, 0, 1, 1, 2, 2, 2, 3], [0, 0, 0, 0, 1, 1, 1, 1])
    C = class_correlation(normal(8, 5))
    fine, coarse = permutation_tests(C, levels)
    assert fine.statistic == pytest.approx(siblings_by_loops(C, levels.groups(0), levels.groups(1)), abs=1e-14)
    mean = {(a, b): float(C[np.ix_(levels.groups()[a], levels.groups()[b])].mean()) for a in range(4) for b in range(4)}
    apart = (mean[0, 2] + mean[0, 3] + mean[1, 2] + mean[1, 3]) / 4
    assert coarse.statistic == pytest.approx((mean[0, 1] + mean[2, 3]) / 2 - apart, abs=1e-14)
    assert (fine.n_splits, coarse.n_splits) == (3 * 4, 3)


def test_one_level_is_the_plain_test():
    C = class_correlation(normal(10, 6))
    (result,) = permutation_tests(C, CIFAR10)
    plain = permutation_test(C, CIFAR10.groups())
    assert (result.p_value, result.rank, result.n_splits) == (plain.p_value, plain.rank, plain.n_splits)
    assert result.statistic == pytest.approx(plain.statistic, abs=1e-14) and result.corrected == result.p_value


def test_relabelling_the_classes_changes_no_level():
    levels = hierarchy([0, 0, 1, 1, 2, 2, 2, 3], [0, 0, 0, 0, 1, 1, 1, 1])
    C, order = class_correlation(normal(8, 5)), [3, 1, 0, 5, 2, 4, 7, 6]
    moved = permutation_tests(C[order][:, order], levels.select(order))
    for ours, theirs in zip(permutation_tests(C, levels), moved, strict=True):
        assert replace(ours, statistic=theirs.statistic, quantiles=theirs.quantiles) == theirs
        assert ours.statistic == pytest.approx(theirs.statistic, abs=1e-14)
        assert ours.quantiles == pytest.approx(theirs.quantiles, abs=1e-14)


def test_each_level_keeps_its_level_whatever_the_other_holds(monkeypatch):
    monkeypatch.setattr("lrc.clustering.permutations.EXACT_LIMIT", 100)
    levels = hierarchy([c // 2 for c in range(16)], [c // 8 for c in range(16)])
    n = 200
    for missing, strengths in ((0, (0.0, 1.0)), (1, (1.0, 0.0))):
        tests = [permutation_tests(planted(levels, strengths, seed=s), levels, samples=99)[missing] for s in range(n)]
        assert tests[0].exact == (missing == 1)  # pairs are sampled, 35 splits of 8 units tried
        p = np.array([test.p_value for test in tests])
        for level in (0.05, 0.2, 0.5):
            nominal = math.floor(level * tests[0].n_splits + 1e-9) / tests[0].n_splits
            assert np.mean(p <= level) == pytest.approx(nominal, abs=3.3 * math.sqrt(nominal * (1 - nominal) / n))
        assert 0.4 < p.mean() < 0.62


def test_levels_that_cut_through_each_other_are_tested_alone():
    crossed = hierarchy([0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1], nested=False)
    C = class_correlation(normal(6, 5))
    results = permutation_tests(C, crossed)
    assert [(r.units, r.within) for r in results] == [("class", None)] * 2
    for number, result in enumerate(results):
        assert result.p_value == permutation_test(C, crossed.groups(number)).p_value


def test_levels_with_nothing_to_compare():
    for levels, name in (
        (([0, 0, 1, 1], [0, 0, 1, 1]), "0"),
        (([0, 0, 1, 1], [0, 0, 0, 0]), "1"),
        (([0, 1, 2, 3],), "0"),
    ):
        with pytest.raises(lrc.InputError, match=f"^level '{name}': contrast needs"):
            permutation_tests(torch.eye(4), hierarchy(*levels))
    with pytest.raises(lrc.InputError, match="has 10 classes in 1 levels"):
        permutation_tests(torch.eye(4), CIFAR10)
    with pytest.raises(lrc.InputError, match="in 0 levels"):
        permutation_tests(torch.eye(2), Hierarchy(("a", "b"), (), "made up"))


# --- several tests ---------------------------------------------------------------------------------------------------


def rejected_step_by_step(p: list[float], alpha: float) -> list[bool]:
    """Holm's procedure: reject from the smallest on, until one is too large for those that are left."""
    rejected = [False] * len(p)
    for step, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] > alpha / (len(p) - step):
            break
        rejected[i] = True
    return rejected


@pytest.mark.parametrize("seed", range(20))
def test_holm_by_its_procedure(seed):
    p = (torch.rand(1 + seed % 6, generator=torch.Generator().manual_seed(seed)).double() / 5).tolist()
    corrected = holm(p)
    assert all(a <= b <= 1 for a, b in zip(p, corrected, strict=True))
    for alpha in np.linspace(0.003, 0.5, 200).tolist():
        assert [q <= alpha for q in corrected] == rejected_step_by_step(p, alpha)


@pytest.mark.parametrize("wrong", [math.nan, -0.1, 1.5])
def test_holm_takes_probabilities_alone(wrong):
    with pytest.raises(lrc.InputError, match=rf"p values must be in \[0, 1\], not {wrong}"):
        holm([0.01, wrong, 0.03])


def test_holm_of_one_of_equal_and_of_none():
    assert holm([0.3]) == [0.3] and holm([0.5, 0.5]) == [1.0, 1.0] and holm([]) == []
