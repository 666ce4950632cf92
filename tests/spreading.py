"""What test_training_processes.py runs alone, and under torchrun in several processes."""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, nn

from lrc.attacks import pgd
from lrc.attacks.rng import image_keys
from lrc.data import Images
from lrc.models import resnet8
from lrc.training import checkpoints, epochs, train
from lrc.training.distributed import shared_accuracy
from lrc.training.objectives import named
from lrc.utils.errors import InputError
from lrc.utils.processes import join

GROUPS = [[0, 1], [2]]


def flat(model, x, y, *, generator):
    """Cross-entropy with a penalty on its gradient by the image: backward through batch norm twice."""
    x = x.double().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x, create_graph=True)
    return F.cross_entropy(model(x), y) + slope.square().sum() / len(x)


OBJECTIVES = {
    "standard": named("standard"),
    "adversarial": named("adversarial", steps=2, clustering=0.1, groups=GROUPS),
    "trades": named("trades", steps=2),
    "awp": named("mart", steps=1, awp=0.01),
    "flat": flat,
}


def coloured(n: int, seed: int = 0) -> Images:
    """Three classes told apart by colour, with noise."""
    y = torch.arange(n) % 3
    x = torch.randint(0, 120, (n, 3, 32, 32), generator=Generator().manual_seed(seed))
    x[torch.arange(n), y] += 90
    return Images(x.to(torch.uint8), y, ("red", "green", "blue"))


class Doubled(nn.Module):
    """A network that computes in double precision, where no rounding turns a sign step of an attack."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.double())


def tiny(seed: int = 0, classes: int = 3) -> nn.Module:
    return resnet8(classes, width=4, generator=Generator().manual_seed(seed))


def trained(name: str, *, double: bool) -> dict:
    """Loss of every step, accuracies and final weights of a training with the objective of that name."""
    model, losses = Doubled(tiny()) if double else tiny(), []
    original = epochs._step

    def step(*arguments, **options):
        loss = original(*arguments, **options)
        losses.append(loss)
        return loss

    epochs._step = step
    options = {"validation": coloured(13, 1), "attack": partial(pgd, eps=8 / 255, steps=2)}
    metrics = train(model, coloured(36), OBJECTIVES[name], epochs=2, batch_size=12, lr=0.05, ema=0.5, **options)
    epochs._step = original
    figures = [(m["clean"], m["robust"], m["loss"]) for m in metrics]
    return {"losses": torch.stack(losses), "figures": torch.tensor(figures), "weights": model.state_dict()}


def keys_counted(n: int) -> torch.Tensor:
    """What identifies the images that this process classifies of n."""
    seen = []

    def attack(model, x, y, *, generator):
        seen.append(image_keys(x, Generator().manual_seed(0)))
        return x

    shared_accuracy(tiny(), coloured(n), attack=attack, fabric=join(torch.device("cpu")))
    return torch.cat(seen) if seen else torch.zeros(0, dtype=torch.long)


def written(out: Path, rank: int) -> dict:
    """Which process writes checkpoints and is watched, and the weights where each process began with others."""
    who = []
    original, checkpoints.save = checkpoints.save, lambda *a: (who.append("saves"), original(*a))
    model = tiny(seed=rank)
    options = {"watch": lambda _: who.append("is watched") or {"seen": 1.0}, "out": out, "checkpoint_every": 2}
    metrics = train(model, coloured(36), OBJECTIVES["standard"], epochs=1, batch_size=12, **options)
    checkpoints.save = original
    again = tiny(seed=rank)
    train(again, coloured(36), OBJECTIVES["standard"], epochs=1, batch_size=12, out=out)
    return {"who": who, "metrics": metrics, "weights": model.state_dict(), "again": again.state_dict()}


def refused() -> str:
    """What is said of a batch that cannot be shared."""
    try:
        train(tiny(), coloured(9), OBJECTIVES["standard"], epochs=1, batch_size=9)
    except InputError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    fabric = join(torch.device("cpu"))
    assert torch.get_num_threads() == 1
    rank = fabric.global_rank
    kept = {name: trained(name, double=True) for name in OBJECTIVES} | {"float": trained("standard", double=False)}
    kept |= {"counted": {n: keys_counted(n) for n in (1, 2, 7, 8)}, "written": written(folder / "run", rank)}
    kept["refused"] = refused()
    torch.save(kept, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
