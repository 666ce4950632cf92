"""Trees against reference hierarchies, and C against semantic distance: by loops, and by SciPy and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import squareform
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

import lrc
from lrc.clustering import (
    agreement,
    agreements,
    class_correlation,
    cophenetic,
    cophenetic_correlation,
    cut,
    mantel_test,
    tree,
    triplet_agreement,
)
from lrc.hierarchy import CIFAR10, CIFAR100, wordnet_distance

ORDER = [3, 1, 0, 5, 2, 4]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlation(n: int, *, seed: int = 0) -> Tensor:
    return class_correlation(normal(n, 5, seed=seed))


def whole(n: int, *, largest: int, seed: int = 0) -> Tensor:
    """A symmetric matrix of whole numbers, with many ties."""
    numbers = torch.randint(1, largest + 1, (n, n), generator=torch.Generator().manual_seed(seed)).double().triu(1)
    return numbers + numbers.T


# --- agreement at each cut -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [[0] * 4 + [1] * 8, [0, 1, 2] * 4, [0] * 12, list(range(12)), [0, 1] + [2] * 10])
def test_agreements_by_scikit_learn(of):
    merges = tree(correlation(12))
    groups = [[c for c in range(12) if of[c] == g] for g in sorted(set(of))]
    values = agreements(merges, groups)
    for k in range(1, 13):
        ours = cut(merges, k)
        labels = [next(g for g, group in enumerate(ours) if c in group) for c in range(12)]
        assert float(values[k - 1]) == pytest.approx(adjusted_rand_score(of, labels), abs=1e-12)
        assert float(values[k - 1]) == pytest.approx(agreement(ours, groups), abs=1e-12)


def test_agreements_of_the_hierarchy_itself():
    merges = tree(1 - CIFAR100.distance() / 3)
    for level, k in ((0, 20), (1, 6)):
        values = agreements(merges, CIFAR100.groups(level))
        assert values[k - 1] == 1 and values.argmax() == k - 1 and values[0] == values[99] == 0
    with pytest.raises(lrc.InputError, match="each class from 0 to 99 once"):
        agreements(merges, CIFAR10.groups())


# --- cophenetic distance ---------------------------------------------------------------------------------------------


def test_cophenetic_by_merging():
    C = correlation(9)
    merges = tree(C)
    clusters = {c: [c] for c in range(9)}
    expected = torch.zeros(9, 9, dtype=torch.float64)
    for number, (a, b, height, _) in enumerate(merges.tolist()):
        left, right = clusters.pop(int(a)), clusters.pop(int(b))
        expected[np.ix_(left, right)] = height
        clusters[9 + number] = left + right
    assert torch.equal(cophenetic(merges), expected + expected.T)


def test_cophenetic_correlation_by_scipy():
    C = correlation(9)
    condensed = squareform((1 - C).numpy(), checks=False)
    expected, _ = cophenet(linkage(condensed, "average"), condensed)
    assert cophenetic_correlation(tree(C), 1 - C) == pytest.approx(expected, abs=1e-12)
    other = whole(9, largest=3)
    upper = np.triu_indices(9, 1)
    expected = np.corrcoef(cophenetic(tree(C)).numpy()[upper], other.numpy()[upper])[0, 1]
    assert cophenetic_correlation(tree(C), other) == pytest.approx(expected, abs=1e-12)


def test_a_tree_that_is_the_reference():
    distance = CIFAR100.distance()
    merges = tree(1 - distance / 3)
    assert torch.allclose(cophenetic(merges), distance / 3)
    assert cophenetic_correlation(merges, distance) == pytest.approx(1, abs=1e-12)
    assert triplet_agreement(cophenetic(merges), distance) == 1


def test_nothing_to_correlate():
    merges = tree(correlation(4))
    for function in (lambda D: cophenetic_correlation(merges, D), lambda D: mantel_test(correlation(4), D)):
        with pytest.raises(lrc.InputError, match="equally far apart"):
            function(torch.ones(4, 4))
        with pytest.raises(lrc.InputError, match="of 4 and of 5 classes"):
            function(whole(5, largest=9))
        with pytest.raises(lrc.InputError, match="not finite"):
            function(torch.full((4, 4), torch.nan))
    with pytest.raises(lrc.InputError, match="equally far apart"):
        cophenetic_correlation(tree(torch.eye(4)), whole(4, largest=9))


# --- triplets --------------------------------------------------------------------------------------------------------


def triplets_by_loops(D: Tensor, reference: Tensor) -> float:
    scores, D = [], D.round(decimals=9)
    for triplet in itertools.combinations(range(len(D)), 3):
        pairs = list(itertools.combinations(triplet, 2))
        closest, wanted = (
            [pair for pair in pairs if M[pair] == min(M[other] for other in pairs)] for M in (D, reference)
        )
        if len(wanted) == 1:
            scores.append(1 / len(closest) if wanted[0] in closest else 0)
    return sum(scores) / len(scores)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("largest", [2, 3, 1000])
def test_triplets_by_loops(seed, largest, monkeypatch):
    D, reference = whole(6, largest=largest, seed=seed), whole(6, largest=3, seed=seed + 100)
    expected = triplets_by_loops(D, reference)
    assert triplet_agreement(D, reference) == pytest.approx(expected, abs=1e-14)
    assert triplet_agreement(cophenetic(tree(1 - D / 9)), reference) == pytest.approx(
        triplets_by_loops(cophenetic(tree(1 - D / 9)), reference), abs=1e-14
    )
    monkeypatch.setattr("lrc.clustering.trees.BLOCK", 80)  # two classes at a time
    assert triplet_agreement(D, reference) == pytest.approx(expected, abs=1e-14)


def test_triplets_do_not_depend_on_labels_scale_or_type():
    D, reference = 1 - correlation(6), whole(6, largest=3)
    value = triplet_agreement(D, reference)
    assert 0 < value < 1
    assert triplet_agreement(D[ORDER][:, ORDER], reference[ORDER][:, ORDER]) == pytest.approx(value, abs=1e-14)
    assert triplet_agreement((5 * D**3).float(), reference.float()) == pytest.approx(value, abs=1e-14)


def test_triplets_by_chance():
    reference = CIFAR10.distance()
    values = [triplet_agreement(1 - correlation(10, seed=s), reference) for s in range(200)]
    assert np.mean(values) == pytest.approx(1 / 3, abs=4 * np.std(values) / 200**0.5)
    assert triplet_agreement(torch.ones(10, 10), reference) == pytest.approx(1 / 3)
    assert triplet_agreement(3 - reference, reference) == 0


def test_triplets_that_are_not_there():
    for reference in (torch.ones(5, 5), 1 - torch.eye(5)):
        with pytest.raises(lrc.InputError, match="says of no three classes"):
            triplet_agreement(whole(5, largest=9), reference)
    with pytest.raises(lrc.InputError, match="of 5 and of 6 classes"):
        triplet_agreement(whole(5, largest=9), whole(6, largest=9))


# --- rank correlation ------------------------------------------------------------------------------------------------


def test_rank_correlation_by_scipy():
    upper = np.triu_indices(8, 1)
    for distance in (whole(8, largest=3), whole(8, largest=1000)):
        C = correlation(8)
        expected = spearmanr(1 - C.numpy()[upper], distance.numpy()[upper]).statistic
        assert mantel_test(C, distance, samples=9).statistic == pytest.approx(expected, abs=1e-12)
    F = normal(8, 8).abs().fill_diagonal_(0)  # not symmetric: each pair in both orders
    off = ~np.eye(8, dtype=bool)
    expected = spearmanr(F.numpy()[off], distance.numpy()[off]).statistic
    assert mantel_test(1 - F, distance, samples=9).statistic == pytest.approx(expected, abs=1e-12)


def test_mantel_test_by_enumeration():
    C, distance = correlation(5, seed=3), whole(5, largest=3, seed=1)
    upper = np.triu_indices(5, 1)
    values = []
    for order in itertools.permutations(range(5)):
        moved = C[list(order)][:, list(order)]
        values.append(spearmanr(1 - moved.numpy()[upper], distance.numpy()[upper]).statistic)
    result = mantel_test(C, distance)
    assert (result.n_splits, result.exact) == (120, True)
    assert result.p_value == sum(v >= values[0] - 1e-9 for v in values) / 120
    assert result.rank == 1 + sum(v > values[0] + 1e-9 for v in values)


def test_partial_mantel_test_is_the_partial_rank_correlation():
    """By the textbook's formula of three rank correlations, in place of residuals."""
    C, distance, given = correlation(5, seed=3), whole(5, largest=3, seed=1), whole(5, largest=9, seed=2)
    upper = np.triu_indices(5, 1)
    xy, xz, yz = (
        spearmanr(a.numpy()[upper], b.numpy()[upper]).statistic
        for a, b in ((1 - C, distance), (1 - C, given), (distance, given))
    )
    result = mantel_test(C, distance, given=given)
    assert result.statistic == pytest.approx((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)), abs=1e-12)


