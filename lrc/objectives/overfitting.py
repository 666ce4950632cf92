"""Catastrophic overfitting: a network that withstands one large step of an attack, and nothing else."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from lrc.attacks import fgsm, pgd
from lrc.attacks.common import untouched
from lrc.objectives.objective import logits

__all__ = ["collapsed", "watch_collapse"]

Record = dict[str, Any]


def watch_collapse(
    x: Float[Tensor, "n *shape"], y: Int[Tensor, " n"], *, eps: float = 8 / 255, steps: int = 10, seed: int = 0
) -> Callable[[nn.Module], dict[str, float]]:
    """A function of the model: its accuracies on x under FGSM from a random start and under PGD, as "fgsm" and "pgd".

    Args:
        x, y: some hundred images that are not trained on, and their labels.
        eps: of both attacks.
        steps: of PGD, each of 2.5 eps / steps.
        seed: of the random starts, the same every time.

    >>> from lrc.models import build
    >>> watch = watch_collapse(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]), steps=2)
    >>> sorted(watch(build("resnet8", width=4)))
    ['fgsm', 'pgd']
    """
    attacks = {"fgsm": partial(fgsm, eps=eps, random_start=True), "pgd": partial(pgd, eps=eps, steps=steps)}

    def watch(model: nn.Module) -> dict[str, float]:
        accuracies = {}
        for name, attack in attacks.items():
            examples = attack(model, x, y, generator=Generator().manual_seed(seed))
            with untouched(model), torch.no_grad():
                accuracies[name] = (logits(model, examples).argmax(1) == y).float().mean().item()
        return accuracies

    return watch


def collapsed(history: Sequence[Record], *, share: float = 0.5) -> str | None:
    """The reason to stop where the last record shows catastrophic overfitting: PGD accuracy collapsed, FGSM's did not.

    Args:
        history: records with the accuracies "pgd" and "fgsm" in [0, 1], as of `watch_collapse`; others are passed over.
        share: of its best so far: PGD accuracy below it has collapsed, FGSM accuracy above it has not.

    Returns:
        A sentence, or None: a network that has learnt nothing yet, or has lost both, has not collapsed so; what tells
        the case is that they part. `lrc.train(..., watch=watch_collapse(x, y), stop=collapsed)` ends there.

    Source: Wong, Rice & Kolter, *Fast is better than free* (2020), section 5.4.

    >>> collapsed([{"fgsm": 0.45, "pgd": 0.40}, {"fgsm": 0.80, "pgd": 0.02}])
    'catastrophic overfitting: accuracy 0.80 under FGSM, but 0.02 under PGD, which was 0.40'
    >>> collapsed([{"fgsm": 0.45, "pgd": 0.40}, {"fgsm": 0.10, "pgd": 0.10}])
    """
    seen = [record for record in history if "pgd" in record and "fgsm" in record]
    if not seen:
        return None
    last, best = seen[-1], {name: max(record[name] for record in seen) for name in ("pgd", "fgsm")}
    if last["pgd"] >= share * best["pgd"] or last["fgsm"] < share * best["fgsm"]:
        return None
    accuracies = f"accuracy {last['fgsm']:.2f} under FGSM, but {last['pgd']:.2f} under PGD, which was {best['pgd']:.2f}"
    return f"catastrophic overfitting: {accuracies}"
