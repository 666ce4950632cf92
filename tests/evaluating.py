"""What test_evaluation_processes.py runs under torchrun: an evaluation that processes share, and one of them may die.

`evaluating.py FOLDER [ROWS]` evaluates into the folder; the second process is killed before it attacks more images
than ROWS.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from spreading import Doubled, coloured, tiny
from torch import Generator

from lrc.attacks import autoattack, fab, pgd, square
from lrc.evaluation import Report, evaluate
from lrc.utils.processes import Fabric, join

attacked = 0


def mortal(model, x, y, *, eps, norm, generator):
    """PGD, at whose images process 1 dies."""
    global attacked
    attacked += len(x)
    if attacked > int(os.environ.get("ROWS", 1000)) and os.environ.get("RANK") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return pgd(model, x, y, eps=eps, norm=norm, steps=2, generator=generator)


PARTS = {"fab": partial(fab, steps=2), "square": partial(square, queries=10)}


def evaluated(out: Path, fabric: Fabric | None = None) -> Report:
    attacks = {"mortal": mortal, "parts": partial(autoattack, version=PARTS)}
    model, data = Doubled(tiny()), coloured(21)
    data = data.__class__(data.x, model.eval()(data.float()).argmax(1), data.classes)  # all are right, so attacked
    return evaluate(model, data, attacks=attacks, eps=0.03, batch_size=4, generator=Generator().manual_seed(0),
                    out=out, masking=False, fabric=fabric)  # fmt: skip


def main(out: Path) -> None:
    torch.set_num_threads(1)
    fabric = join(torch.device("cpu"))
    report = evaluated(out, fabric)
    (out / f"{fabric.global_rank}.json").write_text(report.to_json())


if __name__ == "__main__":
    os.environ["ROWS"] = sys.argv[2] if len(sys.argv) > 2 else "1000"
    main(Path(sys.argv[1]))