def test_what_a_third_distance_explains_is_left_out():
    """Both follow the third, and nothing else: a strong correlation that the partial test does not see."""
    given, noise = normal(12, 12, seed=1), [normal(12, 12, seed=s) for s in (2, 3)]
    first, second = (given + given.T + 0.3 * (n + n.T) for n in noise)
    assert mantel_test(1 - first, second, samples=200).p_value < 0.01
    assert mantel_test(1 - first, second, given=given + given.T, samples=200).p_value > 0.05
    with pytest.raises(lrc.InputError, match="there is nothing left"):
        mantel_test(1 - first, second, given=2 * second + 1)


def partial_by_residuals(a: Tensor, b: Tensor, given: Tensor) -> float:
    """The correlation of what is left of the ranks of a and of b once a line through those of `given` is taken off."""
    upper = np.triu_indices(len(a), 1)
    x, y, z = (rankdata(m.numpy()[upper]) for m in (a, b, given))
    line = np.stack([np.ones_like(z), z], 1)
    left = [v - line @ np.linalg.lstsq(line, v, rcond=None)[0] for v in (x, y)]
    return float(np.corrcoef(*left)[0, 1])


def test_partial_mantel_test_by_enumeration():
    C, distance, given = correlation(5, seed=3), whole(5, largest=3, seed=1), 1 - correlation(5, seed=4)
    values = []
    for order in itertools.permutations(range(5)):
        moved = C[list(order)][:, list(order)]
        values.append(partial_by_residuals(1 - moved, distance, given))
    result = mantel_test(C, distance, given=given)
    assert result.statistic == pytest.approx(values[0], abs=1e-12) and (result.n_splits, result.exact) == (120, True)
    assert result.p_value == sum(v >= values[0] - 1e-9 for v in values) / 120
    assert result.rank == 1 + sum(v > values[0] + 1e-9 for v in values)


