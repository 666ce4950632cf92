"""Learning rates over time."""

import math
from collections.abc import Callable

__all__ = ["Schedule", "cosine", "milestones"]

Schedule = Callable[[float], float]
"""Fraction of the training done, in [0, 1), to the factor of the learning rate."""


def cosine(*, warmup: float = 0.1) -> Schedule:
    """Linear rise over the fraction `warmup` of the training, then half a cosine down (Loshchilov & Hutter, 2017)."""

    def factor(done: float) -> float:
        if done < warmup:
            return max(done / warmup, 0.01)
        return 0.5 + 0.5 * math.cos(math.pi * (done - warmup) / (1 - warmup))

    return factor


def milestones(*at: float, factor: float = 0.1) -> Schedule:
    """Multiplied by `factor` at each of the given fractions; the paper's is `milestones(75 / 200, 90 / 200)`."""
    return lambda done: factor ** sum(done >= m for m in at)
