"""Training that draws features together: those of a class, or the means of the classes of a superclass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lrc.attacks.losses import pick
from lrc.training.objectives.losses import divergence
from lrc.training.objectives.objective import Pass, logits, refuse_compiled, wide
from lrc.training.objectives.terms import Groups, aside, membership
from lrc.utils.errors import InputError

__all__ = ["clustr", "feature_clustering", "magnet"]


def clustr(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    y: Int[Tensor, " n"],
    x_adv: Float[Tensor, "n *shape"],
    *,
    gap: float = 1.0,
    beta: float = 12.5,
) -> Float[Tensor, ""]:
    """``CE(z(x), y) + magnet(f(x), y) + beta mean KL(p(x) || p(x_adv))``, f being what the last linear layer sees.

    The authors keep several clusters of each class over the training set, predict by the nearest one, and begin with
    a trained network. Here each class is one cluster, its centre the mean in the batch, the network keeps its linear
    layer, and the cross-entropy trains that.

    The centres are those of the images at hand: in a training spread over processes, of each one's share.

    Args:
        gap: of `magnet`.
        beta: weight of the consistency with examples made in one quick step; 0 for clustering alone.

    Source: Alfarra et al., *ClusTR: clustering training for robustness* (2020).
    """
    with head_inputs(model) as seen:
        z = logits(model, x)
        features = wide(seen[-1])
    value = F.cross_entropy(z, y) + magnet(features, y, gap=gap)
    return value + beta * divergence(z, logits(model, x_adv)).mean()


def magnet(features: Float[Tensor, "n d"], y: Int[Tensor, " n"], *, gap: float = 1.0) -> Float[Tensor, ""]:
    """``mean max(0, gap + d_y / 2s + log sum_{k != y} exp(-d_k / 2s))``, d_k the squared distance from the centre of k.

    The centres are the means of the batch; s is the sum of the d_y divided by n - 1, or 1e-6 if that is more, as it is
    where each image has a class of its own. A batch of one class alone gives 0.

    Source: Rippel et al., *Metric learning with adaptive density discrimination* (2016), equation 5, for one cluster
    a class.
    """
    found, own = y.unique(return_inverse=True)
    if len(found) < 2:
        return 0 * features.sum()
    members = F.one_hot(own, len(found)).to(features.dtype)
    with torch.autocast(features.device.type, enabled=False):
        centres = members.T @ features / members.sum(0)[:, None]
    d = (features[:, None] - centres).square().sum(2)
    mine = pick(d, own)
    spread = 2 * (mine.sum() / (len(y) - 1)).clamp(min=1e-6)
    others = (-d / spread).masked_fill(members.bool(), -torch.inf).logsumexp(1)
    return (gap + mine / spread + others).relu().mean()


def feature_clustering(model: nn.Module, seen: Pass, *, groups: Groups) -> Float[Tensor, ""]:
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
    members = membership(groups, seen.z_adv)
    with head_inputs(model) as inputs:
        aside(model, seen.x_adv)
    return _scatter_within(wide(inputs[-1]), seen.y, members)


def _scatter_within(
    features: Float[Tensor, "n d"], y: Int[Tensor, " n"], members: Float[Tensor, "groups classes"]
) -> Float[Tensor, ""]:
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


@contextmanager
def head_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """What the last linear layer sees while the context lasts.

    Raises:
        InputError: there is no linear layer, or the network is compiled.
    """
    refuse_compiled(model)
    heads = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not heads:
        raise InputError("the network has no linear layer, so no features before it")
    seen: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    handle = heads[-1].register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
