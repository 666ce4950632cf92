"""How often, and how surely: a count of images with its confidence interval."""

import math
from dataclasses import dataclass

Z = 1.959963984540054  # the standard normal lies within +-Z with probability 0.95


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a probability, of which `right` out of `count` trials came true; (0, 1) for none.

    Source: Wilson, *Probable inference, the law of succession, and statistical inference* (1927).

    >>> low, high = wilson(45, 100)
    >>> round(low, 3), round(high, 3)
    (0.356, 0.548)
    >>> wilson(0, 0)
    (0.0, 1.0)
    """
    if count == 0:
        return 0.0, 1.0
    share, squared = right / count, Z**2 / count
    centre = (share + squared / 2) / (1 + squared)
    half = Z * math.sqrt(share * (1 - share) / count + squared / (4 * count)) / (1 + squared)
    low, high = max(centre - half, 0.0), min(centre + half, 1.0)
    return min(low, share), max(high, share)  # at 0 and 1 rounding alone would leave the share outside


def sign_test(first: int, second: int) -> float:
    """Two-sided p value of `first` against `second`, if each of their sum is a toss of a fair coin.

    This is McNemar's exact test, with the images that two evaluations judge differently.

    Source: McNemar, *Note on the sampling error of the difference between correlated proportions* (1947).

    >>> sign_test(5, 5), sign_test(1, 9), sign_test(0, 0)
    (1.0, 0.021484375, 1.0)
    """
    count, fewer = first + second, min(first, second)
    return min(2 * sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count, 1.0)


@dataclass(frozen=True)
class Rate:
    """`right` of `count` images.

    >>> print(Rate(45, 100))
    45.0 % (35.6 to 54.8)
    """

    right: int
    count: int

    @property
    def value(self) -> float:
        """The share, in [0, 1]; NaN of no images."""
        return self.right / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval (`wilson`)."""
        return wilson(self.right, self.count)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})" if self.count else "-"
