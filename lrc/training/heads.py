"""A trained network under another head: its features asked for other classes."""

from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import skip_init

from lrc.data import Images
from lrc.evaluation import logits
from lrc.training import train
from lrc.training.objectives import named
from lrc.training.objectives.objective import head_inputs
from lrc.utils.errors import InputError

__all__ = ["logistic_regression", "with_new_head"]


def with_new_head(
    model: nn.Module,
    images: Images,
    *,
    layers: str = "head",
    l2: float = 1e-3,
    objective: Callable[..., Tensor] | None = None,
    epochs: int = 2,
    batch_size: int = 128,
    lr: float = 0.02,
    augment: bool = True,
    precision: str = "float32",
    seed: int = 0,
) -> nn.Module:
    """A copy of the network whose last linear layer is a new one, fitted to the classes of these images.

    The new layer is `logistic_regression` on what the old one saw of the clean images, in eval mode. That draws no
    random numbers and takes seconds. On a robust network it is a fit to clean images all the same: what robustness it
    has comes from the features. With all layers the whole network trains on from there: a random head would first
    spoil the features that it is put on (linear probing, then fine-tuning).

    Args:
        model: images in [0, 1] to logits; unchanged.
        images: to fit to, labelled by the classes of the new head, such as `lrc.data.as_superclasses` gives them.
        layers: "head", or "all" to train all weights on after the fit.
        l2: of `logistic_regression`.
        objective: of the training of all layers, `lrc.objectives.named("standard")` if absent.
        epochs, batch_size, lr, augment, precision, seed: of that training, see `lrc.train`.

    Returns:
        The new network in eval mode, on the device of the model.

    Raises:
        InputError: a network without a linear layer or with features that are no vectors, no images, another choice of
            layers, or what `logistic_regression` and `lrc.train` raise.

    Source: Kumar et al., *Fine-tuning can distort pretrained features and underperform out-of-distribution* (2022).
    """
    if layers not in ("head", "all"):
        raise InputError(f'layers to fit must be "head" or "all", not {layers!r}')
    network = deepcopy(model).eval()
    _replace_head(network, images, l2=l2)
    if layers == "all":
        train(
            network.requires_grad_(),
            images,
            objective or named("standard"),
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            augment=augment,
            precision=precision,
            seed=seed,
        )
    return network


def _replace_head(network: nn.Module, images: Images, *, l2: float) -> None:
    """Puts the fitted layer in the place of the network's last linear one."""
    with head_inputs(network) as seen:
        logits(network, images)
    features = torch.cat(seen)
    path, old = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.Linear)][-1]  # as head_inputs
    if features.shape != (len(images), old.in_features):
        shape = tuple(features.shape[1:])
        raise InputError(f"the last linear layer sees {shape} of an image, expected a vector ({old.in_features},)")
    weight, bias = logistic_regression(features, images.y, classes=len(images.classes), l2=l2)
    new = skip_init(nn.Linear, *reversed(weight.shape), device=old.weight.device, dtype=old.weight.dtype)
    new.load_state_dict({"weight": weight, "bias": bias})
    network.set_submodule(path, new.eval())


def logistic_regression(
    features: Float[Tensor, "n d"], y: Int[Tensor, " n"], *, classes: int, l2: float = 1e-3, steps: int = 1000
) -> tuple[Float[Tensor, "classes d"], Float[Tensor, " classes"]]:
    """Weights and biases of the linear layer that minimize ``mean CE(V u + c, y) + l2 / 2 |V|^2``.

    Here u are the features less their mean, over the root of their mean variance: one penalty suits networks of any
    scale, and a feature that few images have keeps a small weight. The result is for the features as they are. Biases
    are free.

    Args:
        features: in any floating-point type; the fit is in float64, on their device.
        y: labels, in range(classes).
        l2: strength of the penalty, above 0: without one the weights of classes that can be parted grow forever.
        steps: of L-BFGS, at most.

    Returns:
        Weights and biases, float64.

    Raises:
        InputError: a penalty that is not above 0, features that are not finite, or labels out of range.
    """
    if not l2 > 0:
        raise InputError(f"l2 must be above 0, not {l2}: the penalty is what gives the fit an end")
    if not len(features) or not features.isfinite().all():
        raise InputError(f"{len(features)} features to fit a head to: expected at least one, and finite values")
    y = y.to(features.device, torch.int64)
    if y.amin() < 0 or y.amax() >= classes:
        raise InputError(f"labels go from {y.amin()} to {y.amax()}, expected 0..{classes - 1}")
    u = features.detach().double()
    mean = u.mean(0)
    spread = (u - mean).square().mean().sqrt().clamp(min=1e-12)  # 0 where no feature varies
    V, c = _fitted((u - mean) / spread, y, classes, l2=l2, steps=steps)
    return V / spread, c - V @ mean / spread


def _fitted(u: Tensor, y: Tensor, classes: int, *, l2: float, steps: int) -> tuple[Tensor, Tensor]:
    V = u.new_zeros(classes, u.shape[1]).requires_grad_()
    c = u.new_zeros(classes).requires_grad_()
    lbfgs = torch.optim.LBFGS(
        [V, c],
        max_iter=steps,
        tolerance_grad=1e-7,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        lbfgs.zero_grad()
        value = F.cross_entropy(u @ V.T + c, y) + l2 / 2 * V.square().sum()
        value.backward()
        return value

    with torch.inference_mode(False), torch.enable_grad():
        lbfgs.step(loss)
    return V.detach(), c.detach()
