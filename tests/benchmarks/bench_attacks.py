"""Time of PGD-20 against a bare loop and torchattacks, and of AutoAttack against pyautoattack.

    LRC_DATA=... python tests/benchmarks/bench_attacks.py [images for AutoAttack] [threads]

Needs the extra `peers`. All are called in turns in one process, so that a busy machine slows all of them.
- PGD-20 (Linf, no random start, 250 CIFAR-10 test images, medians of some turns): `lrc.attacks.pgd`, given contiguous
  images as anyone has them; a bare loop of forward passes and input gradients with a sign step, frozen parameters,
  channels-last images; `torchattacks.PGD` as a user calls it. All on a network with contiguous weights.
- AutoAttack, standard version, robust and standard network, one turn: `lrc.attacks.autoattack`; `pyautoattack` as its
  documentation shows; the same behind a layer that turns the images to channels-last.
Exits with status 1 where a bound of `BOUNDS` is missed, or where verdicts differ on more than 0.2 % of the images
(on more than one of fewer than 500).
"""

import statistics
import sys
import time
from collections.abc import Callable

import pyautoattack
import torch
import torch.nn.functional as F
import torchattacks
from torch import Generator, Tensor, nn

import lrc
from lrc.attacks import autoattack, pgd

EPS, STEP, TURNS = 8 / 255, 2 / 255, 7
BOUNDS = {
    "PGD-20 / bare loop": 1.05,
    "PGD-20 / torchattacks": 1 / 3,
    "AutoAttack / pyautoattack, robust": 0.6,
    "AutoAttack / pyautoattack in channels-last, robust": 0.9,
    "AutoAttack / pyautoattack, standard": 0.2,
}


class ChannelsLast(nn.Module):
    """The network in the memory layout that is fastest on a CPU."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.contiguous(memory_format=torch.channels_last))


def seconds(function: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def medians(*functions: Callable[[], object], turns: int = TURNS) -> list[float]:
    """Median seconds of each function, called in turns, after a turn to warm up."""
    rounds = [[seconds(function) for function in functions] for _ in range(turns + 1)]
    return [statistics.median(times) for times in zip(*rounds[1:], strict=True)]


def contiguous(name: str) -> nn.Module:
    """A shipped network with its weights in PyTorch's default layout, as a user's own network has them."""
    return lrc.zoo.load(name).to(memory_format=torch.contiguous_format)


def bare_loop(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Twenty forward passes and input gradients with their steps, and nothing else."""
    x = x.contiguous(memory_format=torch.channels_last)
    lower, upper = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
    z = x
    for _ in range(20):
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(z), y, reduction="sum"), z)
        z = torch.clamp(z + STEP * gradient.sign(), lower, upper)
    return z


def of_pgd(x: Tensor, y: Tensor) -> dict[str, float]:
    """Ratios of times of PGD-20."""
    model = contiguous("cifar10-resnet8-at").requires_grad_(False)
    other = torchattacks.PGD(contiguous("cifar10-resnet8-at"), eps=EPS, alpha=STEP, steps=20, random_start=False)
    ours, bare, theirs = medians(
        lambda: pgd(model, x, y, eps=EPS, steps=20, step=STEP, random_start=False),
        lambda: bare_loop(model, x, y),
        lambda: other(x, y),
    )
    print(f"PGD-20, {len(x)} images: ours {ours:.2f} s, bare loop {bare:.2f} s, torchattacks {theirs:.2f} s")
    return {"PGD-20 / bare loop": ours / bare, "PGD-20 / torchattacks": ours / theirs}


def of_autoattack(name: str, x: Tensor, y: Tensor) -> dict[str, float]:
    """Ratios of times of AutoAttack on one network."""
    model, kind = contiguous(f"cifar10-resnet8-{name}"), {"at": "robust", "standard": "standard"}[name]
    start = time.perf_counter()
    found = autoattack(model, x, y, eps=EPS, generator=Generator().manual_seed(0))
    times, verdicts = [time.perf_counter() - start], [found.fooled]
    for network in (model, ChannelsLast(model)):
        start = time.perf_counter()
        other = pyautoattack.AutoAttack(network, norm="Linf", eps=EPS, seed=0)
        x_adv, _ = other.run_standard_evaluation(x, y, batch_size=250)
        times.append(time.perf_counter() - start)
        with torch.no_grad():
            verdicts.append(torch.cat([model(batch).argmax(1) for batch in x_adv.split(250)]) != y)
    ours, theirs, again = times
    print(
        f"AutoAttack, {kind}, {len(x)} images: ours {ours:.0f} s, theirs {theirs:.0f} s, channels-last {again:.0f} s",
        flush=True,
    )
    robust = [1 - verdict.float().mean().item() for verdict in verdicts]
    print(f"  robust accuracy: {robust[0]:.4f}, {robust[1]:.4f}, {robust[2]:.4f}")
    if max(abs(robust[0] - other) for other in robust[1:]) > max(0.002, 1 / len(x)) + 1e-6:
        sys.exit("the verdicts differ: the times do not compare")
    return {
        f"AutoAttack / pyautoattack, {kind}": ours / theirs,
        f"AutoAttack / pyautoattack in channels-last, {kind}": ours / again,
    }


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else torch.get_num_threads())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    test = lrc.data.cifar10("test").subset(max(count, 250))
    x, y = test.float().contiguous(), test.y
    ratios = of_pgd(x[:250], y[:250])
    for name in ("standard", "at"):
        ratios |= of_autoattack(name, x[:count], y[:count])
    missed = [what for what, ratio in ratios.items() if ratio > BOUNDS.get(what, torch.inf)]
    for what, ratio in ratios.items():
        print(f"{what}: {ratio:.3f}" + (f" (bound {BOUNDS[what]:.3f})" if what in BOUNDS else ""))
    sys.exit(f"missed: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
