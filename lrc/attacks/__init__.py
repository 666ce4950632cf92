"""Attacks: pure functions `attack(model, x, y, *, eps, ...) -> x_adv` on images in [0, 1]."""

from lrc.attacks.fgsm import fgsm
from lrc.attacks.pgd import pgd

__all__ = ["fgsm", "pgd"]
