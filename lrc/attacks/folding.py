"""A network that computes the same in less time: batch norm folded into the convolutions before it."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lrc.attacks.common import untouched
from lrc.attacks.graphs import Wiring
from lrc.errors import InputError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TOLERANCE = 1e-4  # of the largest logit


def folded(model: nn.Module) -> nn.Module:
    """The network in eval mode with each batch norm that follows a convolution folded into a copy of it.

    Equal to the model up to rounding, a tenth faster, sharing all its other layers. Where that cannot be had (hooks, a
    forward pass that torch.fx cannot trace, nothing to fold), the model itself.
    """
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return model
    try:
        wiring = Wiring(model)
    except InputError:
        return model
    pairs = [(node.all_input_nodes[0], node) for node in wiring.graph.nodes if _folds(wiring, node)]
    if not pairs:
        return model
    with untouched(model):
        for i, (convolution, normalization) in enumerate(pairs):
            layers: Any = [wiring.root.get_submodule(str(node.target)) for node in (convolution, normalization)]
            layer = fuse_conv_bn_eval(layers[0], layers[1])
            channels_last = isinstance(layer, nn.Conv2d) and layer.weight.device.type == "cpu"
            wiring.root.add_module(
                f"folded{i}", layer.to(memory_format=torch.channels_last) if channels_last else layer
            )
            convolution.target = f"folded{i}"
            normalization.replace_all_uses_with(convolution)
            wiring.graph.erase_node(normalization)
        return wiring.assemble().requires_grad_(False)


@torch.no_grad()
def agrees(other: nn.Module, model: nn.Module, x: Float[Tensor, "n *shape"]) -> bool:
    """Whether two networks in eval mode give the same logits on x, finite and up to rounding."""
    with untouched(other), untouched(model):
        expected, found = model(x), other(x)
    bound = TOLERANCE * expected.abs().amax().clamp(min=1e-6)
    return bool(expected.isfinite().all() and (found - expected).abs().amax() <= bound)


def _folds(wiring: Wiring, node: fx.Node) -> bool:
    """Whether the node is a batch norm with running statistics right after a convolution that nothing else uses."""
    if wiring.operation(node) not in NORMALIZATIONS:
        return False
    (before,) = node.all_input_nodes
    statistics = wiring.root.get_submodule(str(node.target)).running_var is not None
    return wiring.operation(before) in CONVOLUTIONS and len(before.users) == 1 and statistics
