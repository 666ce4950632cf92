"""Times attacks, evaluation and training against other packages and against the bare passes: writes book/speed.md.

    LRC_DATA=... python tools/bench.py [PART ...]

Needs the extra `peers`. It runs on the accelerator if there is one (`LRC_DEVICE=cpu` for the CPU); figures of other
devices stay on the page. All that one table compares is called in turns in one process, so that a busy machine slows
all of it; ratios are medians over the turns, with the smallest and largest. Other packages are called as their
documentation shows. The figures go to book/speed.json too; parts that are not measured anew stay as they were.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import lrc
from lrc.attacks import autoattack, pgd
from lrc.attacks.autoattack import standard
from lrc.training import train
from lrc.training.objectives import named
from lrc.utils.devices import device

PAGE = Path(__file__).resolve().parents[1] / "book" / "speed.md"
FIGURES = PAGE.with_suffix(".json")
NETWORK, EPS, STEP, TURNS = "cifar10-resnet8-at", 8 / 255, 2 / 255, 3
AT = device()
BATCH, MATRIX = (128, 2048) if AT.type == "cpu" else (512, 8192)
JUDGED = min(BATCH, 500) if AT.type != "cpu" else 64  # images of AutoAttack, which takes minutes
STEPS = 4  # of training
LAST = torch.channels_last
Functions = dict[str, Callable[[], object]]


class ChannelsLast(nn.Module):
    """The network in the memory layout that is fastest, for packages that do not see to it themselves."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.contiguous(memory_format=LAST))


def network() -> nn.Module:
    """A network with its weights in PyTorch's default layout, as a user's own has them."""
    return lrc.zoo.load(NETWORK).to(AT).to(memory_format=torch.contiguous_format)


def images(count: int) -> tuple[Tensor, Tensor]:
    data = lrc.data.cifar10("test").subset(count)
    return data.float().contiguous().to(AT), data.y.to(AT)


def passes(model: nn.Module, x: Tensor, y: Tensor, *, steps: int) -> Tensor:
    """Forward passes and input gradients, and nothing else."""
    z = x
    for _ in range(steps):
        z = x.detach().requires_grad_()
        (z,) = torch.autograd.grad(F.cross_entropy(model(z), y, reduction="sum"), z)
    return z


def plain_loop(model: nn.Module, x: Tensor, y: Tensor, *, steps: int) -> None:
    """Adversarial training as one writes it down, in float32 and contiguous."""
    sgd = torch.optim.SGD(model.parameters(), 0.001, 0.9, weight_decay=5e-4, nesterov=True)
    for batch in zip(x.split(BATCH), y.split(BATCH), strict=True):
        plain_step(model, sgd, *batch, steps=steps)


def plain_step(model: nn.Module, sgd: torch.optim.SGD, x: Tensor, y: Tensor, *, steps: int) -> None:
    model.eval()
    z = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(steps):
        z.requires_grad_()
        F.cross_entropy(model(z), y).backward()
        assert z.grad is not None
        z = z.detach() + STEP * z.grad.sign()
        z = torch.min(torch.max(z, x - EPS), x + EPS).clamp(0, 1)
    model.train()
    sgd.zero_grad()
    F.cross_entropy(model(z), y).backward()
    sgd.step()


def of_pgd() -> tuple[str, Functions]:
    import torchattacks

    x, y = images(BATCH)
    other, last = (
        torchattacks.PGD(network(), eps=EPS, alpha=STEP, steps=20, random_start=False),
        x.to(memory_format=LAST),
    )
    run = partial(pgd, network(), x, y, eps=EPS, steps=20, step=STEP, random_start=False)
    return "torchattacks", {
        "torchattacks": lambda: other(x, y),
        "lrc": run,
        "lrc, bf16": partial(run, precision="bf16"),
        "bare passes, channels-last": partial(passes, network().requires_grad_(False), last, y, steps=20),
    }


def of_autoattack(count: int = JUDGED) -> tuple[str, Functions]:
    import pyautoattack

    x, y = images(count)
    run = partial(autoattack, network(), x, y, eps=EPS)

    def ours(**options: Any) -> list[bool]:
        return run(generator=Generator().manual_seed(0), **options).fooled.tolist()

    def theirs(model: nn.Module) -> list[bool]:
        other = pyautoattack.AutoAttack(model, norm="Linf", eps=EPS, seed=0)
        found = other.run_standard_evaluation(x, y, batch_size=250)
        with torch.no_grad():
            return (network()(found[0] if isinstance(found, tuple) else found).argmax(1) != y).tolist()

    return "pyautoattack", {
        "pyautoattack": lambda: theirs(network()),
        "pyautoattack, channels-last": lambda: theirs(ChannelsLast(network())),
        "lrc": ours,
        "lrc, bf16": lambda: ours(precision="bf16"),
    }


