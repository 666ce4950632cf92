"""How many directions the class rows take: eigenvalues of C, and the effective rank of W."""

import torch
from jaxtyping import Float
from torch import Tensor

from lrc.clustering.contrasts import as_matrix
from lrc.utils.errors import InputError

__all__ = ["effective_rank", "eigengap", "eigenvalues"]

BLOCK = 2**22
"""Entries of W in double precision at a time, which bounds the memory."""


def eigenvalues(C: Float[Tensor, "classes classes"]) -> Float[Tensor, " classes"]:
    """Eigenvalues of C from the largest down. They sum up to the number of classes.

    If g groups of classes are alike within and not between, g of them are large: the mean correlation within a group
    times its size. All are 1 if the rows of W are orthogonal.

    Raises:
        InputError: C is not symmetric or not finite.

    >>> eigenvalues(torch.block_diag(torch.ones(3, 3), torch.ones(2, 2))).round(decimals=6).abs()
    tensor([3., 2., 0., 0., 0.], dtype=torch.float64)
    """
    matrix = as_matrix(C)
    if not torch.allclose(matrix, matrix.T, atol=1e-5):
        raise InputError("eigenvalues are those of a symmetric matrix, such as C")
    return torch.linalg.eigvalsh(matrix).flip(0)


def eigengap(C: Float[Tensor, "classes classes"]) -> int:
    """How many eigenvalues of C stand before the largest gap between two in succession (von Luxburg 2007, sec. 8.3).

    That is the number of groups where they have nothing in common; and one fewer where the rows of W sum up to zero
    over the classes, so that groups are opposites of each other: in the centred C, and in the raw C of networks whose
    training leaves no common row.

    Raises:
        InputError: fewer than two classes, or as `eigenvalues`.

    >>> eigengap(torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)))
    2
    """
    if len(C) < 2:
        raise InputError(f"a gap takes at least two classes, not {len(C)}")
    return int(eigenvalues(C).diff().argmin()) + 1


def effective_rank(W: Float[Tensor, " classes *input"], *, centre: bool = False) -> float:
    """exp(-sum p log p) with p the singular values of W divided by their sum (Roy & Vetterli 2007): in [1, classes].

    It is the rank if the singular values that are not zero are equal, and lower the more they differ.

    Args:
        W: the linear map, or any other tensor with one row a class.
        centre: subtract the mean row first, which changes no decision of the classifier. Then at most classes - 1.

    Raises:
        InputError: W is zero (once centred, if so) or not finite.

    >>> round(effective_rank(torch.eye(4)), 6), round(effective_rank(torch.eye(4), centre=True), 6)
    (4.0, 3.0)
    """
    rows = W.detach().flatten(1)
    largest = rows.abs().max().cpu().double()
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for columns in rows.split(max(1, BLOCK // len(rows)), dim=1):
        block = columns.cpu().double() / largest
        block = block - block.mean(0) if centre else block
        gram += block @ block.T
    if not 1e-24 * rows.numel() < gram.trace() < torch.inf:  # what rounding leaves of equal rows is less
        what = "the same row for all classes" if centre else "zero"
        raise InputError(f"W is {what}, or not finite: it has no rank to measure")
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return float(torch.special.entr(values / values.sum()).sum().exp())
