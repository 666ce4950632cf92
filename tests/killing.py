"""What test_training_resuming.py runs in an interpreter of its own: trainings that are killed, and go on.

Every child process is killed by SIGKILL: `python killing.py FOLDER` prints one line a way of dying, and whether the
training that went on from there ended with the weights of an unbroken one.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Generator, nn

from lrc.attacks import pgd
from lrc.data import Images
from lrc.models import resnet8
from lrc.training import train
from lrc.training.objectives import named
from lrc.utils.processes import join


def coloured(n: int, seed: int = 0) -> Images:
    y = torch.arange(n) % 2
    x = torch.randint(0, 80, (n, 3, 32, 32), generator=Generator().manual_seed(seed))
    x[y == 1, 0] += 120
    return Images(x.to(torch.uint8), y, ("dark", "red"))


def network() -> nn.Module:
    """With a layer that draws random numbers of its own."""
    body = resnet8(2, width=4, generator=Generator().manual_seed(0))
    return nn.Sequential(nn.Dropout2d(0.2), body)


def run(out: Path) -> None:
    """A training with everything that a checkpoint must remember; writes the final weights."""
    model = network()
    attack = partial(pgd, eps=0.03, steps=1)
    train(model, coloured(32), named("trades", steps=1), epochs=3, batch_size=8, lr=0.05, ema=0.8,
          validation=coloured(8, 5), attack=attack, out=out, checkpoint_every=2)  # fmt: skip
    torch.save(model.state_dict(), out / "final.pt")


def child(out: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """The process id of a training in a process of its own."""
    pid = os.fork()
    if pid == 0:
        prepare()
        run(out)
        os._exit(0)
    return pid


def ended(pid: int) -> bool:
    """Waits for the process; whether it ended by itself, not by the signal."""
    status = os.waitpid(pid, 0)[1]
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, status
    return status == 0


def dying_at(moment: int) -> Callable[[], None]:
    """Makes this process kill itself before it writes to the disk, or renames, for that time."""
    count = 0

    def mortal(function):
        def before(*arguments):
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return before

    def prepare():
        os.fsync, os.replace = mortal(os.fsync), mortal(os.replace)

    return prepare


def broken_off(out: Path, took: float) -> None:
    """Trains in `out`, and kills the training four times where it happens to be; `took`: seconds of a whole one."""
    chance, deaths = random.Random(0), 0
    while deaths < 4:
        pid = child(out)
        time.sleep(chance.uniform(0.2, 0.7) * took)
        os.kill(pid, signal.SIGKILL)
        deaths += 1
        if ended(pid):  # it was faster than that: from the beginning again, with less patience
            shutil.rmtree(out)
            deaths, took = 0, took / 2


def same(a: Path, b: Path) -> bool:
    x, y = (torch.load(path / "final.pt", weights_only=True) for path in (a, b))
    return all(torch.equal(value, y[name]) for name, value in x.items())


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    join(torch.device("cpu"))  # what it imports is imported once
    whole = folder / "whole"
    start = time.perf_counter()
    assert ended(child(whole))
    took = time.perf_counter() - start
    for moment in (1, 2, 3, 4, 8, 9, 10, 14, 20):  # the first three checkpoints, and later
        out = folder / f"at{moment}"
        died = not ended(child(out, dying_at(moment)))
        assert ended(child(out))
        print(f"at {moment}:", "died" if died else "lived", "same" if same(whole, out) else "DIFFERENT", flush=True)
    out = folder / "any"
    broken_off(out, took)
    assert ended(child(out))
    print("at any moment: died", "same" if same(whole, out) else "DIFFERENT", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
