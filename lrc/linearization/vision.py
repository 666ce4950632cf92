"""Torchvision's own operations join the table once a network can have any: importing torchvision is slow."""

import sys

from lrc.linearization.attention import windows
from lrc.linearization.gates import PASSING
from lrc.linearization.operations import DROPOUT
from lrc.linearization.rules import RULES, VIEWS, batch_norm, linear
from lrc.linearization.surgery import Operation, identity


def join_torchvision() -> None:
    """Enters them, where torchvision has been imported and they are not there yet."""
    if "torchvision" not in sys.modules:
        return
    from torchvision import ops
    from torchvision.models import swin_transformer
    from torchvision.ops.stochastic_depth import stochastic_depth

    if ops.Permute in RULES:
        return
    dropout: list[Operation] = [
        *(stochastic_depth, ops.StochasticDepth, ops.drop_block2d, ops.DropBlock2d, ops.drop_block3d, ops.DropBlock3d),
    ]
    DROPOUT.extend(dropout)
    VIEWS.update([*dropout, ops.Permute])
    PASSING.update([*dropout, ops.Permute, swin_transformer._patch_merging_pad])
    RULES.update(dict.fromkeys(dropout, identity))
    RULES.update({ops.Permute: linear, swin_transformer._patch_merging_pad: linear, ops.FrozenBatchNorm2d: batch_norm})
    RULES[swin_transformer.shifted_window_attention] = windows
