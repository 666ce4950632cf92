"""The training loop: one for all objectives, on any device, resumable to the same result."""

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import track
from torch import Generator, Tensor, nn

from lrc.data import Images, batches
from lrc.data.images import Batch
from lrc.errors import InputError
from lrc.evaluation import Attack, accuracy
from lrc.objectives import Objective

__all__ = ["cosine", "milestones", "train"]

Schedule = Callable[[float], float]
"""Fraction of the training done, in [0, 1), to the factor of the learning rate."""

Record = dict[str, Any]
Watch = Callable[[nn.Module], Record]


def cosine(*, warmup: float = 0.1) -> Schedule:
    """Linear rise over the fraction `warmup` of the training, then half a cosine down (Loshchilov & Hutter, 2017)."""

    def factor(done: float) -> float:
        if done < warmup:
            return max(done / warmup, 0.01)
        return 0.5 + 0.5 * math.cos(math.pi * (done - warmup) / (1 - warmup))

    return factor


def milestones(*at: float, factor: float = 0.1) -> Schedule:
    """Multiplied by `factor` at each of the given fractions; the paper's is `milestones(75 / 200, 90 / 200)`."""
    return lambda done: factor ** sum(done >= m for m in at)


def train(
    model: nn.Module,
    data: Images,
    objective: Objective,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Schedule | None = None,
    augment: bool = True,
    validation: Images | None = None,
    attack: Attack | None = None,
    precision: Literal["float32", "bf16"] = "float32",
    seed: int = 0,
    watch: Watch | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> list[Record]:
    """Trains `model` in place by SGD on `objective`; returns the metrics, one dictionary an epoch.

    With a validation part the model ends with the weights of its best epoch there (by accuracy under `attack` if
    one is given), else with the last. Runs on the device of the model. Nothing global is seeded or changed: the same
    model, data and arguments give the same weights on the same CPU.

    Args:
        model: images in [0, 1] to logits; converted to channels-last.
        data: training images; without the validation part, and never the test set.
        objective: `f(model, x, y, generator=...)` to a scalar loss; see `lrc.objectives`.
        epochs: passes over the data.
        batch_size: images a step; the last incomplete batch of an epoch is left out.
        lr, momentum, weight_decay: of SGD with Nesterov momentum.
        schedule: factor of the learning rate over time; `cosine()` by default.
        augment: random crop with 4 pixels of padding, and flip.
        validation: images for choosing the epoch; `data.split(n)` gives both parts.
        attack: on the validation images, with its options fixed (`functools.partial(pgd, eps=8/255, steps=10)`).
        precision: "bf16" runs the network under autocast; weights and the attack's projection stay float32.
        seed: of the order, the augmentation and the attacks' random starts.
        watch: called with the model in eval mode after every epoch; the numbers that it returns, by name,
            are added to the epoch's metrics.
        out: folder for `metrics.jsonl` and the checkpoint `last.pt`, written after every epoch, each atomically. If a
            checkpoint of the same arguments is there, training goes on from it, to the result of an unbroken run.
        progress: show a progress bar.

    Returns:
        For each epoch: epoch (from 1), lr (of its last step), loss (mean over the epoch), seconds; with a validation
        part clean, and with an attack robust, accuracies in [0, 1]; and whatever `watch` gave.

    Raises:
        InputError: sizes that do not fit, or a checkpoint in `out` made with other arguments.
        FloatingPointError: the loss is no longer finite; the checkpoint of the epoch before is kept.
    """
    if epochs < 1 or not 0 < batch_size <= len(data):
        raise InputError(
            f"epochs ({epochs}) must be >= 1, and batch_size ({batch_size}) in 1..{len(data)}, the number of images"
        )
    rate = schedule or cosine()
    arguments = {
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "momentum": momentum, "weight_decay": weight_decay,
        "augment": augment, "precision": precision, "seed": seed, "images": len(data), "objective": _name(objective),
        "validation": 0 if validation is None else len(validation), "attack": _name(attack),
        "schedule": [rate(epoch / epochs) for epoch in range(epochs)],
        "network": [list(p.shape) for p in model.parameters()],
    }  # fmt: skip
    model.to(memory_format=torch.channels_last)
    data = data.to(_device(model))
    sgd = torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0)
    folder = Path(out) if out is not None else None
    history, best = _resume(folder, arguments, model, sgd)

    for epoch in range(len(history), epochs):
        start, count = time.perf_counter(), len(data) // batch_size
        order, chance = _generators(seed, epoch)
        steps: Iterable[Batch] = batches(
            data, batch_size, shuffle=True, augment=augment, generator=order, drop_last=True
        )
        if progress:
            steps = track(steps, description=f"epoch {epoch + 1}/{epochs}", total=count, transient=True)
        rates = (lr * rate((epoch + i / count) / epochs) for i in range(count))
        loss = _epoch(model, zip(rates, steps, strict=True), objective, sgd, precision, chance) / count
        record = {"epoch": epoch + 1, "lr": sgd.param_groups[0]["lr"], "loss": loss}
        record |= _measure(model, validation, attack, watch, seed)
        history.append(record | {"seconds": round(time.perf_counter() - start, 3)})
        if validation is not None and _score(record) >= max(map(_score, history)):
            best = {k: v.detach().clone() for k, v in model.state_dict().items()}
        if folder is not None:
            _save(folder, arguments, model, sgd, history, best)

    if best:
        model.load_state_dict(best)
    model.eval()
    return history


