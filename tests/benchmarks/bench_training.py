"""Time of an adversarial training step: against its bare passes, a plain loop, compiled, and in two processes.

    python tests/benchmarks/bench_training.py [threads]

Needs no data. All that is compared is called in turns in one process, so that a busy machine slows all of it;
times are medians. On a CPU: the small ResNet of the zoo, batches of 128. On a GPU: ResNet-18, batches of 512.
- The bare passes: forward and input gradient for each step of PGD (eval mode, frozen, channels-last), forward and
  backward for the step of training, and nothing else: no projection, no random start, no data, no optimizer.
- The plain loop: the same training as one writes it down, in float32 with contiguous tensors and no parameter frozen.
  The bound is on ours in bf16, in which the recipes train; what float32 gains alone is shown beside it.
- Terms: a step of PGD-3 with the clustering term on logits, features and rows, against the step without a term.
- Compiled: epochs after the first, with `compile=True` and without.
- Two processes of one thread each (`torchrun`) against one process of one thread, the same batches; on a CPU only.
- On a GPU also: images a second and TFLOP/s in bf16, and their share of what a product of large matrices reaches.
Exits with status 1 where a bound of `BOUNDS` is missed.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lrc.data import Images
from lrc.experiments.profiles import device
from lrc.models import resnet8, resnet18
from lrc.training import train
from lrc.training.objectives import clustered, named

EPS, STEP, TURNS, STEPS_TIMED = 8 / 255, 0.007, 5, 4
GROUPS = [[0, 1, 8, 9], [2, 3, 4, 5, 6, 7]]
BOUNDS = {
    "PGD-10 step / bare passes": 1.10,
    "PGD-5 step / bare passes": 1.10,
    "PGD-10 step in bf16 / plain loop, float32, on the CPU": 1 / 3,
    "PGD-10 step in bf16 / plain loop, float32, on the GPU": 1 / 2.5,
}
DEVICE = device()
ON_GPU = DEVICE.type == "cuda"
BATCH = 512 if ON_GPU else 128


def network() -> nn.Module:
    build = resnet18 if ON_GPU else resnet8
    return build(10, generator=Generator().manual_seed(0)).to(DEVICE)


def noise(n: int) -> Images:
    """Images and labels at random: speed does not depend on them."""
    g = Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, 32, 32), generator=g).to(torch.uint8)
    return Images(x, torch.randint(0, 10, (n,), generator=g), tuple("abcdefghij"))


def seconds(function: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function()
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(*functions: Callable[[], object]) -> list[float]:
    """Median seconds of each function, called in turns, after a turn to warm up."""
    rounds = [[seconds(function) for function in functions] for _ in range(TURNS + 1)]
    return [statistics.median(times) for times in zip(*rounds[1:], strict=True)]


def ours(model: nn.Module, data: Images, *, steps: int, on: str = "", **options: object) -> list[dict[str, object]]:
    """One epoch of the package's loop, with a clustering term where it is told on what."""
    objective = named("adversarial", eps=EPS, steps=steps, step=STEP)
    objective = clustered(objective, GROUPS, on=on) if on else objective
    return train(model, data, objective, batch_size=BATCH, **{"epochs": 1, **options})


def bare_passes(model: nn.Module, x: Tensor, y: Tensor, *, steps: int) -> None:
    """What an epoch of that must compute at least."""
    parameters = list(model.parameters())
    for _ in range(STEPS_TIMED):
        model.eval().requires_grad_(False)
        for _ in range(steps):
            z = x.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(model(z), y, reduction="sum"), z)
        model.train().requires_grad_(True)
        torch.autograd.grad(F.cross_entropy(model(x), y), parameters)


def plain_loop(model: nn.Module, x: Tensor, y: Tensor, sgd: torch.optim.SGD, *, steps: int) -> None:
    """The same epoch as one writes it down."""
    for _ in range(STEPS_TIMED):
        model.eval()
        z = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
        for _ in range(steps):
            z.requires_grad_()
            F.cross_entropy(model(z), y).backward()
            z = z.detach() + STEP * z.grad.sign()
            z = torch.min(torch.max(z, x - EPS), x + EPS).clamp(0, 1)
        model.train()
        sgd.zero_grad()
        F.cross_entropy(model(z), y).backward()
        sgd.step()


