"""How far a figure can be trusted: over seeds, and over images."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lrc.utils.checks import MISTAKES, check_generator, check_number, check_tensor, check_whole, first_line
from lrc.utils.errors import InputError

FEWEST = 8
"""Below so many samples a bootstrap interval is far too narrow.

Of 600 BCa intervals of 95 % for the mean of n normal values, so many held the true one: 70 % of n = 3, 85 % of n = 5,
88 % of n = 8, 93 % of n = 20.
"""


@dataclass(frozen=True)
class Interval:
    """A figure and the interval that holds the true one with the confidence asked for.

    Attributes:
        value: the figure.
        low, high: the ends.
        std: standard deviation: of the seeds (`t_interval`), or of the resampled figures (`bootstrap`).
        n: number of samples, such as seeds or images.

    >>> print(Interval(1.234, 1.1, 1.4, 0.1, 3))
    1.234 (1.100 to 1.400, n = 3)
    """

    value: float
    low: float
    high: float
    std: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f}, n = {self.n})"


def t_interval(values: Float[Tensor, " n"], *, confidence: float = 0.95) -> Interval:
    """Mean of a few values, such as one a seed, with Student's interval: mean -+ t std / sqrt(n) (Student 1908).

    It takes the values for normal, which is why 2 or 3 are enough; a `bootstrap` interval needs far more.

    Raises:
        InputError: fewer than two values, values that are not finite, or a confidence that is not between 0 and 1.

    >>> print(t_interval(torch.tensor([1.2, 1.4, 1.6])))
    1.400 (0.903 to 1.897, n = 3)
    """
    from scipy import stats  # here: slow to import

    check_tensor("values", values)
    if values.dim() != 1 or values.is_complex():
        raise InputError(f"values must be real numbers (n,), not {values.dtype} {tuple(values.shape)}")
    values = values.detach().cpu().double()
    _check(len(values), 2, confidence)
    if not values.isfinite().all():
        raise InputError("values hold some that are not finite")
    mean, std = float(values.mean()), float(values.std())
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * std / len(values) ** 0.5
    return Interval(mean, mean - half, mean + half, std, len(values))


def bootstrap(
    statistic: Callable[[Tensor], float | Tensor],
    samples: Tensor,
    *,
    confidence: float = 0.95,
    resamples: int = 2_000,
    generator: Generator | None = None,
) -> Interval:
    """Any figure of many samples with its bootstrap interval, bias-corrected and accelerated (BCa, Efron 1987).

    By `scipy.stats.bootstrap`, over the first axis of any tensor. What does not fit into one tensor is resampled by its
    indices: `bootstrap(lambda i: figure(logits[i], labels[i]), torch.arange(len(labels)))`.

    Args:
        statistic: of samples (n, ...) as drawn with replacement; called `resamples` + n + 1 times.
        samples: 8 or more, independent of each other along the first axis, such as images, or networks of many seeds.
            For the mean of fewer seeds there is `t_interval`.
        confidence: between 0 and 1.
        resamples: how many are drawn.

    Raises:
        InputError: fewer than 8 samples, a confidence that is not between 0 and 1, no resamples, a statistic that is
            not finite, or one that is larger (or smaller) than in each resample, where the method has no interval.

    >>> samples = torch.arange(100.0)
    >>> interval = bootstrap(torch.mean, samples)
    >>> interval.value, 43.5 < interval.low < 44.5, 54.5 < interval.high < 55.5
    (49.5, True, True)
    """
    from scipy import stats  # here: slow to import

    check_tensor("samples", samples)
    _check(len(samples) if samples.dim() else 1, FEWEST, confidence)
    check_whole("resamples", resamples, 1)
    check_generator(generator)
    try:
        value = float(statistic(samples))
    except MISTAKES as error:
        raise InputError(
            f"the statistic gives no number of samples {tuple(samples.shape)}: {first_line(error)}"
        ) from error
    generator = generator or Generator().manual_seed(0)
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a statistic that does not vary, which is dealt with below
        found = stats.bootstrap(
            (np.arange(len(samples)),),
            lambda rows: float(statistic(samples[torch.from_numpy(rows).to(samples.device)])),
            n_resamples=resamples, vectorized=False, confidence_level=confidence, method="BCa",
            rng=np.random.default_rng(seed),
        )  # fmt: skip
    drawn = found.bootstrap_distribution
    low, high = map(float, found.confidence_interval)
    if (drawn == value).all():
        low = high = value
    if not np.isfinite([low, high, value, *drawn]).all():
        raise InputError("the statistic is not finite in each resample, or never as large, or never as small as in all")
    return Interval(value, low, high, float(drawn.std(ddof=1)) if len(drawn) > 1 else 0.0, len(samples))


def _check(n: int, fewest: int, confidence: float) -> None:
    if n < fewest:
        raise InputError(f"an interval of this kind takes at least {fewest} samples, not {n}")
    check_number("confidence", confidence, "(0, 1)")
