"""Spectra, intervals and random networks against closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import lrc
from lrc.clustering import (
    bootstrap,
    class_correlation,
    contrast,
    effective_rank,
    eigengap,
    eigenvalues,
    p_value,
    random_contrasts,
    t_interval,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blocks(sizes: list[int], within: float) -> Tensor:
    return torch.block_diag(*[torch.full((n, n), within).fill_diagonal_(1) for n in sizes])


# --- spectra ---------------------------------------------------------------------------------------------------------


def test_eigenvalues_of_blocks():
    expected = sorted([1 + 0.5 * 3, 1 + 0.5 * 2, 1.0] + [0.5] * 5, reverse=True)
    assert torch.allclose(eigenvalues(blocks([4, 3, 1], 0.5)), torch.tensor(expected).double())
    C = class_correlation(normal(9, 6))
    values = eigenvalues(C)
    assert torch.allclose(
        values, torch.tensor(np.linalg.eigvalsh(C.numpy())[::-1].copy())
    ) and values.sum() == pytest.approx(9)


@pytest.mark.parametrize("sizes", [[5, 5], [4, 3, 3], [2, 2, 2, 2]])
def test_the_gap_counts_groups(sizes):
    g = len(sizes)
    assert eigengap(blocks(sizes, 0.8)) == g
    W = torch.repeat_interleave(torch.linalg.qr(normal(30, g)).Q.T, torch.tensor(sizes), 0) + 0.02 * normal(
        sum(sizes), 30
    )
    assert eigengap(class_correlation(W)) == g
    assert eigengap(class_correlation(W, centre=True)) == g - 1
    assert eigengap(class_correlation(W + 5 * normal(30, seed=1))) == 1  # one row common to all hides them
    order = torch.randperm(len(W), generator=torch.Generator().manual_seed(0))
    assert eigengap(class_correlation(W[order])) == g


def test_eigenvalues_that_are_not():
    with pytest.raises(lrc.InputError, match="symmetric"):
        eigenvalues(normal(4, 4))
    with pytest.raises(lrc.InputError, match="not finite"):
        eigenvalues(torch.full((2, 2), torch.inf))
    with pytest.raises(lrc.InputError, match="two classes, not 1"):
        eigengap(torch.eye(1))


def test_effective_rank_in_closed_form():
    rows = torch.linalg.qr(normal(50, 4)).Q.T
    for values in ([1.0, 1, 1, 1], [4.0, 3, 2, 1], [1.0, 1e-3, 1e-6, 0]):
        p = np.array(values) / sum(values)
        expected = math.exp(-sum(x * math.log(x) for x in p if x))
        assert effective_rank(torch.tensor(values)[:, None] * rows) == pytest.approx(expected, rel=1e-6)
    assert effective_rank(torch.ones(5, 3, 2, 2)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("centre", [False, True])
def test_effective_rank_by_singular_values(centre, monkeypatch):
    W = normal(6, 3, 4, 4) * torch.logspace(0, 2, 6)[:, None, None, None]
    rows = W.flatten(1).numpy()
    s = np.linalg.svd(rows - rows.mean(0) if centre else rows, compute_uv=False)
    expected = math.exp(stats.entropy(s / s.sum()))
    assert effective_rank(W, centre=centre) == pytest.approx(expected, abs=1e-6)
    assert effective_rank((1e30 * W).float(), centre=centre) == pytest.approx(expected, abs=1e-5)
    rotation = torch.linalg.qr(normal(48, 48)).Q
    assert effective_rank(W.flatten(1) @ rotation, centre=centre) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr("lrc.clustering.similarity.BLOCK", 60)  # ten columns at a time
    assert effective_rank(W, centre=centre) == pytest.approx(expected, abs=1e-6)
    shifted = effective_rank(W + 100 * normal(3, 4, 4, seed=1), centre=centre)
    assert (abs(shifted - expected) < 1e-6) == centre


def test_effective_rank_of_nothing():
    same = torch.full((7, 5), 0.1)
    for W, centre in ((torch.zeros(3, 4), False), (same, True), (torch.full((2, 2), torch.nan), False)):
        with pytest.raises(lrc.InputError, match="no rank to measure"):
            effective_rank(W, centre=centre)
    assert effective_rank(same) == pytest.approx(1, abs=1e-6)


# --- intervals -------------------------------------------------------------------------------------------------------


def test_t_interval_by_scipy():
    values = torch.tensor([1.0, 1.5, 1.1, 0.7])
    found = t_interval(values, confidence=0.9)
    expected = stats.t.interval(0.9, 3, loc=values.double().mean(), scale=stats.sem(values.double()))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-6)
    assert (found.value, found.std, found.n) == pytest.approx((1.075, values.std().item(), 4), abs=1e-6)


def test_t_interval_holds_the_mean_as_often_as_it_says():
    intervals = [t_interval(row) for row in normal(500, 3)]
    assert np.mean([i.low <= 0 <= i.high for i in intervals]) == pytest.approx(0.95, abs=0.03)


def test_bootstrap_of_a_mean_is_near_students():
    samples = normal(200)
    found, expected = bootstrap(torch.mean, samples), t_interval(samples)
    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert found.std == pytest.approx(expected.std / 200**0.5, rel=0.1)
    wider = bootstrap(torch.mean, samples, confidence=0.99)
    assert wider.low < found.low < found.high < wider.high


def test_bootstrap_of_any_tensor_and_by_indices():
    samples, seen = normal(20, 3, 2), []

    def figure(drawn: Tensor) -> Tensor:
        seen.append(drawn.shape)
        return drawn.square().mean()

    found = bootstrap(figure, samples, resamples=300)
    assert set(seen) == {samples.shape, (19, 3, 2)} and len(seen) <= 300 + 20 + 2  # resamples, and one left out
    assert found.low < found.value < found.high
    assert bootstrap(lambda i: figure(samples[i]), torch.arange(20), resamples=300) == found


def test_bootstrap_resamples_by_the_generator_only():
    samples = normal(20)
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    found = bootstrap(torch.mean, samples, resamples=200)
    assert torch.equal(before[0], torch.random.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()
    assert found == bootstrap(torch.mean, samples, resamples=200)
    other = bootstrap(torch.mean, samples, resamples=200, generator=torch.Generator().manual_seed(1))
    assert found.low != other.low and found.value == other.value


def test_bootstrap_of_a_figure_that_does_not_vary():
    found = bootstrap(lambda x: 0.5, normal(10), resamples=50)
    assert (found.value, found.low, found.high, found.std, found.n) == (0.5, 0.5, 0.5, 0.0, 10)


def test_intervals_that_cannot_be():
    with pytest.raises(lrc.InputError, match="at least 2 samples, not 1"):
        t_interval(torch.ones(1))
    with pytest.raises(lrc.InputError, match="at least 8 samples, not 3"):
        bootstrap(torch.mean, torch.ones(3))
    with pytest.raises(lrc.InputError, match="not finite"):
        t_interval(torch.tensor([1.0, torch.nan]))
    for confidence in (0.0, 1.0, 95.0):
        with pytest.raises(lrc.InputError, match="confidence"):
            t_interval(torch.ones(3), confidence=confidence)
    with pytest.raises(lrc.InputError, match="resamples"):
        bootstrap(torch.mean, normal(9), resamples=0)
    for statistic in (lambda x: torch.nan, lambda x: len(set(x.tolist()))):  # different values: a resample has fewer
        with pytest.raises(lrc.InputError, match="the statistic is not finite"):
            bootstrap(statistic, normal(30), resamples=100)


# --- random networks -------------------------------------------------------------------------------------------------


def small(generator: torch.Generator) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    model.input_shape = (1, 6, 6)
    return model


@pytest.mark.parametrize("centre", [False, True])
def test_random_contrasts_one_by_one(centre):
    groups, generator = [[0, 1], [2, 3]], torch.Generator().manual_seed(5)
    found = random_contrasts(small, groups, n=4, centre=centre, generator=torch.Generator().manual_seed(5))
    expected = [contrast(class_correlation(lrc.linear_map(small(generator)), centre=centre), groups) for _ in range(4)]
    assert found.tolist() == expected and len(set(expected)) == 4
    maps = random_contrasts(
        lambda g: lrc.linear_map(small(g)), groups, n=4, centre=centre, generator=torch.Generator().manual_seed(5)
    )
    assert torch.equal(maps, found)
    with pytest.raises(lrc.InputError, match="n must be"):
        random_contrasts(small, groups, n=0)


def test_random_rows_have_the_contrast_of_chance():
    null = random_contrasts(lambda g: torch.randn(6, 50, generator=g), [[0, 1, 2], [3, 4, 5]], n=400)
    std = math.sqrt((1 / 6 + 1 / 9) / 50)  # cosines of random rows: variance 1 / dimensions
    assert float(null.mean()) == pytest.approx(0, abs=4 * std / 20) and float(null.std()) == pytest.approx(
        std, rel=0.15
    )


def test_p_value_counts_the_value_itself():
    null = torch.tensor([0.1, 0.2, 0.3])
    assert [p_value(v, null.double()) for v in (0.0, 0.25, 0.5)] == [1.0, 0.5, 0.25]
    assert p_value(0.5, torch.zeros(0)) == 1.0
    for value, sample in ((math.nan, null), (math.inf, null), (0.1, torch.tensor([math.nan]))):
        with pytest.raises(lrc.InputError, match="finite"):
            p_value(value, sample)
