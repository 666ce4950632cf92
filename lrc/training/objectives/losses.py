"""Losses of the defences: formulas on a batch and its adversarial examples, with logits in at least float32."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lrc.attacks.losses import pick
from lrc.models.layers import JPEG, labelled
from lrc.training.objectives.objective import head_inputs, logits, refuse_compiled, wide
from lrc.training.objectives.regularizers import Groups, averaging_matrix, membership
from lrc.utils.checks import check_labels, check_number, check_rows, explained
from lrc.utils.errors import InputError
from lrc.utils.tensors import Labels, Logits, PerImage, Pixels, Scalar
from lrc.utils.typed import typed


@typed
def cross_entropy(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    x_adv: Pixels,
    *,
    smoothing: float = 0.0,
    groups: Groups | None = None,
    temperature: float = 1.0,
) -> Scalar:
    """``mean -log p_y(x_adv)``, with p = softmax(z / temperature).

    Args:
        smoothing: share of the label's weight, in [0, 1], that is spread over all the classes alike, itself included.
        groups: superclasses, lists of the numbers of their classes: the share is then spread over the classes of the
            label's own group alone, and a class in none of them keeps its label whole.
        temperature: divides the logits; what the teacher of a defensive distillation is trained with.

    Raises:
        InputError: another share, or groups as `clustering_term` refuses them.

    Source: label smoothing, Szegedy et al., *Rethinking the inception architecture* (2016), section 7.
    """
    check_number("smoothing, a share of the label,", smoothing, "[0, 1]")
    check_number("temperature", temperature, "(0, inf)")
    z = logits(model, x_adv) / temperature
    if y.device.type == "cpu":  # a GPU would have to be waited for, and stops by itself
        check_labels(y, len(z), classes=z.shape[1])
    if groups is None:
        return F.cross_entropy(z, y, label_smoothing=smoothing)
    whole = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return F.cross_entropy(z, whole.lerp(averaging_matrix(membership(groups, z)), smoothing)[y])


def behind_jpeg(model: nn.Module, x: Pixels, y: Labels, x_adv: Pixels) -> Scalar:
    """Cross-entropy of a network that compresses its input itself. Raises InputError: it does not."""
    if not any(isinstance(module, JPEG) for module in model.modules()):
        raise InputError("the network has no layer of JPEG: build it as lrc.models.build(name, jpeg=50)")
    return cross_entropy(model, x, y, x_adv)


@typed
def trades(model: nn.Module, x: Pixels, y: Labels, x_adv: Pixels, *, beta: float = 6.0) -> Scalar:
    """``CE(z(x), y) + beta mean KL(p(x) || p(x_adv))``; the gradient goes through both branches.

    The mean is over images alone (not over classes too), the two batches are run one after the other.

    Source: Zhang et al., *Theoretically principled trade-off between robustness and accuracy* (2019).
    """
    z, z_adv = logits(model, x), logits(model, x_adv)
    return F.cross_entropy(z, y) + beta * divergence(z, z_adv).mean()


@typed
def mart(model: nn.Module, x: Pixels, y: Labels, x_adv: Pixels, *, beta: float = 5.0) -> Scalar:
    """``mean [BCE(x_adv) + beta KL(p(x) || p(x_adv)) (1 - p_y(x))]``: it cares more for what is misclassified.

    ``BCE = -log p_y(x_adv) - log(1.0001 - max_{k != y} p_k(x_adv))``; the authors' 1.0001 keeps the logarithm finite.

    Source: Wang et al., *Improving adversarial robustness requires revisiting misclassified examples* (2020).
    """
    z, z_adv = logits(model, x), logits(model, x_adv)
    rival = z_adv.softmax(1).scatter(1, y[:, None], 0.0).amax(1)
    boosted = F.cross_entropy(z_adv, y, reduction="none") - torch.log(1.0001 - rival)
    unsure = 1 - pick(z.softmax(1), y)
    return (boosted + beta * divergence(z, z_adv) * unsure).mean()


@typed
def distillation(
    model: nn.Module, x: Pixels, y: Labels, x_adv: Pixels, *, teacher: nn.Module, temperature: float = 20.0
) -> Scalar:
    """``mean -sum_k t_k log softmax_k(z / T)``, with t = softmax(z_teacher / T): cross-entropy to soft labels.

    The teacher runs as it is, without gradient: hand it over in eval mode, trained at the same temperature
    (`named("standard", temperature=20)`). The distilled network is used at temperature 1: its logits are then T times
    too large, which is what hides its gradients from an attack (Carlini & Wagner, 2016) without making it robust.

    Source: Papernot et al., *Distillation as a defense to adversarial perturbations* (2016).
    """
    check_number("temperature", temperature, "(0, inf)")
    with torch.no_grad():
        labels = (logits(teacher, x) / temperature).softmax(1)
    return F.cross_entropy(logits(model, x_adv) / temperature, labels)


@typed
def local_linearity(
    model: nn.Module, x: Pixels, y: Labels, x_adv: Pixels, *, weight: float = 4.0, slope: float = 3.0
) -> Scalar:
    """``mean [l(x) + weight |l(x_adv) - l(x) - d l'(x)| + slope |d l'(x)|]``, l cross-entropy and d = x_adv - x.

    The examples are those where the loss is least like its tangent: `lrc.objectives.local_linearity_attack` makes them.
    In training mode batch norm mixes the images: l'(x) is then the gradient of the batch's summed loss, what an image
    does to the others included.

    Source: Qin et al., *Adversarial robustness through local linearization* (2019).
    """
    x = x.detach().requires_grad_()
    values = F.cross_entropy(logits(model, x), y, reduction="none")
    gradient = _gradient(model, values, x)
    rise = ((x_adv - x.detach()) * gradient).flatten(1).sum(1)
    values_adv = F.cross_entropy(logits(model, x_adv), y, reduction="none")
    return (values + weight * (values_adv - values - rise).abs() + slope * rise.abs()).mean()


@typed
def local_flatness(model: nn.Module, x: Pixels, y: Labels, x_adv: Pixels, *, weight: float = 8 / 255) -> Scalar:
    """``mean [l(x) + weight |l'(x_adv)|_1]``, l cross-entropy, at examples of `lrc.objectives.gradient_norm_attack`.

    The norm is the dual of Linf, so that with the weight eps the term is what an attack gains to first order; that
    weight is ours. In training mode batch norm mixes the images: l'(x_adv) is then the gradient of the batch's summed
    loss, what an image does to the others included.

    Source: Xu et al., *Adversarial defense via local flatness regularization* (2020).
    """
    at = x_adv.detach().requires_grad_()
    values_adv = F.cross_entropy(logits(model, at), y, reduction="none")
    gradient = _gradient(model, values_adv, at)
    return F.cross_entropy(logits(model, x), y) + weight * gradient.abs().sum() / len(x)


@typed
def suppressed(model: nn.Module, x: Pixels, y: Labels, x_adv: Pixels, *, beta: float = 2.0) -> Scalar:
    """``CE(z(x_adv), y) + beta mean_l CE(a_l(x_adv), y)``, a_l the logits of the l-th `lrc.models.layers.CAS` layer.

    Those layers weigh the channels by the true class here, by the class they take the image for elsewhere.

    Raises:
        InputError: the network has no such layer, or is compiled.

    Source: Bai et al., *Improving adversarial robustness via channel-wise activation suppressing* (2021).
    """
    refuse_compiled(model)
    with labelled(model, y) as captured:
        value = cross_entropy(model, x, y, x_adv)
    if not captured:
        raise InputError("the network has no layer of CAS: build it as lrc.models.build(name, suppress=True)")
    return value + beta * torch.stack([F.cross_entropy(wide(z), y) for z in captured]).mean()


@typed
def clustr(model: nn.Module, x: Pixels, y: Labels, x_adv: Pixels, *, gap: float = 1.0, beta: float = 12.5) -> Scalar:
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
    with head_inputs(model) as captured:
        z = logits(model, x)
        features = wide(captured[-1])
    value = F.cross_entropy(z, y) + magnet(features, y, gap=gap)
    return value + beta * divergence(z, logits(model, x_adv)).mean()


@typed
def magnet(features: Float[Tensor, "n d"], y: Labels, *, gap: float = 1.0) -> Scalar:
    """``mean max(0, gap + d_y / 2s + log sum_{k != y} exp(-d_k / 2s))``, d_k the squared distance from the centre of k.

    The centres are the means of the batch; s is the sum of the d_y divided by n - 1, or 1e-6 if that is more, as it is
    where each image has a class of its own. A batch of one class alone gives 0.

    Source: Rippel et al., *Metric learning with adaptive density discrimination* (2016), equation 5, for one cluster
    a class.
    """
    check_rows("features", features)
    check_labels(y, len(features))
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


def _gradient(model: nn.Module, values: Tensor, x: Tensor) -> Tensor:
    """Gradient by the images of the sum of what the network made of them, to be differentiated again."""
    with explained(model, x):
        return torch.autograd.grad(values.sum(), x, create_graph=True)[0]


def divergence(z: Logits, z_other: Logits) -> PerImage:
    """KL(softmax(z) || softmax(z_other)) of each image."""
    log_p, log_q = z.log_softmax(1), z_other.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)
