"""Time of a step of the explorer: a slider is moved, and what it shows is there again.

    python tests/benchmarks/bench_explorer.py [threads]

Both networks that the chapters use, 200 images of CIFAR-10 (LRC_DATA) or, without them, of noise; median and longest of
the moves of each slider. Exits with status 1 where a median is above the bound.
"""

import os
import statistics
import sys
import time

import torch

import lrc

BOUND = 200  # ms
MOVES = {
    "network": ["cifar10-resnet8-at", "cifar10-resnet8-standard"] * 3,
    "order": ["superclasses", "as numbered", "tree"] * 2,
    "height": [0.2, 0.6, 0.9, 1.2, 1.5],
    "image": [1, 2, 3, 4, 5, 6],
    "eps": [0, 2, 4, 16, 8],
    "steps": [1, 2, 10, 20, 3],
}


def noise() -> lrc.Images:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8, generator=g)
    return lrc.Images(x, torch.arange(200) % 10, lrc.hierarchy.CIFAR10.classes, lrc.hierarchy.CIFAR10)


def main(threads: int) -> int:
    torch.set_num_threads(threads)
    images = lrc.data.cifar10("test") if os.environ.get("LRC_DATA") else noise()
    start = time.perf_counter()
    explorer = lrc.explore([*reversed(MOVES["network"][:2])], images)
    print(f"{threads} threads; from call to first picture {time.perf_counter() - start:.1f} s")
    slow = 0
    for name, values in MOVES.items():
        took = []
        for value in values:
            start = time.perf_counter()
            explorer.controls[name].value = value
            took.append(1000 * (time.perf_counter() - start))
        print(f"{name:8} median {statistics.median(took):4.0f} ms, longest {max(took):4.0f} ms, {len(took)} moves")
        slow += statistics.median(took) > BOUND
    return min(slow, 1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2))