def of_training() -> tuple[str, Functions]:
    data, (x, y) = lrc.data.cifar10("test").subset(STEPS * BATCH), images(STEPS * BATCH)
    objective = named("adversarial", eps=EPS, steps=10, step=STEP)
    run = partial(train, network(), data, objective, epochs=1, batch_size=BATCH, lr=0.001)
    return "plain loop", {
        "plain loop": partial(plain_loop, network(), x, y, steps=10),
        "lrc": run,
        "lrc, bf16": partial(run, precision="bf16"),
    }


def of_evaluate() -> tuple[str, Functions]:
    model, data, (x, y) = network(), lrc.data.cifar10("test").subset(BATCH), images(BATCH)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    one = partial(pgd, steps=20, step=EPS / 4)
    two = partial(standard("linf")["apgd-ce"], steps=20)

    def attacks() -> None:
        for attack in (one, two):
            attack(model, x, y, eps=EPS, generator=Generator().manual_seed(0))

    return "its attacks, called one by one", {
        "its attacks, called one by one": attacks,
        "lrc.evaluate": lambda: lrc.evaluate(model, data, attacks={"one": one, "two": two}, eps=EPS, masking=False),
    }


def of_images() -> tuple[str, Functions]:
    sizes = [BATCH // 2 * 2**k for k in range(4)]
    return str(sizes[0]), {str(n): partial(pgd, network(), *images(n), eps=EPS, steps=5) for n in sizes}


def of_steps() -> tuple[str, Functions]:
    return "2", {str(n): partial(pgd, network(), *images(BATCH), eps=EPS, steps=n) for n in (2, 4, 8, 16)}


def of_pixels() -> tuple[str, Functions]:
    sides = (16, 32, 64)

    def attack(side: int) -> None:
        x, y = torch.rand(BATCH, 3, side, side).to(AT), torch.zeros(BATCH, dtype=torch.int64).to(AT)
        pgd(network(), x, y, eps=EPS, steps=5)

    return str(sides[0] ** 2), {str(side**2): partial(attack, side) for side in sides}


def of_classes() -> tuple[str, Functions]:
    models = {n: lrc.models.build("resnet8", classes=n, width=48).to(AT).eval() for n in (10, 20, 40, 80)}
    return "10", {str(n): partial(lrc.linear_map, model) for n, model in models.items()}


def of_maps() -> tuple[str, Functions]:
    model, (x, y) = network().requires_grad_(False), images(10)
    return "bare passes of 10 images, channels-last", {
        "bare passes of 10 images, channels-last": partial(passes, model, x.to(memory_format=LAST), y, steps=1),
        "lrc.linear_map, its checks included": partial(lrc.linear_map, model),
        "lrc.linear_map, verify=False": partial(lrc.linear_map, model, verify=False),
    }


def of_processes() -> tuple[str, Functions]:
    def run(n: int) -> None:
        options = (
            f"--attack apgd-ce --images {2 * BATCH} --batch-size {BATCH // 4} --no-masking --device cpu -q".split()
        )
        start = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={n}"]
        command = [*start, "-m", "lrc.cli", "evaluate", NETWORK, *options]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

    return "1", {str(n): partial(run, n) for n in (1, 2)}


PARTS: dict[str, tuple[str, int, Callable[[], tuple[str, Functions]]]] = {
    "pgd": (f"PGD-20, {BATCH} images", TURNS, of_pgd),
    "training": (f"{STEPS} steps of training on PGD-10 examples, {BATCH} images each", TURNS, of_training),
    "evaluate": (f"`evaluate`, PGD-20 and 20 steps of APGD, {BATCH} images", TURNS, of_evaluate),
    "images": ("PGD-5 on so many images", TURNS, of_images),
    "steps": (f"PGD with so many steps, {BATCH} images", TURNS, of_steps),
    "pixels": (f"PGD-5 on {BATCH} images of so many pixels", TURNS, of_pixels),
    "maps": ("W of the network", TURNS, of_maps),
    "classes": ("W of a network of so many classes", TURNS, of_classes),
    "autoattack": (f"AutoAttack, standard version, {JUDGED} images", 1, of_autoattack),
}
if AT.type == "cpu":
    title = f"`lrc evaluate`, APGD on {2 * BATCH} images, in so many processes of one thread, their start included"
    PARTS["processes"] = (title, 1, of_processes)
SLOPES = ("images", "steps", "pixels", "classes")


def measured(name: str) -> dict[str, Any]:
    """Seconds of each function of a part in each turn, after a turn to warm up where there are several."""
    title, turns, prepare = PARTS[name]
    against, functions = prepare()
    times: dict[str, list[float]] = {what: [] for what in functions}
    answers: dict[str, object] = {}
    for _ in range(turns + (turns > 1)):
        for what, function in functions.items():
            start = time.perf_counter()
            answers[what] = finished(function)
            times[what].append(time.perf_counter() - start)
    found: dict[str, Any] = {"title": title, "against": against, "versions": versions(), "load": os.getloadavg()[0]}
    found["seconds"] = {what: t[turns > 1 :] for what, t in times.items()}
    if name == "autoattack":
        found["robust"] = {what: sum(not hit for hit in v) for what, v in answers.items() if isinstance(v, list)}
    return found


def finished(function: Callable[[], object]) -> object:
    """What the function gives, once the device has done all of it."""
    found = function()
    if AT.type != "cpu":
        torch.accelerator.synchronize()
    return found


def versions() -> dict[str, str]:
    packages = filter(find_spec, ("torch", "torchattacks", "pyautoattack"))
    return {p: version(p).partition("+")[0] for p in packages} | {"threads": str(torch.get_num_threads())}


def floors() -> dict[str, float]:
    """What the machine can do: TFLOP/s of a matrix product, and of the bare passes of the network."""
    x, y = images(BATCH)
    model, x = network().requires_grad_(False), x.to(memory_format=LAST)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    work = 2 * counter.get_total_flops()  # the gradient by the input takes as much as the logits
    found = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(MATRIX, MATRIX, device=AT).to(dtype)
        found[f"matrix product, {name}"] = 2 * MATRIX**3 / fastest(partial(torch.matmul, a, a)) / 1e12
    found["bare passes, channels-last"] = work / fastest(partial(passes, model, x, y, steps=1)) / 1e12
    return found


def fastest(function: Callable[[], object]) -> float:
    times = []
    for _ in range(TURNS):
        start = time.perf_counter()
        finished(function)
        times.append(time.perf_counter() - start)
    return min(times)


def slope(seconds: dict[str, list[float]]) -> float:
    """Of the logarithm of the time over that of the size: 1 where the cost grows in proportion."""
    sizes = torch.tensor([float(size) for size in seconds]).log()
    times = torch.tensor([statistics.median(t) for t in seconds.values()]).log()
    return float(((sizes - sizes.mean()) * (times - times.mean())).sum() / (sizes - sizes.mean()).square().sum())


def page(found: dict[str, dict[str, Any]]) -> str:
    """The Markdown of the tables, device by device."""
    return "\n".join([*_head(), *(line for kind, parts in found.items() for line in _device(kind, parts)), ""])


def _head() -> Iterator[str]:
    yield "# Speed\n"
    yield "What attacks, evaluation and training cost beside other packages and beside the bare passes. `make bench`"
    yield "made this page. All that a table compares was called in turns in one process. A ratio is that of the times"
    yield "of one turn: the median, and from the smallest to the largest. The load is that of the machine, which others"
    yield "used too: below its number of threads a figure is worth most. The network is the small robust ResNet"
    yield f"`{NETWORK}`. Ratios depend on the size of the batch, which\nthe titles say.\n"


def _device(kind: str, parts: dict[str, Any]) -> Iterator[str]:
    yield f"## {kind}\n"
    if "floors" in parts:
        yield "TFLOP/s: " + ", ".join(f"{what} {value:.3g}" for what, value in parts["floors"].items()) + ".\n"
    for name in PARTS:
        if name in parts:
            yield from _table(name, parts[name])


def _table(name: str, part: dict[str, Any]) -> Iterator[str]:
    seconds, against = part["seconds"], part["against"]
    yield f"### {part['title']}\n"
    yield ", ".join(f"{k} {v}" for k, v in part["versions"].items()) + f"; load {part['load']:.1f}."
    if name in SLOPES:
        yield f"Slope of the time, in logarithms: {slope(seconds):.2f}."
    yield "\n| | seconds | ratio | turns | robust |\n| --- | ---: | ---: | ---: | ---: |"
    for what, times in seconds.items():
        ratios = [t / base for t, base in zip(times, seconds[against], strict=True)]
        spread = f"{statistics.median(ratios):.2f}" + (
            f" ({min(ratios):.2f} to {max(ratios):.2f})" if ratios[1:] else ""
        )
        robust = part.get("robust", {}).get(what, "")
        yield f"| {what} | {statistics.median(times):.3g} | {spread} | {len(times)} | {robust} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=["floors", *PARTS, []])
    chosen = parser.parse_args().parts or ["floors", *PARTS]
    found = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    kind = "CPU" if AT.type == "cpu" else torch.cuda.get_device_name(AT) if AT.type == "cuda" else AT.type
    for name in chosen:
        print(name, flush=True)
        found.setdefault(kind, {})[name] = floors() if name == "floors" else measured(name)
        FIGURES.write_text(json.dumps(found, indent=1) + "\n")
        PAGE.write_text(page(found))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
