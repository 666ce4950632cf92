"""Skip gradient method: a transfer attack that trusts shortcuts more than residual branches."""

from jaxtyping import Float, Int
from torch import Generator, Tensor, fx, nn

from lrc.attacks.graphs import Wiring, scale_gradient
from lrc.attacks.losses import Loss
from lrc.attacks.mifgsm import mifgsm
from lrc.utils.errors import InputError


def sgm(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    y: Int[Tensor, "n"],
    *,
    eps: float,
    gamma: float = 0.2,
    steps: int = 10,
    step: float | None = None,
    decay: float = 0.0,
    diversity: float = 0.0,
    norm: str = "linf",
    loss: str | Loss = "ce",
    target: Int[Tensor, "n"] | None = None,
    generator: Generator | None = None,
) -> Float[Tensor, "n *shape"]:
    """Images within eps of x for fooling *other* networks: iterative FGSM on `skip_gradient(model, gamma=gamma)`.

    Args:
        model: the network at hand; a residual or dense one that torch.fx can trace.
        gamma: see `skip_gradient`.
        decay: 1 for the momentum of MI-FGSM.
        diversity: probability of a diverse input (DI) at each step.
        x, y, eps, steps, step, norm, loss, target, generator: as in `lrc.attacks.mifgsm`, as is the image returned.

    Raises:
        InputError: as in `lrc.attacks.mifgsm` and `skip_gradient`.

    Source: Wu et al., *Skip connections matter: on the transferability of adversarial examples generated with ResNets*
    (2020).
    """
    return mifgsm(
        skip_gradient(model, gamma=gamma),
        x,
        y,
        eps=eps,
        steps=steps,
        step=step,
        decay=decay,
        diversity=diversity,
        norm=norm,
        loss=loss,
        target=target,
        generator=generator,
    )


def skip_gradient(model: nn.Module, *, gamma: float) -> fx.GraphModule:
    """The same network, with the gradient through each residual branch multiplied by gamma; for gradients by the image.

    A residual branch ends in an addition to a shortcut (ResNet), or in a concatenation with what it started from
    (DenseNet).

    Args:
        model: a network that torch.fx can trace. It is left as it was; layers and parameters are shared.
        gamma: in (0, 1]; the paper takes 0.2 for ResNets, 0.5 for DenseNets. 1 changes nothing.

    Raises:
        InputError: torch.fx cannot trace the network, it has no residual branch, or gamma is outside (0, 1].

    Source: Wu et al. (2020), equation 5.
    """
    if not 0 < gamma <= 1:
        raise InputError(f"gamma must be in (0, 1], not {gamma}")
    wiring = Wiring(model)
    residuals, grown = wiring.residuals(), wiring.grown()
    if not residuals and not grown:
        raise InputError(f"{type(model).__name__} has no residual branch, so no gradient to turn to a shortcut")
    for residual in residuals:
        residual.addition.replace_input_with(residual.end, _scaled(wiring.graph, residual.end, gamma))
    for node in grown:
        users = list(node.users)
        new = _scaled(wiring.graph, node, gamma)
        for user in users:
            user.replace_input_with(node, new)
    return wiring.assemble()


def _scaled(graph: fx.Graph, node: fx.Node, gamma: float) -> fx.Node:
    with graph.inserting_after(node):
        return graph.call_function(scale_gradient, (node, gamma))
