"""Terms on the weights, each layer's as a matrix W with one row an output channel; biases and batch norm have none.

They are meant for `lrc.objectives.adding`; what they take as `seen` gives them the generator of random numbers.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from lrc.training.objectives.objective import Pass, wide

__all__ = ["orthogonality", "parseval", "soft_orthogonality", "spectral_norm"]


def orthogonality(model: nn.Module, seen: Pass, *, iterations: int = 2) -> Float[Tensor, ""]:
    """SRIP: ``sum_l sigma(W^T W - I)``, the largest absolute eigenvalue, by power iteration from a random vector.

    Where W has fewer rows than columns it is W W^T, as W^T W then has eigenvalues 0 whatever W is. The vector of the
    iteration is held constant; once it has converged the gradient is that of the eigenvalue. Before, the value is a
    lower bound.

    Args:
        iterations: of the power iteration.

    Source: Bansal, Chen & Wang, *Can we gain more from orthogonality regularizations in training deep networks?*
    (2018), section 3.
    """
    return _sum(_eigenvalue(tall(W), seen, iterations) for W in matrices(model))


def soft_orthogonality(model: nn.Module, seen: Pass) -> Float[Tensor, ""]:
    """``sum_l |W^T W - I|_F^2``, or of W W^T where W has fewer rows than columns.

    Source: Bansal, Chen & Wang (2018), section 3.
    """
    return _sum(_distance(tall(W)) for W in matrices(model))


def parseval(model: nn.Module, seen: Pass) -> Float[Tensor, ""]:
    """``sum_l |k W^T W - I|_F^2 / 4k``, or of W W^T: a step down it is the retraction to Parseval tight frames.

    k is the number of positions of a convolution's kernel (1 for a linear layer): a convolution meets each pixel k
    times, so its operator has norm one at most where k W^T W = I. The gradient by W is W (k W^T W - I), hence a step
    of size beta is the paper's W <- (1 + beta) W - beta W W^T W, taken on sqrt(k) W. The paper takes it after each step
    on the loss, as long as it likes; here beta is the learning rate times the weight of the term.

    Source: Cisse et al., *Parseval networks* (2017), section 4.
    """
    return _sum(_distance(k**0.5 * tall(W)) / (4 * k) for W, k in zip(matrices(model), _positions(model), strict=True))


def spectral_norm(model: nn.Module, seen: Pass, *, iterations: int = 2) -> Float[Tensor, ""]:
    """``sum_l sigma(W)^2 / 2``, sigma the largest singular value, by power iteration as in `orthogonality`.

    Source: Yoshida & Miyato, *Spectral norm regularization for improving the generalizability of deep learning* (2017).
    """
    return _sum(_singular_value(tall(W), seen, iterations).square() / 2 for W in matrices(model))


def matrices(model: nn.Module) -> Iterator[Float[Tensor, "outputs inputs"]]:
    """The weights of more than one dimension, each as a matrix, in at least float32."""
    return (wide(p).flatten(1) for p in _weights(model))


def tall(W: Float[Tensor, "rows columns"]) -> Float[Tensor, "long short"]:
    """W or its transpose, so that it has at least as many rows as columns."""
    return W if len(W) >= W.shape[1] else W.T


def _weights(model: nn.Module) -> Iterator[Tensor]:
    return (p for p in model.parameters() if p.dim() > 1)


def _positions(model: nn.Module) -> Iterator[int]:
    return (p[0, 0].numel() for p in _weights(model))


def _distance(W: Tensor) -> Tensor:
    """|W^T W - I|_F^2."""
    with torch.autocast(W.device.type, enabled=False):
        return (W.T @ W - torch.eye(W.shape[1], dtype=W.dtype, device=W.device)).square().sum()


def _eigenvalue(W: Tensor, seen: Pass, iterations: int) -> Tensor:
    """The largest absolute eigenvalue of W^T W - I."""
    with torch.autocast(W.device.type, enabled=False):
        v = F.normalize(_gaussian((W.shape[1],), W, seen.generator), dim=0)
        with torch.no_grad():
            for _ in range(iterations):
                v = F.normalize(W.T @ (W @ v) - v, dim=0)
        return torch.linalg.vector_norm(W.T @ (W @ v) - v)


def _singular_value(W: Tensor, seen: Pass, iterations: int) -> Tensor:
    """The largest singular value of W."""
    with torch.autocast(W.device.type, enabled=False):
        v = F.normalize(_gaussian((W.shape[1],), W, seen.generator), dim=0)
        with torch.no_grad():
            for _ in range(iterations):
                v = F.normalize(W.T @ (W @ v), dim=0)
        return torch.linalg.vector_norm(W @ v)


def _gaussian(shape: tuple[int, ...], like: Tensor, generator: Generator | None) -> Float[Tensor, "*shape"]:
    """Standard normal numbers for the device and in the type of `like`, from a generator on any device."""
    device = generator.device if generator is not None else like.device
    return torch.randn(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def _sum(values: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()
