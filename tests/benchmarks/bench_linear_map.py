"""Time and memory of the linear map: against ordinary passes, at ImageNet size, as it grows, against the official way.

    python tests/benchmarks/bench_linear_map.py [PART ...] [--threads N] [--plot FILE]

Parts, all by default; networks have random weights, all is in float32. Exits with status 1 where a bound is missed.
- passes: `lrc.linear_map(model)`, tracing included, for ResNet-18 of width 64 with 10 classes at 3 x 32 x 32, against
  one training pass of the same network at a batch of 10 images (zero_grad, forward in training mode, cross-entropy,
  backward to all parameters), once with PyTorch's default memory format and once with the model and its images in
  channels-last. And the time of `lrc.class_correlation(model)`. In turns in one process, medians.
- imagenet: `lrc.class_correlation` of torchvision's resnet50, 1,000 classes, 3 x 224 x 224, in a process of its own.
  Memory: the highest resident set at its end, less the resident set when the model stood (Linux). Time: of one run,
  against 1,000 training passes, of which only a few batches of 20 in channels-last are run and scaled up.
- growth: time of `lrc.class_correlation(model)`, ResNet-18 of width 32, over numbers of classes (at 32 x 32) and of
  pixels (with 40 classes), the best of three runs; the slope of the line through the logarithms. 1 is linear.
- official: C by the procedure of the official code of Bai et al. (2021), re-implemented: for each image of a batch a
  forward pass of the linear network, for each class a backward call, W their mean over the images.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Generator, Tensor, nn

import lrc

RUNS, CLASSES, IMAGES, BATCH = 15, 10, 16, 20
BOUNDS = {
    "passes: linear_map / forward+backward": 0.7,
    "passes: class_correlation, s": 1.0,
    "imagenet: memory above the model, GB": 1.5,
    "imagenet: class_correlation / 1,000 forward+backward": 0.7,
    "growth: slope over classes": 1.1,
    "growth: slope over pixels": 1.1,
    "official: largest difference of C": 1e-5,
}
Figures = dict[str, float]


def seconds(*functions: Callable[[], object], runs: int = RUNS) -> list[list[float]]:
    """Seconds of each function, called in turns, after a turn to warm up."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(runs + 1):
        for function, measured in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            measured.append(time.perf_counter() - start)
    return [measured[1:] for measured in times]


