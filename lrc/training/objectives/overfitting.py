"""Catastrophic overfitting: a network that withstands one large step of an attack, and nothing else."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, nn

from lrc.attacks import fgsm, pgd
from lrc.training.objectives.objective import logits
from lrc.utils.checks import check_images, check_labels, check_network
from lrc.utils.networks import untouched
from lrc.utils.tensors import Labels, Pixels
from lrc.utils.typed import typed

Record = dict[str, Any]


@typed
def watch_collapse(
    x: Pixels, y: Labels, *, eps: float = 8 / 255, steps: int = 10, seed: int = 0
) -> Callable[[nn.Module], dict[str, float]]:
    """A function of the model: its accuracies on x under FGSM from a random start and under PGD, as "fgsm" and "pgd".

    Args:
        x, y: some hundred images that are not trained on, and their labels; they follow the model to its device.
        eps: of both attacks.
        steps: of PGD, each of 2.5 eps / steps.
        seed: of the random starts, the same every time.

    >>> from lrc.models import build
    >>> watch = watch_collapse(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]), steps=2)
    >>> sorted(watch(build("resnet8", width=4)))
    ['fgsm', 'pgd']
    """
    check_images(x)
    check_labels(y, len(x))
    attacks = {"fgsm": partial(fgsm, eps=eps, random_start=True), "pgd": partial(pgd, eps=eps, steps=steps)}

    def watch(model: nn.Module) -> dict[str, float]:
        check_network(model)
        accuracies, device = {}, next((p.device for p in model.parameters()), x.device)
        images, labels = x.to(device), y.to(device, torch.long)
        for name, attack in attacks.items():
            examples = attack(model, images, labels, generator=Generator().manual_seed(int(seed)))
            with untouched(model), torch.no_grad():
                accuracies[name] = (logits(model, examples).argmax(1) == labels).float().mean().item()
        return accuracies

    return watch


@typed
def collapsed(history: Sequence[Record], *, share: float = 0.5, gap: float = 0.2) -> str | None:
    """The reason to stop where the last record shows catastrophic overfitting: PGD accuracy collapsed, FGSM's did not.

    The two must have parted by `gap`, and PGD accuracy be below `share` of its best so far, or below a tenth of FGSM
    accuracy, as where the collapse came with the first epoch.

    Args:
        history: records with the accuracies "pgd" and "fgsm" in [0, 1], as of `watch_collapse`; others are passed over.
        share: of its best so far, below which PGD accuracy has collapsed.
        gap: least difference of the two accuracies.

    Returns:
        A sentence, or None: a network that is at chance level, or has lost both, has not collapsed so; what tells the
        case is that they part. `lrc.train(..., watch=watch_collapse(x, y), stop=collapsed)` ends there.

    Source: Wong, Rice & Kolter, *Fast is better than free* (2020), section 5.4.

    >>> collapsed([{"fgsm": 0.45, "pgd": 0.40}, {"fgsm": 0.80, "pgd": 0.02}])
    'catastrophic overfitting: accuracy 0.80 under FGSM, but 0.02 under PGD, which was 0.40'
    >>> collapsed([{"fgsm": 0.45, "pgd": 0.40}, {"fgsm": 0.10, "pgd": 0.10}])
    """
    seen = [record for record in history if "pgd" in record and "fgsm" in record]
    if not seen:
        return None
    pgd, fgsm, best = seen[-1]["pgd"], seen[-1]["fgsm"], max(record["pgd"] for record in seen)
    if fgsm - pgd < gap or pgd >= max(share * best, fgsm / 10):
        return None
    before = f", which was {best:.2f}" if best > pgd else ""
    return f"catastrophic overfitting: accuracy {fgsm:.2f} under FGSM, but {pgd:.2f} under PGD{before}"
