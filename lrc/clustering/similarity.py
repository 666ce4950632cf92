"""How classes relate: C by the rows of the linear map, F by the logits of the whole network, and the spectrum of C."""

from collections.abc import Iterator
from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lrc.linearization import linear_map
from lrc.utils.checks import check_flag, check_labels, check_matrix, check_rows
from lrc.utils.errors import InputError
from lrc.utils.tensors import Matrix

BLOCK = 2**22
"""Numbers worked on at once in this package, which bounds the memory: 32 MiB in float64."""


def class_correlation(W: Float[Tensor, " classes *input"] | nn.Module, *, centre: bool = False) -> Matrix:
    """C: the cosine of the angle between the rows of W, one row a class, in [-1, 1] (Bai et al. 2021, sec. 3).

    It is computed in float64 (float32 on devices that have no float64) over one block of columns of W after another: so
    it takes little memory beside W, which may be a memory map.

    Args:
        W: the linear map, or any other tensor with one row a class; gradients flow through it. Or a network that has an
            `input_shape`: then W is `lrc.linear_map` of it, with the paper's choices.
        centre: subtract the mean row first. To add one vector to every row of W changes no decision, no probability and
            no loss of the classifier; it changes the raw C (the paper's), but not the centred one.

    Returns:
        A symmetric matrix with ones on the diagonal, of the type and on the device of W.

    Raises:
        InputError: a row is zero (once centred, if so) or not finite, and so points nowhere; and as `lrc.linear_map`.

    >>> W = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    >>> class_correlation(W)
    tensor([[1.0000, 0.0000, 0.7071],
            [0.0000, 1.0000, 0.7071],
            [0.7071, 0.7071, 1.0000]])
    """
    check_flag("centre", centre)
    W = linear_map(W) if isinstance(W, nn.Module) else W
    check_rows("W", W)
    rows = W.flatten(1)
    largest = _largest(rows.detach(), centre)[:, None]
    G = _gram(rows, largest, centre)
    lengths = G.diagonal().sqrt()
    C = (G + G.T) / 2 / (lengths[:, None] * lengths)
    return C.clamp(-1, 1).to(rows.dtype).fill_diagonal_(1)


def feature_distance(logits: Float[Tensor, "images features"], labels: Int[Tensor, " images"]) -> Matrix:
    """F: how far apart the class means of the logits are, each row relative to its largest entry, in [0, 1].

    F_ij is the mean squared difference between the means of classes i and j, divided by the largest of row i: so F is
    not symmetric. (As the official code of Bai et al. 2021 has it, with 128 images a class.)

    Args:
        logits: of the whole network, not the linear one, or any other features; one row an image.
        labels: in 0..classes-1, each class at least once.

    Raises:
        InputError: a class without images, a negative label, logits that are not finite, or means that all coincide.

    >>> feature_distance(torch.tensor([[0.0], [2.0], [1.0], [4.0]]), torch.tensor([0, 0, 1, 2]))
    tensor([[0., 0., 1.],
            [0., 0., 1.],
            [1., 1., 0.]])
    """
    check_rows("logits", logits)
    check_labels(labels, len(logits))
    logits, labels = logits.flatten(1), labels.to(logits.device, torch.int64)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    counts = labels.bincount()
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing:
        raise InputError(f"classes {missing} have no images, so no mean: pass images of every class")
    means = logits.new_zeros(len(counts), logits.shape[1]).index_add(0, labels, logits) / counts[:, None]
    distance = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").square()  # the other mode cancels
    largest = distance.amax(1, keepdim=True)
    if not ((largest > 0) & largest.isfinite()).all():
        raise InputError("the class means of the logits coincide or are not finite: there is no distance to compare")
    return distance / largest


def eigenvalues(C: Matrix) -> Float[Tensor, " classes"]:
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


def eigengap(C: Matrix) -> int:
    """How many eigenvalues of C stand before the largest gap between two in succession (von Luxburg 2007, sec. 8.3).

    That is the number of groups where they have nothing in common; and one fewer where the rows of W sum up to zero
    over the classes, so that groups are opposites of each other: in the centred C, and in the raw C of networks whose
    training leaves no common row.

    Raises:
        InputError: fewer than two classes, or as `eigenvalues`.

    >>> eigengap(torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)))
    2
    """
    values = eigenvalues(C)
    if len(values) < 2:
        raise InputError(f"a gap takes at least two classes, not {len(values)}")
    return int(values.diff().argmin()) + 1


def effective_rank(W: Float[Tensor, " classes *input"], *, centre: bool = False) -> float:
    """exp(-sum p log p) with p the singular values of W divided by their sum (Roy & Vetterli 2007): in [1, classes].

    It is the rank if the singular values that are not zero are equal, and lower the more they differ.

    Args:
        centre: subtract the mean row first, which changes no decision of the classifier. Then at most classes - 1.

    Raises:
        InputError: W is zero (once centred, if so) or not finite.

    >>> round(effective_rank(torch.eye(4)), 6), round(effective_rank(torch.eye(4), centre=True), 6)
    (4.0, 3.0)
    """
    check_rows("W", W)
    check_flag("centre", centre)
    rows = W.detach().flatten(1)
    gram = _gram(rows, rows.abs().max(), centre).cpu().double()
    if not 1e-24 * rows.numel() < gram.trace() < torch.inf:  # what rounding leaves of equal rows is less
        what = "the same row for all classes" if centre else "zero"
        raise InputError(f"W is {what}, or not finite: it has no rank to measure")
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return float(torch.special.entr(values / values.sum()).sum().exp())


def as_matrix(C: Matrix) -> Matrix:
    """C for statistics: in double precision, on the CPU. Raises InputError: C is no square matrix, or not finite."""
    check_matrix("the matrix of classes", C)
    return C.detach().cpu().double()


def _gram(rows: Tensor, scale: Tensor, centre: bool) -> Matrix:
    """The products of the rows with each other, each divided by its scale first: no square over- or underflows."""
    return reduce(torch.add, ((block / scale) @ (block / scale).T for block in _blocks(rows, centre)))


def _largest(rows: Tensor, centre: bool) -> Float[Tensor, " classes"]:
    """The largest size in each row, centred if so; rows that point nowhere are refused."""
    largest = reduce(torch.maximum, (block.abs().amax(1) for block in _blocks(rows, centre)))
    floor = 0.0
    if centre:  # what rounding leaves of equal rows
        floor = 4 * torch.finfo(rows.dtype).eps * max(abs(float(end)) for end in rows.aminmax())
    useless = (~(largest > floor) | ~largest.isfinite()).nonzero().flatten().tolist()
    if useless:
        what = "equal the mean row" if centre else "are zero"
        raise InputError(f"the rows of W for classes {useless} {what} or are not finite: they have no direction")
    return largest


def _blocks(rows: Float[Tensor, "classes pixels"], centre: bool) -> Iterator[Float[Tensor, "classes some"]]:
    """The columns, some at a time, in float64 where the device has it; the mean over the classes taken off if so."""
    dtype = torch.float32 if rows.device.type == "mps" else torch.float64
    for columns in rows.split(max(1, BLOCK // len(rows)), dim=1):
        block = columns.to(dtype)
        yield block - block.mean(0) if centre else block