def training_pass(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """zero_grad, forward, cross-entropy, backward."""
    y = torch.arange(len(x))

    def run() -> None:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()

    return run


def passes() -> Figures:
    ratios, times = [], []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = lrc.models.resnet18(CLASSES).to(memory_format=memory_format).train()
        plain = training_pass(model, torch.rand(CLASSES, 3, 32, 32).contiguous(memory_format=memory_format))
        W, C, theirs = map(
            statistics.median,
            seconds(lambda m=model: lrc.linear_map(m), lambda m=model: lrc.class_correlation(m), plain),
        )
        name = str(memory_format).removeprefix("torch.")
        print(
            f"  {name:18} linear_map {W:.3f} s, class_correlation {C:.3f} s, {CLASSES} forward+backward {theirs:.3f} s"
        )
        ratios.append(W / theirs)
        times.append(C)
    return {"passes: linear_map / forward+backward": max(ratios), "passes: class_correlation, s": max(times)}


def resident(what: str) -> float:
    """GB of this process: VmRSS now, VmHWM at most so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024 / 1e9


def imagenet_child() -> None:
    """Prints seconds, and GB above the model."""
    model = torchvision.models.resnet50().eval()
    model.input_shape = (3, 224, 224)
    before, start = resident("VmRSS"), time.perf_counter()
    C = lrc.class_correlation(model)
    took = time.perf_counter() - start
    assert C.shape == (1000, 1000) and C.isfinite().all()
    print(took, resident("VmHWM") - before)


def imagenet() -> Figures:
    command = [sys.executable, __file__, "imagenet-child", "--threads", str(torch.get_num_threads())]
    took, memory = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    model = torchvision.models.resnet50().to(memory_format=torch.channels_last).train()
    x = torch.rand(BATCH, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    (batches,) = seconds(training_pass(model, x), runs=3)
    theirs = statistics.median(batches) * 1000 / BATCH
    print(
        f"  class_correlation {took:.0f} s; 1,000 forward+backward {theirs:.0f} s, scaled up from 3 batches of {BATCH}"
    )
    return {
        "imagenet: memory above the model, GB": memory,
        "imagenet: class_correlation / 1,000 forward+backward": took / theirs,
    }


def growth(plot: Path | None) -> Figures:
    grids = {"classes": [(n, n, 32) for n in (50, 100, 200, 400, 800)],
             "pixels": [(side**2, 40, side) for side in (48, 64, 96, 128, 192)]}  # fmt: skip
    figures, curves = {}, {}
    for name, grid in grids.items():
        best = []
        for _, classes, side in grid:
            model = lrc.models.resnet18(classes, width=32)
            model.input_shape = (3, side, side)
            best.append(min(seconds(lambda m=model: lrc.class_correlation(m), runs=3)[0]))
        sizes = [size for size, *_ in grid]
        slope = float(np.polyfit(np.log(sizes), np.log(best), 1)[0])
        print(f"  {name}: " + ", ".join(f"{n}: {s:.3f} s" for n, s in zip(sizes, best, strict=True)))
        figures[f"growth: slope over {name}"], curves[name] = slope, (sizes, best, slope)
    if plot:
        draw(plot, curves)
    return figures


def draw(file: Path, curves: dict[str, tuple[list[int], list[float], float]]) -> None:
    """Time over size, both logarithmic, beside a line of slope 1."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(8, 3.5), layout="constrained").subplots(1, 2, sharey=True)
    for ax, (name, (sizes, times, slope)) in zip(axes, curves.items(), strict=True):
        ax.loglog(sizes, times, "o-", label=f"measured, slope {slope:.2f}")
        ax.loglog(sizes, [times[-1] * size / sizes[-1] for size in sizes], "k:", label="slope 1")
        ax.set_xticks(sizes, map(str, sizes))
        ax.set_xticks([], minor=True)
        ax.set_xlabel(name)
        ax.legend()
    axes[0].set_ylabel("seconds of class_correlation")
    axes[0].figure.savefig(file)


def official() -> Figures:
    model = lrc.models.resnet18(CLASSES, generator=Generator().manual_seed(0))
    linear, x = lrc.linearize(model), torch.rand(IMAGES, 3, 32, 32, generator=Generator().manual_seed(1))

    def theirs() -> Tensor:
        W = torch.zeros(CLASSES, 3 * 32 * 32)
        for image in x:
            pixels = image[None].clone().requires_grad_()
            z = linear(pixels)
            for j in range(CLASSES):
                pixels.grad = None
                z[0, j].backward(retain_graph=True, inputs=[pixels])
                W[j] += pixels.grad.flatten() / IMAGES
        unit = W / W.norm(dim=1, keepdim=True)
        return unit @ unit.T

    mine, slow = map(statistics.median, seconds(lambda: lrc.class_correlation(model), theirs, runs=3))
    print(f"  ours {mine:.3f} s, {IMAGES} x {CLASSES} backward calls {slow:.3f} s: {slow / mine:.1f} times as long")
    return {"official: largest difference of C": float((theirs() - lrc.class_correlation(model)).abs().max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plot", type=Path, help="file for the log-log plot of `growth`")
    options = parser.parse_args()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    if options.parts == ["imagenet-child"]:
        return imagenet_child()
    parts = {"passes": passes, "imagenet": imagenet, "growth": lambda: growth(options.plot), "official": official}
    if unknown := set(options.parts) - set(parts):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(parts)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    figures: Figures = {}
    for name in options.parts or parts:
        print(name, flush=True)
        figures |= parts[name]()
    print(f"\n{'figure':56} {'measured':>10} {'bound':>10}")
    for name, value in figures.items():
        print(f"{name:56} {value:10.3g} {BOUNDS[name]:10.3g}{'' if value <= BOUNDS[name] else '  MISSED'}")
    sys.exit(not all(value <= BOUNDS[name] for name, value in figures.items()))


if __name__ == "__main__":
    main()
