"""One epoch: the steps, and what is measured after them."""

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from lrc.data import Images, batches
from lrc.data.batches import Batch
from lrc.evaluation import Attack
from lrc.training import averaging
from lrc.training.checkpoints import Record, State
from lrc.training.distributed import average_gradients, device_of, shared_accuracy
from lrc.training.reporting import Bar
from lrc.utils.checks import check_number
from lrc.utils.errors import InputError
from lrc.utils.processes import Fabric, mean_over_processes

Watch = Callable[[nn.Module], Record]
"""The network in eval mode to numbers by name, after every epoch."""

Stop = Callable[[list[Record]], str | None]
"""The metrics so far to the reason for stopping, or None."""

Schedule = Callable[[float], float]
"""Fraction of the training done, in [0, 1), to the factor of the learning rate."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The fixed settings of a training: see `train`."""

    data: Images
    objective: Callable[..., Tensor]
    epochs: int
    batch_size: int
    augment: bool
    rate: Schedule  # of learning
    ema: float | None
    seed: int
    validation: Images | None
    attack: Attack | None
    watch: Watch | None
    stop: Stop | None
    fabric: Fabric
    save: Callable[[], None]
    save_every: int | None

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.data) // self.batch_size

    @property
    def images(self) -> int:
        """Images of an epoch."""
        return self.steps * self.batch_size


def run_epoch(state: State, plan: Plan, epoch: int, bar: Bar) -> None:
    """One pass over the data, and the measurements after it."""
    start = time.perf_counter()
    loss = _train_epoch(state, plan, epoch, bar) / plan.steps
    record = {"epoch": epoch + 1, "lr": state.optimizer.param_groups[0]["lr"], "loss": loss}
    with averaging.using(state.average, state.model):
        record |= _measure(state.model, plan)
        record = plan.fabric.broadcast(record | {"seconds": round(time.perf_counter() - start, 3)})
        if plan.validation is not None and _score(record) >= max(map(_score, [*state.history, record])):
            state.best.update(averaging.copied(state.model))
    if plan.stop is not None and (reason := plan.stop([*state.history, record])):
        record["stopped"] = reason
    state.history.append(record)


def _train_epoch(state: State, plan: Plan, epoch: int, bar: Bar) -> float:
    """One pass over the data, or what is left of it; the sum of the losses."""
    order, rng = _generators(plan.seed, epoch)
    done, total = _resume_epoch(state, rng)
    steps = batches(
        plan.data, plan.batch_size, shuffle=True, augment=plan.augment, generator=order, drop_last=True,
        skip=done, share=(plan.fabric.global_rank, plan.fabric.world_size),
    )  # fmt: skip
    state.model.train()
    with _seeded_layers(device_of(state.model)) as seed_layers, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the network gave NaN", RuntimeWarning)  # the error below says it
        for i, batch in enumerate(steps, done):
            seed_layers(f"{plan.seed}/{epoch}/{i}/{plan.fabric.global_rank}")
            rate = plan.rate((epoch + i / plan.steps) / plan.epochs)
            total += _step(state, plan, batch, rate=rate, generator=rng)
            if plan.ema is not None:
                averaging.update(state.average, state.model, decay=plan.ema, step=epoch * plan.steps + i + 1)
            bar(advance=plan.batch_size)
            if plan.save_every is not None and (i + 1) % plan.save_every == 0 and i + 1 < plan.steps:
                total = _mean(total, state)
                state.within.update(steps=i + 1, loss=total.clone(), rng=rng.get_state())
                plan.save()
    state.within.clear()
    return _mean(total, state).item()


def _step(state: State, plan: Plan, batch: Batch, *, rate: float, generator: Generator) -> Tensor:
    """One step of SGD at that learning rate; its loss."""
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    with plan.fabric.autocast():
        loss = plan.objective(state.model, *batch, generator=generator)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise InputError("the objective must give one number that depends on the weights: is something detached?")
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(state.model)
    state.optimizer.step()
    return loss.detach()


def _resume_epoch(state: State, rng: Generator) -> tuple[int, Tensor]:
    """Steps done of the epoch and the sum of their losses; sets the generator to where they left it."""
    if "rng" in state.within:
        rng.set_state(state.within["rng"])
    total = state.within.get("loss", torch.zeros(()))
    return state.within.get("steps", 0), total.to(device_of(state.model), copy=True)


def _mean(total: Tensor, state: State) -> Tensor:
    """The mean of the sums of losses over the processes, if training has not run out of the numbers there are."""
    (total,) = mean_over_processes([total])
    what = None if total.isfinite() else "loss is"
    if what is None and not all(value.isfinite().all() for value in state.model.state_dict().values()):
        what = "weights are"
    if what is not None:
        rate = state.optimizer.param_groups[0]["lr"]
        raise FloatingPointError(f"the {what} no longer finite: lower the learning rate, now {rate:g}")
    return total


def _generators(seed: int, epoch: int) -> tuple[Generator, Generator]:
    """Fresh generators, for the order and for the objective: an epoch does not depend on those before it."""
    base = (seed * 100_003 + epoch) * 2
    return Generator().manual_seed(base), Generator().manual_seed(base + 1)


@contextmanager
def _seeded_layers(device: torch.device) -> Iterator[Callable[[str], None]]:
    """A function that seeds what layers such as dropout draw from: PyTorch's global generators, put back at the end."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]

    def seed(text: str) -> None:
        for generator in generators:
            generator.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))

    try:
        yield seed
    finally:
        for generator, before in zip(generators, states, strict=True):
            generator.set_state(before)


def _measure(model: nn.Module, plan: Plan) -> Record:
    """Accuracies on the validation images, and what `watch` gives in the first process."""
    model.eval()
    record: Record = {}
    if plan.validation is not None:
        record["clean"] = shared_accuracy(model, plan.validation, fabric=plan.fabric)
    if plan.validation is not None and plan.attack is not None:
        generator = Generator().manual_seed(int(plan.seed))
        record["robust"] = shared_accuracy(
            model, plan.validation, fabric=plan.fabric, attack=plan.attack, generator=generator
        )
    watched = plan.watch(model) if plan.watch is not None and plan.fabric.is_global_zero else {}
    return record | json.loads(json.dumps(watched, default=float))  # plain numbers: they go into the checkpoint


def _score(record: Record) -> float:
    """What the best epoch is best at."""
    return float(record["robust"] if "robust" in record else record["clean"])


def cosine(*, warmup: float = 0.1) -> Schedule:
    """Linear rise over the fraction `warmup` of the training, then half a cosine down (Loshchilov & Hutter, 2017)."""

    check_number("warmup", warmup, "[0, 1]")

    def factor(done: float) -> float:
        if done < warmup:
            return max(done / warmup, 0.01)
        return 0.5 + 0.5 * math.cos(math.pi * (done - warmup) / (1 - warmup))

    return factor


def milestones(*at: float, factor: float = 0.1) -> Schedule:
    """Multiplied by `factor` at each of the given fractions; the paper's is `milestones(75 / 200, 90 / 200)`."""
    check_number("factor", factor)
    for m in at:
        check_number("a milestone, a fraction of the training,", m, "[0, 1]")
    return lambda done: factor ** sum(done >= m for m in at)