def test_what_follows_a_third_matrix_alone_is_not_partially_correlated():
    distance = CIFAR10.distance()
    given = distance + 0.5 * whole(10, largest=3, seed=2)
    C = 1 - given / 10 + 0.01 * (lambda m: m + m.T)(normal(10, 10, seed=5))
    plain, partial = mantel_test(C, distance, samples=999), mantel_test(C, distance, given=given, samples=999)
    assert plain.p_value < 0.01 < partial.p_value and partial.statistic < 0.5 * plain.statistic
    kept = mantel_test(1 - distance / 10 - given / 30, distance, given=given, samples=999)
    assert kept.p_value == 1 / 1000
    for alike in (distance, 2 * distance):
        with pytest.raises(lrc.InputError, match="`given` orders the pairs"):
            mantel_test(C, distance, given=alike)
    with pytest.raises(lrc.InputError, match="matrices of 10 and of 5 classes"):
        mantel_test(C, distance, given=1 - correlation(5))


def test_mantel_test_samples_where_there_are_too_many(monkeypatch):
    C, distance = correlation(6, seed=3), whole(6, largest=3, seed=1)
    exact = mantel_test(C, distance)
    assert 0.02 < exact.p_value < 0.98
    monkeypatch.setattr("lrc.clustering.hierarchy_tests.EXACT_LIMIT", 719)
    sampled = mantel_test(C, distance)
    assert (sampled.exact, sampled.n_splits) == (False, 10_001) and sampled.statistic == exact.statistic
    assert sampled.p_value == pytest.approx(exact.p_value, abs=0.02)
    assert sampled != mantel_test(C, distance, generator=torch.Generator().manual_seed(1))
    with pytest.raises(lrc.InputError, match="samples must be a whole number >= 1"):
        mantel_test(C, distance, samples=0)


def test_mantel_test_ignores_labels_and_monotone_changes():
    C, distance = correlation(6), whole(6, largest=3)
    result = mantel_test(C, distance)
    moved = mantel_test(C[ORDER][:, ORDER], distance[ORDER][:, ORDER].exp().float())
    assert moved.statistic == pytest.approx(result.statistic, abs=1e-12)
    assert (moved.p_value, moved.rank) == (result.p_value, result.rank)


def test_mantel_test_keeps_its_level():
    distance = CIFAR10.distance()
    n = 250
    p = np.array([mantel_test(correlation(10, seed=s), distance, samples=99).p_value for s in range(n)])
    for level in (0.05, 0.2, 0.5):
        assert np.mean(p <= level) == pytest.approx(level, abs=3.3 * math.sqrt(level * (1 - level) / n))


def test_c_made_of_meaning_is_found():
    distance = wordnet_distance(CIFAR10.classes)
    result = mantel_test(1 - distance / 10, distance, samples=999)
    assert result.statistic == pytest.approx(1) and result.p_value == 1 / 1000
    assert mantel_test(distance / 10, distance, samples=999).p_value > 0.99
    noisy = class_correlation(torch.linalg.cholesky(torch.exp(-distance / 4)) + 0.1 * normal(10, 10))
    assert mantel_test(noisy, distance, samples=999).p_value < 0.01
