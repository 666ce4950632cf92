"""Transfer attacks: iterative FGSM on a network with another backward pass, whose examples fool other networks."""

import operator
from typing import Any

from torch import fx, nn

from lrc.attacks.graphs import Residual, Wiring, fork, join, linear_relu, scale_gradient
from lrc.attacks.pgd import mifgsm
from lrc.utils.checks import check_network, check_number, check_whole
from lrc.utils.errors import InputError
from lrc.utils.tensors import Labels, Pixels


def linbp(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    eps: float,
    start: int | str = 0,
    decay: float = 0.0,
    **options: Any,
) -> Pixels:
    """Images within eps of x for fooling *other* networks: iterative FGSM on `linear_backward(model, start=start)`.

    Args:
        model, start: the network at hand, see `linear_backward`.
        decay: 1 for the momentum of MI-FGSM.
        x, y, eps, options: as in `lrc.attacks.mifgsm`, as are the image returned and further errors.

    Source: Guo et al., *Backpropagating linearly improves transferability of adversarial examples* (2020).
    """
    return mifgsm(linear_backward(model, start=start), x, y, eps=eps, decay=decay, **options)


def sgm(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    eps: float,
    gamma: float = 0.2,
    decay: float = 0.0,
    **options: Any,
) -> Pixels:
    """Images within eps of x for fooling *other* networks: iterative FGSM on `skip_gradient(model, gamma=gamma)`.

    Args:
        model, gamma: the network at hand, residual or dense, see `skip_gradient`.
        decay: 1 for the momentum of MI-FGSM.
        x, y, eps, options: as in `lrc.attacks.mifgsm`, as are the image returned and further errors.

    Source: Wu et al., *Skip connections matter: on the transferability of adversarial examples generated with ResNets*
    (2020).
    """
    return mifgsm(skip_gradient(model, gamma=gamma), x, y, eps=eps, decay=decay, **options)


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
    check_network(model)
    if not isinstance(start, str):
        check_whole("start", start)
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
    check_network(model)
    gamma = check_number("gamma", gamma, "(0, 1]")
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
