"""Time of linear_map of ResNet-18 against that of as many ordinary forward+backward passes as W has rows.

    python tests/benchmarks/bench_linear_map.py [threads]

Compared: `lrc.linear_map(model)`, tracing included, for ResNet-18 of width 64 with 10 classes at 3 x 32 x 32;
and one training pass of the same network at a batch of 10 images: zero_grad, forward in training mode, cross-entropy,
backward to all parameters. Both in float32, once with PyTorch's default memory format and once with the model and its
images in channels-last. The two take turns in one process, so that a busy machine slows both; figures are medians.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import lrc

RUNS, CLASSES, BOUND = 15, 10, 0.7


def seconds(*functions: Callable[[], object]) -> list[float]:
    """Median seconds of each function, called in turns, after a turn to warm up."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(RUNS + 1):
        for function, measured in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            measured.append(time.perf_counter() - start)
    return [statistics.median(measured[1:]) for measured in times]


def compare(memory_format: torch.memory_format) -> float:
    """The ratio of the two times, printed."""
    model = lrc.models.resnet18(CLASSES).to(memory_format=memory_format).train()
    x = torch.rand(CLASSES, 3, 32, 32).contiguous(memory_format=memory_format)
    y = torch.arange(CLASSES)

    def plain() -> None:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()

    ours, theirs = seconds(lambda: lrc.linear_map(model), plain)
    name = str(memory_format).removeprefix("torch.")
    print(f"{name:18} linear_map {ours:.3f} s, {CLASSES} forward+backward {theirs:.3f} s, ratio {ours / theirs:.2f}")
    return ours / theirs


def main() -> None:
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[1]))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {RUNS} runs")
    worst = max(compare(torch.contiguous_format), compare(torch.channels_last))
    print(f"worst ratio {worst:.2f}, bound {BOUND}")
    sys.exit(worst > BOUND)


if __name__ == "__main__":
    main()
