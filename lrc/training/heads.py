"""A trained network under another head: its features asked for other classes."""

from collections.abc import Callable
from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from lrc.data import Images, batches
from lrc.evaluation.accuracy import device_of
from lrc.training import train
from lrc.training.objectives import named
from lrc.training.objectives.objective import head_inputs
from lrc.utils.errors import InputError
from lrc.utils.networks import untouched
from lrc.utils.tensors import Labels

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
    if not len(images):
        raise InputError("there are no images to fit a head to: give at least one")
    device = device_of(network, images)
    with head_inputs(network) as seen, untouched(network), torch.no_grad():
        for x, _ in batches(images, 500):
            network(x.to(device))
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
    features: Float[Tensor, "n d"], y: Labels, *, classes: int, l2: float = 1e-3, steps: int = 1000
) -> tuple[Float[Tensor, "classes d"], Float[Tensor, " classes"]]:
    """Weights and biases of the linear layer that minimize ``mean CE(V u + c, y) + l2 / 2 |V|^2``.

    Here u are the features less their mean, over the root of their mean variance: one penalty suits networks of any
    scale, and a feature that few images have keeps a small weight. The result is for the features as they are. Biases
    are free; that of a class without an image, best at minus infinity, makes it improbable on all of these.

    Args:
        features: in any floating-point type; the fit is in float64, on the CPU, by scikit-learn.
        y: labels, in range(classes).
        l2: strength of the penalty, above 0: without one the weights of classes that can be parted grow forever.
        steps: of L-BFGS, at most.

    Returns:
        Weights and biases, float64, on the device of the features.

    Raises:
        InputError: a penalty that is not above 0, features that are not finite, or labels out of range.
    """
    if not 0 < l2 < torch.inf:
        raise InputError(f"l2 must be above 0 and finite, not {l2}: the penalty is what gives the fit an end")
    if not len(features) or not features.isfinite().all():
        raise InputError(f"{len(features)} features to fit a head to: expected at least one, and finite values")
    y = y.to("cpu", torch.int64)
    if y.amin() < 0 or y.amax() >= classes:
        raise InputError(f"labels go from {y.amin()} to {y.amax()}, expected 0..{classes - 1}")
    u = features.detach().to("cpu", torch.float64)
    mean = u.mean(0)
    spread = (u - mean).square().mean().sqrt().clamp(min=1e-12)  # 0 where no feature varies
    V, c = _fitted((u - mean) / spread, y, classes, l2=l2, steps=steps)
    return (V / spread).to(features.device), (c - V @ mean / spread).to(features.device)


def _fitted(u: Tensor, y: Tensor, classes: int, *, l2: float, steps: int) -> tuple[Tensor, Tensor]:
    from sklearn.linear_model import LogisticRegression  # here: slow to import

    V, c, found = u.new_zeros(classes, u.shape[1]), u.new_zeros(classes), y.unique()
    if len(found) > 1:
        two = len(found) == 2  # then scikit-learn fits one row, the difference of the two: |V|^2 is half its square
        fit = LogisticRegression(C=(1 + two) / (l2 * len(u)), tol=1e-8, max_iter=steps).fit(u.numpy(), y.numpy())
        rows, biases = torch.from_numpy(fit.coef_), torch.from_numpy(fit.intercept_)
        V[found] = torch.cat([-rows, rows]) / 2 if two else rows
        c[found] = torch.cat([-biases, biases]) / 2 if two else biases
    absent = torch.ones(classes, dtype=torch.bool).index_fill(0, found, False)
    c[absent] = (u @ V[found].T + c[found]).amin() - 28  # a probability below 1e-12
    return V, c