def _epoch(
    model: nn.Module,
    steps: Iterable[tuple[float, Batch]],
    objective: Objective,
    sgd: torch.optim.SGD,
    precision: str,
    generator: Generator,
) -> float:
    """One pass over the data; the sum of the losses."""
    device = _device(model)
    total = torch.zeros((), device=device)
    model.train()
    for rate, (x, y) in steps:
        for group in sgd.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = objective(model, x, y, generator=generator)
        sgd.zero_grad(set_to_none=True)
        loss.backward()
        sgd.step()
        total += loss.detach()
    if not total.isfinite():
        raise FloatingPointError(f"the loss is no longer finite: lower the learning rate, now {rate:g}")
    return total.item()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _name(value: Any) -> str:
    """What identifies a function in a checkpoint, the same in every process: its name and the options fixed in it."""
    if not callable(value):
        return repr(value)
    function, keywords = getattr(value, "func", value), getattr(value, "keywords", {})
    options = [*map(_name, getattr(value, "args", ())), *(f"{k}={_name(v)}" for k, v in sorted(keywords.items()))]
    return f"{getattr(function, '__qualname__', type(function).__qualname__)}({', '.join(options)})"


def _generators(seed: int, epoch: int) -> tuple[Generator, Generator]:
    """Fresh generators, for the order and for the objective: an epoch does not depend on those before it."""
    base = (seed * 100_003 + epoch) * 2
    return Generator().manual_seed(base), Generator().manual_seed(base + 1)


def _measure(
    model: nn.Module, validation: Images | None, attack: Attack | None, watch: Watch | None, seed: int
) -> Record:
    model.eval()
    record: Record = {}
    if validation is not None:
        record["clean"] = accuracy(model, validation)
    if validation is not None and attack is not None:
        generator = Generator().manual_seed(seed)
        record["robust"] = accuracy(model, validation, attack=attack, generator=generator)
    watched = watch(model) if watch is not None else {}
    return record | json.loads(json.dumps(watched, default=float))  # plain numbers: they go into the checkpoint


def _score(record: Record) -> float:
    """What the best epoch is best at."""
    return float(record["robust"] if "robust" in record else record["clean"])


def _resume(
    folder: Path | None, arguments: Record, model: nn.Module, sgd: torch.optim.SGD
) -> tuple[list[Record], dict[str, Tensor]]:
    """Metrics and best weights so far, with model and optimizer set to the last checkpoint, if there is one."""
    if folder is None or not (folder / "last.pt").exists():
        return [], {}
    state = torch.load(folder / "last.pt", map_location=_device(model), weights_only=True)
    if state["arguments"] != arguments:
        differ = [k for k in arguments if state["arguments"].get(k) != arguments[k]]
        path = folder / "last.pt"
        raise InputError(
            f"{path} was made with other arguments ({', '.join(differ)}): remove it, or name another folder"
        )
    model.load_state_dict(state["model"])
    sgd.load_state_dict(state["optimizer"])
    return state["history"], state["best"]


def _save(
    folder: Path,
    arguments: Record,
    model: nn.Module,
    sgd: torch.optim.SGD,
    history: list[Record],
    best: dict[str, Tensor],
) -> None:
    """Checkpoint and metrics, each written beside its place and then moved there."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"arguments": arguments, "model": model.state_dict(), "optimizer": sgd.state_dict()}
    torch.save(state | {"history": history, "best": best}, folder / "last.pt.part")
    os.replace(folder / "last.pt.part", folder / "last.pt")
    (folder / "metrics.jsonl.part").write_text("".join(json.dumps(record) + "\n" for record in history))
    os.replace(folder / "metrics.jsonl.part", folder / "metrics.jsonl")