def of_steps() -> dict[str, float]:
    """Ratios of times of a step, in float32 and in bf16."""
    data = noise(STEPS_TIMED * BATCH)
    x, y = data.float()[:BATCH].to(DEVICE), data.y[:BATCH].to(DEVICE)
    last, plain = network().to(memory_format=torch.channels_last), network()
    sgd = torch.optim.SGD(plain.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True)
    model, ratios = network(), {}
    for steps in (10, 5):
        functions = [
            partial(ours, model, data, steps=steps, lr=0.01),
            partial(bare_passes, last, x.contiguous(memory_format=torch.channels_last), y, steps=steps),
            partial(plain_loop, plain, x.contiguous(), y, sgd, steps=steps),
            partial(ours, model, data, steps=steps, lr=0.01, precision="bf16"),
        ]
        times = [t / STEPS_TIMED for t in medians(*functions)]
        print(f"PGD-{steps}, batch {BATCH}: " + ", ".join(f"{what} {t * 1000:.1f} ms" for what, t in zip(
            ("ours", "bare passes", "plain loop", "ours in bf16"), times, strict=True)))  # fmt: skip
        ratios[f"PGD-{steps} step / bare passes"] = times[0] / times[1]
        where = "on the GPU" if ON_GPU else "on the CPU"
        ratios[f"PGD-{steps} step / plain loop, float32, {where}"] = times[0] / times[2]
        ratios[f"PGD-{steps} step in bf16 / plain loop, float32, {where}"] = times[3] / times[2]
    return ratios


def of_terms() -> dict[str, float]:
    """What the clustering term adds to a step."""
    kinds = ("", "logits", "features", "rows")
    epoch = partial(ours, network(), noise(STEPS_TIMED * BATCH), steps=3, lr=0.01)
    plain, *others = medians(*(partial(epoch, on=on) for on in kinds))
    print(f"PGD-3, batch {BATCH}: {plain / STEPS_TIMED * 1000:.1f} ms without a term")
    return {f"PGD-3 step with the term on {on} / without": t / plain for on, t in zip(kinds[1:], others, strict=True)}


def of_compiling() -> dict[str, float]:
    """Compiled against not, in epochs after the first."""
    data, times = noise(STEPS_TIMED * BATCH), {}
    for compiled in (False, True):
        start = time.perf_counter()
        metrics = ours(network(), data, steps=10, lr=0.01, epochs=TURNS + 1, compile=compiled)
        later = [float(str(m["seconds"])) for m in metrics[1:]]
        times[compiled] = statistics.median(later)
        if compiled:
            print(f"compiling takes {time.perf_counter() - start - sum(later):.0f} s")
    return {"compiled / not": times[True] / times[False]}


def of_processes() -> dict[str, float]:
    """How near two processes come to twice the speed of one."""
    times = []
    for count in (1, 2, 1, 2):
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), __file__, "worker"]
        result = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
        times.append(json.loads(result.stdout.strip().splitlines()[-1]))
    one, two = min(times[::2]), min(times[1::2])
    print(f"one process {one * 1000:.0f} ms a step, two {two * 1000:.0f} ms")
    return {"time of two processes / half the time of one": 2 * two / one}


def worker() -> None:
    """One of the processes: prints the seconds of a step."""
    torch.set_num_threads(1)
    metrics = ours(network(), noise(STEPS_TIMED * BATCH), steps=10, lr=0.01, epochs=TURNS)
    if os.environ["RANK"] == "0":
        print(min(m["seconds"] for m in metrics[1:]) / STEPS_TIMED)


def of_the_gpu() -> dict[str, float]:
    """Images a second, TFLOP/s and their share of the peak, of ResNet-18 and PGD-10 in bf16."""
    model, data = network(), noise(STEPS_TIMED * BATCH)
    x, y = data.float()[:BATCH].to(DEVICE), data.y[:BATCH].to(DEVICE)
    with FlopCounterMode(display=False) as counter:
        bare_passes(network(), x, y, steps=10)
    work = counter.get_total_flops() / STEPS_TIMED
    (took,) = medians(partial(ours, model, data, steps=10, lr=0.01, precision="bf16"))
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    (product,) = medians(lambda: [a @ a for _ in range(20)])
    reached, peak = work * STEPS_TIMED / took / 1e12, 20 * 2 * 8192**3 / product / 1e12
    print(f"ResNet-18, PGD-10, bf16 on {torch.cuda.get_device_name()}: {BATCH * STEPS_TIMED / took:,.0f} images/s, "
          f"{reached:.0f} TFLOP/s, {reached / peak:.1%} of the {peak:.0f} that a matrix product reaches")  # fmt: skip
    return {}


def main() -> None:
    if not ON_GPU:
        torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    print(f"torch {torch.__version__}, {DEVICE}, {torch.get_num_threads()} threads")
    ratios = of_steps() | of_terms() | of_compiling() | (of_the_gpu() if ON_GPU else of_processes())
    missed = [what for what, ratio in ratios.items() if ratio > BOUNDS.get(what, torch.inf)]
    for what, ratio in ratios.items():
        print(f"{what}: {ratio:.3f}" + (f" (bound {BOUNDS[what]:.3f})" if what in BOUNDS else ""))
    sys.exit(f"missed: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["worker"] else main()
