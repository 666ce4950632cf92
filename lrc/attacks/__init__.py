"""Attacks: pure functions `attack(model, x, y, *, eps, ...) -> x_adv` on images in [0, 1].

What holds for all of them: the result lies in the ball and in [0, 1] to the last bit. The model is run in eval mode,
whatever its mode (so a network with batch norm in train mode is attacked with its running statistics), and left as it
was: modes, gradients, buffers, hooks. A search runs it with batch norm folded into the convolutions, where that can be
done (`lrc.linearization.folding`); what ends an image's search is the answer of the network itself. An image's answer
does not depend on its neighbours in the batch, save for the last bits of the network's own arithmetic (with
`precision="bf16"` the last of 8 bits); its random numbers depend on generator and image alone,
and no global generator is touched (`lrc.attacks.rng`). NaN or infinite logits count as fooled, and are reported by a
`RuntimeWarning`. Images are float32 or float64; under `torch.autocast` the network runs in half precision, the attack
does not.

Arguments of one name mean the same in all of them: `lrc.attacks.pgd` says what. To be called alike, those that draw
nothing take a `generator` all the same, and those that need no gradient a `precision`.
"""

from lrc.attacks.apgd import apgd
from lrc.attacks.autoattack import Verdicts, autoattack
from lrc.attacks.cw import cw
from lrc.attacks.evolution import nattack, nes
from lrc.attacks.fab import fab
from lrc.attacks.pgd import fgsm, mifgsm, pgd
from lrc.attacks.square import square
from lrc.attacks.transfer import linbp, linear_backward, sgm, skip_gradient

__all__ = [
    "Verdicts",
    "apgd",
    "autoattack",
    "cw",
    "fab",
    "fgsm",
    "linbp",
    "linear_backward",
    "mifgsm",
    "nattack",
    "nes",
    "pgd",
    "sgm",
    "skip_gradient",
    "square",
]
