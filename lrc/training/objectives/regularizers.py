"""Regularizers: terms that `lrc.objectives.adding` adds to a loss, on logits, features, the linear map or the weights.

Terms on the weights take each layer's as a matrix W with one row an output channel; biases and batch norm have none.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from lrc.attacks.rng import image_keys, normal
from lrc.clustering.contrasts import listed
from lrc.linearization import linearize
from lrc.linearization.jacobian import differentiated
from lrc.training.objectives.objective import TermInputs, head_inputs, logits, wide
from lrc.utils.checks import check_rows, check_whole, explained
from lrc.utils.errors import InputError
from lrc.utils.networks import preserved
from lrc.utils.tensors import Labels, Logits, Pixels, Scalar
from lrc.utils.typed import typed

Groups = Sequence[Sequence[int]]


def clustering(model: nn.Module, inputs: TermInputs, *, groups: Groups, reduction: str = "sum") -> Scalar:
    """`clustering_term` of the logits that the loss had of the examples; the network is not run again."""
    return clustering_term(inputs.z_adv, groups, reduction=reduction)


def clustering_term(z: Logits, groups: Groups, *, reduction: str = "sum") -> Scalar:
    """How far the logits of a superclass' classes are from their mean: ``(z_j - mean_{k in g} z_k)^2``, batch mean.

    Args:
        z: logits of the (adversarial) batch.
        groups: the superclasses, each the numbers of its classes; a class in none of them is left alone.
        reduction: "sum", a tenth of the sum over groups and members (the paper's for CIFAR-10, to be weighted 0.1), or
            "mean", the mean over groups of the mean over members (its for CIFAR-20, to be weighted 1).

    Raises:
        InputError: a class that z does not have or that stands in two groups, or an unknown reduction.

    Source: Bai et al., *Clustering effect of adversarial robust models* (2021), section 4, after the official code.

    >>> z = torch.tensor([[1.0, 3.0, 5.0], [1.0, 1.0, 5.0]])
    >>> clustering_term(z, [[0, 1], [2]])  # 0.1 ((1 + 0) / 2 + (1 + 0) / 2)
    tensor(0.1000)
    >>> clustering_term(z, [[0, 1], [2]], reduction="mean")  # the mean of 0.5 and 0
    tensor(0.2500)
    """
    if reduction not in ("sum", "mean"):
        raise InputError(f'reduction must be "sum" or "mean", not {reduction!r}')
    members = membership(groups, z)
    with torch.autocast(z.device.type, enabled=False):
        each = torch.full_like(members, 0.1) if reduction == "sum" else 1 / (len(groups) * members.sum(1, keepdim=True))
        return ((z - z @ averaging_matrix(members)).square().mean(0) * (each * members).sum(0)).sum()


def logit_penalty(model: nn.Module, inputs: TermInputs) -> Scalar:
    """``0.1 sum_j z_j^2``, batch mean, of the logits that the loss had of the examples: they are made small.

    It is `clustering` without the mean of the superclass: a control that shrinks the logits and knows no superclass.
    With the logits' own mean subtracted it is the `clustering_term` of one group of all classes.

    Source: the penalty of logit squeezing, Kannan, Kurakin & Goodfellow, *Adversarial logit pairing* (2018).
    """
    return 0.1 * inputs.z_adv.square().sum(1).mean()


def row_clustering(model: nn.Module, inputs: TermInputs, *, groups: Groups) -> Scalar:
    """How far the rows of the linear map are from the mean of their superclass: ``mean_g mean_{j in g} |r_j - r_g|^2``.

    The rows r are those of W, centred over the classes and scaled to length one (a shift of all rows changes no
    decision, their length no correlation); the term lies in [0, 1] and is 1 minus the mean correlation within groups,
    a class' own with itself included. It acts on what `lrc.class_correlation` measures, where the paper's acts on
    logits. The network is linearized anew each time, which takes some milliseconds.

    Args:
        groups: as in `clustering_term`.

    Raises:
        InputError: as `lrc.linearize`.
    """
    black = torch.zeros_like(inputs.x[:1])
    linear = linearize(model, input_shape=black.shape[1:], verify=False)
    with differentiated(linear, black, learning=True) as (_, chunks):
        W = torch.cat([rows[:, 0].flatten(1) for rows in chunks])
        rows = F.normalize(W - W.mean(0), dim=1)
        return clustering_term(rows.T, groups, reduction="mean") * len(rows.T)


@typed
def jacobian(model: nn.Module, inputs: TermInputs, *, projections: int = 1) -> Scalar:
    """``mean |J(x)|_F^2 / 2``, J = dz/dx, estimated without bias from random directions v in the space of logits.

    ``|J|_F^2 = classes E |v J|^2`` for v uniform on the unit sphere. It costs a forward pass, which leaves the running
    statistics alone, and twice a backward pass a direction. An image's directions depend on the generator and on its
    pixels alone, as in attacks.

    The estimate is without bias where each image's logits depend on that image alone. In training mode batch norm mixes
    the images: then an image's gradient also holds what it does to the others' logits.

    Args:
        inputs: its clean images are used.
        projections: number of directions.

    Source: Hoffman, Roberts & Yaida, *Robust learning with Jacobian regularization* (2019); the norm as a regularizer:
    Jakubovitz & Giryes, *Improving DNN robustness to adversarial attacks using Jacobian regularization* (2018).
    """
    check_whole("projections", projections, 1)
    x = inputs.x.detach().requires_grad_()
    z = aside(model, x)
    total, keys = z.new_zeros(()), image_keys(x.detach(), inputs.generator)
    for i in range(projections):
        v = F.normalize(normal(keys, tuple(z.shape[1:]), draw=i).to(z.dtype), dim=1)
        with explained(model, x):
            (g,) = torch.autograd.grad(z, x, v, create_graph=True)
        total = total + g.square().sum()
    return z.shape[1] * total / (2 * len(x) * projections)


def feature_clustering(model: nn.Module, inputs: TermInputs, *, groups: Groups) -> Scalar:
    """Share of the scatter of the class means that lies within superclasses, in features of the examples.

    ``sum_g sum_{k in g} |mu_k - mu_g|^2 / sum_k |mu_k - mu|^2``, with mu_k the mean in the batch of what the last
    linear layer sees of class k, mu_g and mu the means of the mu_k of a superclass and of all of them. It lies in
    [0, 1] and does not change with the scale of the features. It is 0 where the mu_k are all the same. Classes without
    an image in the batch, or in no superclass, are left out; in a training spread over processes the means are of each
    one's share.

    It costs one more pass of the network, which leaves the running statistics alone.

    Args:
        groups: as in `clustering_term`.

    Raises:
        InputError: such groups as `clustering_term` refuses, no linear layer, or a compiled network.
    """
    members = membership(groups, inputs.z_adv)
    with head_inputs(model) as captured:
        aside(model, inputs.x_adv)
    return _scatter_within(wide(captured[-1]), inputs.y, members)


def _scatter_within(features: Float[Tensor, "n d"], y: Labels, members: Float[Tensor, "groups classes"]) -> Scalar:
    """`feature_clustering` of features. Absent classes get weight 0, so that no shape depends on the batch."""
    own = F.one_hot(y, members.shape[1]).to(features.dtype)
    with torch.autocast(features.device.type, enabled=False):
        present = members * (own.sum(0) > 0)
        means = own.T @ features / own.sum(0).clamp(min=1)[:, None]
        centres = present @ means / present.sum(1).clamp(min=1)[:, None]
        counted = present.sum(0)
        within = counted @ (means - present.T @ centres).square().sum(1)
        total = counted @ (means - counted @ means / counted.sum().clamp(min=1)).square().sum(1)
    return within / total.where(total > 0, 1.0)


@typed
def orthogonality(model: nn.Module, inputs: TermInputs, *, iterations: int = 2) -> Scalar:
    """SRIP: ``sum_l sigma(W^T W - I)``, the largest absolute eigenvalue, by power iteration from a random vector.

    Where W has fewer rows than columns it is W W^T, as W^T W then has eigenvalues 0 whatever W is. The vector of the
    iteration is held constant; once it has converged the gradient is that of the eigenvalue. Before, the value is a
    lower bound.

    Args:
        iterations: of the power iteration.

    Source: Bansal, Chen & Wang, *Can we gain more from orthogonality regularizations in training deep networks?*
    (2018), section 3.
    """
    return _sum(_eigenvalue(tall(W), inputs, iterations) for W in matrices(model))


def soft_orthogonality(model: nn.Module, inputs: TermInputs) -> Scalar:
    """``sum_l |W^T W - I|_F^2``, or of W W^T where W has fewer rows than columns.

    Source: Bansal, Chen & Wang (2018), section 3.
    """
    return _sum(_distance(tall(W)) for W in matrices(model))


def parseval(model: nn.Module, inputs: TermInputs) -> Scalar:
    """``sum_l |k W^T W - I|_F^2 / 4k``, or of W W^T: a step down it is the retraction to Parseval tight frames.

    k is the number of positions of a convolution's kernel (1 for a linear layer): a convolution meets each pixel k
    times, so its operator has norm one at most where k W^T W = I. The gradient by W is W (k W^T W - I), hence a step
    of size beta is the paper's W <- (1 + beta) W - beta W W^T W, taken on sqrt(k) W. The paper takes it after each step
    on the loss, as long as it likes; here beta is the learning rate times the weight of the term.

    Source: Cisse et al., *Parseval networks* (2017), section 4.
    """
    positions = (p[0, 0].numel() for p in model.parameters() if p.dim() > 1)
    return _sum(_distance(k**0.5 * tall(W)) / (4 * k) for W, k in zip(matrices(model), positions, strict=True))


@typed
def spectral_norm(model: nn.Module, inputs: TermInputs, *, iterations: int = 2) -> Scalar:
    """``sum_l sigma(W)^2 / 2``, sigma the largest singular value, by power iteration as in `orthogonality`.

    Source: Yoshida & Miyato, *Spectral norm regularization for improving the generalizability of deep learning* (2017).
    """
    return _sum(_singular_value(tall(W), inputs, iterations).square() / 2 for W in matrices(model))


def matrices(model: nn.Module) -> Iterator[Float[Tensor, "outputs inputs"]]:
    """The weights of more than one dimension, each as a matrix, in at least float32."""
    return (wide(p).flatten(1) for p in model.parameters() if p.dim() > 1)


def tall(W: Float[Tensor, "rows columns"]) -> Float[Tensor, "long short"]:
    """W or its transpose, so that it has at least as many rows as columns."""
    return W if len(W) >= W.shape[1] else W.T


def _distance(W: Tensor) -> Tensor:
    """|W^T W - I|_F^2."""
    with torch.autocast(W.device.type, enabled=False):
        return (W.T @ W - torch.eye(W.shape[1], dtype=W.dtype, device=W.device)).square().sum()


def _eigenvalue(W: Tensor, inputs: TermInputs, iterations: int) -> Tensor:
    """The largest absolute eigenvalue of W^T W - I."""
    with torch.autocast(W.device.type, enabled=False):
        v = _dominant(lambda v: W.T @ (W @ v) - v, W, inputs.generator, iterations)
        return torch.linalg.vector_norm(W.T @ (W @ v) - v)


def _singular_value(W: Tensor, inputs: TermInputs, iterations: int) -> Tensor:
    """The largest singular value of W."""
    with torch.autocast(W.device.type, enabled=False):
        v = _dominant(lambda v: W.T @ (W @ v), W, inputs.generator, iterations)
        return torch.linalg.vector_norm(W @ v)


@torch.no_grad()
def _dominant(times: Callable[[Tensor], Tensor], W: Tensor, generator: Generator | None, iterations: int) -> Tensor:
    """A vector near the dominant eigenvector of a matrix that multiplies by `times`, from a generator on any device."""
    device = W.device if generator is None else generator.device
    v = F.normalize(torch.randn(W.shape[1], generator=generator, device=device, dtype=W.dtype).to(W.device), dim=0)
    for _ in range(iterations):
        v = F.normalize(times(v), dim=0)
    return v


def _sum(values: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def aside(model: nn.Module, x: Pixels) -> Logits:
    """The logits of x, in the model's mode, with the running statistics left alone."""
    with preserved(model):
        return logits(model, x)


def membership(groups: Groups, z: Logits) -> Float[Tensor, "groups classes"]:
    """1 where the class stands in the group, in the type and on the device of the logits z.

    Raises InputError: a class that z does not have or that stands in two groups, or an empty group.
    """
    check_rows("logits", z)
    groups, classes = listed(groups), z.shape[1]
    members = [k for group in groups for k in group]
    if (
        not members
        or len(set(members)) < len(members)
        or not all(0 <= k < classes for k in members)
        or not all(map(len, groups))
    ):
        raise InputError(f"groups must part some of the classes 0..{classes - 1}, each in one group, not {groups}")
    held = torch.zeros(len(groups), classes, dtype=z.dtype)
    held[[i for i, group in enumerate(groups) for _ in group], members] = 1
    return held.to(z.device)


def averaging_matrix(members: Float[Tensor, "groups classes"]) -> Float[Tensor, "classes classes"]:
    """The symmetric matrix that puts the mean of a group in the place of each member and leaves other classes alone."""
    with torch.autocast(members.device.type, enabled=False):
        return members.T @ (members / members.sum(1, keepdim=True)) + torch.diag(1 - members.sum(0))
