"""Terms that are added to a loss: on the logits, on the linear map, on how the logits vary with the image."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from lrc.attacks.rng import image_keys, normal
from lrc.linearization import linearize
from lrc.training.objectives.objective import Pass, wide
from lrc.utils.errors import InputError

__all__ = ["clustering", "clustering_term", "jacobian", "logit_penalty", "row_clustering"]

Groups = Sequence[Sequence[int]]


def clustering(model: nn.Module, seen: Pass, *, groups: Groups, reduction: str = "sum") -> Float[Tensor, ""]:
    """`clustering_term` of the logits that the loss had of the examples; the network is not run again."""
    return clustering_term(seen.z_adv, groups, reduction=reduction)


def clustering_term(z: Float[Tensor, "n classes"], groups: Groups, *, reduction: str = "sum") -> Float[Tensor, ""]:
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
        return ((z - z @ sharing(members)).square().mean(0) * (each * members).sum(0)).sum()


def logit_penalty(model: nn.Module, seen: Pass) -> Float[Tensor, ""]:
    """``0.1 sum_j z_j^2``, batch mean, of the logits that the loss had of the examples: they are made small.

    It is `clustering` without the mean of the superclass: a control that shrinks the logits and knows no superclass.
    With the logits' own mean subtracted it is the `clustering_term` of one group of all classes.

    Source: the penalty of logit squeezing, Kannan, Kurakin & Goodfellow, *Adversarial logit pairing* (2018).
    """
    return 0.1 * seen.z_adv.square().sum(1).mean()


def row_clustering(model: nn.Module, seen: Pass, *, groups: Groups) -> Float[Tensor, ""]:
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
    x = seen.x.new_zeros(1, *seen.x.shape[1:]).requires_grad_()
    with torch.autocast(x.device.type, enabled=False):
        z = linearize(model)(x)
        units = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)[:, None]
        (W,) = torch.autograd.grad(z, x, units, is_grads_batched=True, create_graph=True)
        rows = nn.functional.normalize(W.flatten(1) - W.flatten(1).mean(0), dim=1)
        return clustering_term(rows.T, groups, reduction="mean") * rows.shape[1]


def jacobian(model: nn.Module, seen: Pass, *, projections: int = 1) -> Float[Tensor, ""]:
    """``mean |J(x)|_F^2 / 2``, J = dz/dx, estimated without bias from random directions v in the space of logits.

    ``|J|_F^2 = classes E |v J|^2`` for v uniform on the unit sphere. It costs a forward pass, which leaves the running
    statistics alone, and twice a backward pass a direction. An image's directions depend on the generator and on its
    pixels alone, as in attacks.

    The estimate is without bias where each image's logits depend on that image alone. In training mode batch norm mixes
    the images: then an image's gradient also holds what it does to the others' logits.

    Args:
        seen: its clean images are used.
        projections: number of directions.

    Source: Hoffman, Roberts & Yaida, *Robust learning with Jacobian regularization* (2019); the norm as a regularizer:
    Jakubovitz & Giryes, *Improving DNN robustness to adversarial attacks using Jacobian regularization* (2018).
    """
    x = seen.x.detach().requires_grad_()
    z = aside(model, x)
    total, keys = z.new_zeros(()), image_keys(x.detach(), seen.generator)
    for i in range(projections):
        v = nn.functional.normalize(normal(keys, tuple(z.shape[1:]), draw=i).to(z.dtype), dim=1)
        (g,) = torch.autograd.grad(z, x, v, create_graph=True)
        total = total + g.square().sum()
    return z.shape[1] * total / (2 * len(x) * projections)


def aside(model: nn.Module, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
    """The logits of x, in the model's mode, with the running statistics left alone."""
    return wide(functional_call(model, {name: b.clone() for name, b in model.named_buffers()}, (x,)))


def membership(groups: Groups, z: Float[Tensor, "n classes"]) -> Float[Tensor, "groups classes"]:
    """1 where the class stands in the group, in the type and on the device of the logits z.

    Raises:
        InputError: a class that z does not have or that stands in two groups, or an empty group.
    """
    classes = z.shape[1]
    members = [k for group in groups for k in group]
    if len(set(members)) < len(members) or not all(0 <= k < classes for k in members) or not all(map(len, groups)):
        raise InputError(f"groups must part some of the classes 0..{classes - 1}, each in one group, not {groups}")
    held = torch.zeros(len(groups), classes, dtype=z.dtype)
    held[[i for i, group in enumerate(groups) for _ in group], members] = 1
    return held.to(z.device)


def sharing(members: Float[Tensor, "groups classes"]) -> Float[Tensor, "classes classes"]:
    """The symmetric matrix that puts the mean of a group in the place of each member and leaves other classes alone."""
    with torch.autocast(members.device.type, enabled=False):
        return members.T @ (members / members.sum(1, keepdim=True)) + torch.diag(1 - members.sum(0))
