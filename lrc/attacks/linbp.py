"""Linear backpropagation: a transfer attack that takes ReLU for linear on the way back."""

import operator

from jaxtyping import Float, Int
from torch import Generator, Tensor, fx, nn

from lrc.attacks.graphs import Residual, Wiring, fork, join, linear_relu
from lrc.attacks.losses import Loss
from lrc.attacks.mifgsm import mifgsm
from lrc.utils.errors import InputError


def linbp(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    y: Int[Tensor, "n"],
    *,
    eps: float,
    start: int | str = 0,
    steps: int = 10,
    step: float | None = None,
    decay: float = 0.0,
    diversity: float = 0.0,
    norm: str = "linf",
    loss: str | Loss = "ce",
    target: Int[Tensor, "n"] | None = None,
    generator: Generator | None = None,
) -> Float[Tensor, "n *shape"]:
    """Images within eps of x for fooling *other* networks: iterative FGSM on `linear_backward(model, start=start)`.

    Args:
        model: the network at hand; one that torch.fx can trace.
        start: see `linear_backward`.
        decay: 1 for the momentum of MI-FGSM.
        diversity: probability of a diverse input (DI) at each step.
        x, y, eps, steps, step, norm, loss, target, generator: as in `lrc.attacks.mifgsm`, as is the image returned.

    Raises:
        InputError: as in `lrc.attacks.mifgsm` and `linear_backward`.

    Source: Guo et al., *Backpropagating linearly improves transferability of adversarial examples* (2020).
    """
    return mifgsm(
        linear_backward(model, start=start),
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


def linear_backward(model: nn.Module, *, start: int | str = 0) -> fx.GraphModule:
    """The same network, with the derivative of ReLU taken to be 1 from `start` on; for gradients by the image.

    In a residual network (one with a branch that ends in an addition) this holds for the ReLUs inside residual
    branches only, and the gradient that comes out of such a branch is scaled, image by image, to the norm that it
    would have with the true derivative. Of nested branches the innermost are treated so.

    Args:
        model: a network that torch.fx can trace. It is left as it was; layers and parameters are shared.
        start: number of ReLUs, in the order of the forward pass, that keep their derivative; or the name of a module
            from which on, inside it and after it, they lose it.

    Raises:
        InputError: torch.fx cannot trace the network, or there is no ReLU to be made linear.

    Source: Guo et al. (2020), section 3; the scaling: their section 3.2.
    """
    wiring = Wiring(model)
    relus = wiring.relus(start)
    residuals = wiring.residuals()
    if not residuals:
        for node in relus:
            _replace(wiring.graph, node)
        return wiring.assemble()
    additions = {residual.addition for residual in residuals}
    branches = [branch for branch in residuals if additions.isdisjoint(branch.nodes)]
    chosen = [[node for node in branch.nodes if node in relus] for branch in branches]
    if not any(chosen):
        raise InputError(
            f"no residual branch of the network has a ReLU from {start!r} on, so nothing to be made linear"
        )
    for branch, nodes in zip(branches, chosen, strict=True):
        if nodes:
            _double(wiring.graph, branch, nodes)
    return wiring.assemble()


def _double(graph: fx.Graph, branch: Residual, chosen: list[fx.Node]) -> None:
    """Gives the branch a linear twin beside it, from a fork to a join that hands the twin's gradient on, rescaled."""
    with graph.inserting_before(branch.nodes[0]):
        pair = graph.call_function(fork, (branch.fork,))
        true, linear = (graph.call_function(operator.getitem, (pair, i)) for i in (0, 1))
    for node in branch.nodes:
        node.replace_input_with(branch.fork, true)
    twins: dict[fx.Node, fx.Node] = {true: linear}
    with graph.inserting_before(branch.addition):
        for node in branch.nodes:
            twins[node] = graph.node_copy(node, lambda n: twins.get(n, n))
            if node in chosen:
                twins[node] = _replace(graph, twins[node])
        joined = graph.call_function(join, (branch.end, twins[branch.end]))
    branch.addition.replace_input_with(branch.end, joined)


def _replace(graph: fx.Graph, node: fx.Node) -> fx.Node:
    with graph.inserting_before(node):
        new = graph.call_function(linear_relu, (node.all_input_nodes[0],))
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    return new
