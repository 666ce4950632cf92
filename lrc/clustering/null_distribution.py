"""What contrasts come of random weights alone: the null distribution that a trained network has to exceed."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from lrc.clustering.contrasts import Groups, contrast
from lrc.clustering.similarity import class_correlation
from lrc.linearization import linear_map
from lrc.utils.errors import InputError

__all__ = ["p_value", "random_contrasts"]


def random_contrasts(
    build: Callable[[Generator], nn.Module | Tensor],
    groups: Groups,
    *,
    n: int = 100,
    centre: bool = False,
    generator: Generator | None = None,
) -> Float[Tensor, " n"]:
    """Contrasts of networks with random weights: what the architecture gives before it has seen an image.

    Args:
        build: draws weights with the generator and returns the network (with an `input_shape`), or its W, where
            `linear_map` is to be called with other choices than its own.
        groups: a partition of the classes.
        n: number of networks.
        centre: as for `class_correlation`.
        generator: of all networks, one after another; a new one with seed 0 if absent.

    Raises:
        InputError: no networks, or as `linear_map`, `class_correlation` and `contrast`.

    >>> null = random_contrasts(lambda g: torch.randn(4, 1, 8, 8, generator=g), [[0, 1], [2, 3]], n=200)
    >>> bool(null.mean().abs() < 0.03), round(float(null.std()), 2), p_value(0.5, null) < 0.01
    (True, 0.11, True)
    """
    if n < 1:
        raise InputError(f"n must be at least 1, not {n}")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    maps = (build(generator) for _ in range(n))
    matrices = (class_correlation(W if isinstance(W, Tensor) else linear_map(W), centre=centre) for W in maps)
    return torch.tensor([contrast(C, groups) for C in matrices], dtype=torch.float64)


def p_value(value: float, null: Float[Tensor, " n"]) -> float:
    """The probability of a value at least as large under a null distribution, from a sample of it.

    (1 + number at least as large) / (1 + n), which holds its level for any n (Phipson & Smyth 2010).

    Raises:
        InputError: the value or the sample is not finite.

    >>> p_value(0.5, torch.tensor([0.1, 0.7, 0.2, -0.1]))
    0.4
    """
    if not null.isfinite().all() or not abs(value) < torch.inf:
        raise InputError("the value and the sample of its null distribution must be finite")
    return (1 + int((null >= value).sum())) / (1 + len(null))
