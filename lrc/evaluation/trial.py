"""A network with some images that it classifies rightly, on which attacks are tried."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor, nn

from lrc.attacks import pgd
from lrc.attacks.common import attacked
from lrc.attacks.losses import Loss, fooled
from lrc.data import Images
from lrc.evaluation.accuracy import Attack, device_of
from lrc.utils.errors import InputError


@dataclass(frozen=True)
class Trial:
    """A network, and images that it classifies rightly."""

    model: nn.Module
    x: Float[Tensor, "n c h w"]
    y: Int64[Tensor, " n"]
    eps: float
    norm: str
    batch_size: int
    seed: int

    def __len__(self) -> int:
        return len(self.x)

    def each(self, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """What is measured of the images, batch by batch, on the CPU."""
        parts = zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True)
        return torch.cat([measure(x, y).cpu() for x, y in parts])

    def fooled_by(self, attack: Attack, *, through: nn.Module | None = None) -> Bool[Tensor, " n"]:
        """Which images the attack fools; its examples are made for another network, if one is given."""

        def judge(x: Tensor, y: Tensor) -> Tensor:
            x_adv = attack(through or self.model, x, y, generator=self.generator())
            with attacked(self.model, x_adv, y) as (victim, images, labels):
                return fooled(victim.logits(images), labels)

        return self.each(judge)

    def rows(self, which: Int64[Tensor, " m"]) -> "Trial":
        """The same with some of the images."""
        here = which.to(self.x.device)
        return replace(self, x=self.x[here], y=self.y[here])

    def walk(self, *, steps: int = 20, times: float = 1.0, loss: str | Loss = "ce") -> Attack:
        """PGD from the image in a ball of `times` eps."""
        eps = times * self.eps
        step = eps / min(steps, 4)
        return partial(pgd, eps=eps, norm=self.norm, steps=steps, step=step, random_start=False, loss=loss)

    def generator(self) -> Generator:
        """Always the same."""
        return Generator().manual_seed(self.seed)


def draw(model: nn.Module, data: Images, images: int, *, eps: float, norm: str, batch_size: int, seed: int) -> Trial:
    """Images drawn from the data until there are enough that are right."""
    order = torch.randperm(len(data), generator=Generator().manual_seed(seed))
    device, found, count = device_of(model, data), [order[:0]], 0
    for rows in order.split(batch_size) if len(order) else ():
        x, y = data.float(rows).to(device), data.y[rows.to(data.y.device)].to(device)
        with attacked(model, x, y) as (victim, x, y):
            right = ~fooled(victim.logits(x), y).cpu()
        found.append(rows[right])
        count += int(right.sum())
        if count >= images:
            break
    rows = torch.cat(found)[:images]
    x, y = data.float(rows).to(device), data.y[rows.to(data.y.device)].to(device)
    return Trial(model, x, y, eps, norm, batch_size, seed)


def check_surrogate(surrogate: nn.Module, model: nn.Module, data: Images) -> None:
    """Shows the surrogate one image.

    Raises:
        InputError: it is on another device than the network, or has other classes than the data.
    """
    device, other = device_of(model, data), device_of(surrogate, data)
    if device != other:
        raise InputError(f"the surrogate is on {other}, the network on {device}: move one to the other")
    with attacked(surrogate, data.float([0]).to(device), torch.zeros_like(data.y[:1])) as (victim, x, _):
        classes = victim.logits(x).shape[1]
    if classes != len(data.classes):
        raise InputError(f"the surrogate has {classes} classes, the data {len(data.classes)}: take one for the same")
