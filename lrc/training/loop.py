"""Public entry point of training: `train`, with a checkpoint after each epoch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from lrc.data import Images
from lrc.evaluation import Attack
from lrc.training import checkpoints, reporting
from lrc.training.checkpoints import Record, State
from lrc.training.distributed import Fabric, device_of, join, synchronized_batch_norm
from lrc.training.epochs import Plan, Stop, Watch, run_epoch
from lrc.training.schedules import Schedule, cosine
from lrc.utils.errors import InputError
from lrc.utils.hashes import described

__all__ = ["train"]


def train(
    model: nn.Module,
    data: Images,
    objective: Callable[..., Tensor],
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
    precision: str = "float32",
    ema: float | None = None,
    compile: bool = False,
    seed: int = 0,
    watch: Watch | None = None,
    stop: Stop | None = None,
    out: str | Path | None = None,
    checkpoint_every: int | None = None,
    tensorboard: bool = False,
    progress: bool = False,
) -> list[Record]:
    """Trains `model` in place by SGD on `objective`; returns the metrics, one dictionary an epoch.

    With a validation part the model ends with the weights of its best epoch there (by accuracy under `attack` if
    one is given), else with the last. Runs on the device of the model. Nothing global is seeded or changed: the same
    model, data and arguments give the same weights on the same CPU. Under `torchrun` every process calls it with the
    same arguments, takes its share of each batch on a device of its own, and ends with the same weights; the first
    one alone writes.

    Args:
        model: images in [0, 1] to logits; converted to channels-last.
        data: training images; without the validation part, and never the test set.
        objective: `f(model, x, y, generator=...)` to a scalar loss, a mean over the images; see `lrc.objectives`.
        epochs: passes over the data.
        batch_size: images a step, over all processes; the last incomplete batch of an epoch is left out.
        lr, momentum, weight_decay: of SGD with Nesterov momentum.
        schedule: factor of the learning rate over time; `cosine()` by default.
        augment: random crop with 4 pixels of padding, and flip.
        validation: images for choosing the epoch; `data.split(n)` gives both parts.
        attack: on the validation images, with its options fixed (`functools.partial(pgd, eps=8/255, steps=10)`).
        precision: "bf16" runs the network under autocast; "float32", the default, as it is. Weights and the attack's
            projection stay float32.
        ema: decay a step, in [0, 1), of a moving average of the weights, which then is what is validated, watched and
            returned; see `lrc.training.averaging`.
        compile: run the network through `torch.compile`; only its speed and the last digits change.
        seed: of the order, the augmentation, the attacks' random starts, and layers that draw, such as dropout.
        watch: called with the model in eval mode after every epoch, in the first process; the numbers that it
            returns, by name, are added to the epoch's metrics.
        stop: called with the metrics after every epoch; where it gives a reason the training ends there, with the
            reason in the metrics as `stopped`.
        out: folder for `metrics.jsonl` and the checkpoint `last.pt`, written after every epoch, each atomically; the
            checkpoint before it is kept as `previous.pt`. If a checkpoint of the same arguments is there, training
            goes on from it, on a CPU to the very result of an unbroken run.
        checkpoint_every: steps after which a checkpoint is written within an epoch too.
        tensorboard: also write the metrics as a TensorBoard log, into the folder `tensorboard` of `out`.
        progress: show a progress bar.

    Returns:
        For each epoch: epoch (from 1), lr (of its last step), loss (mean over the epoch), seconds; with a validation
        part clean, and with an attack robust, accuracies in [0, 1]; and whatever `watch` gave.

    Raises:
        InputError: sizes that do not fit, a checkpoint in `out` that is damaged or was made with other arguments,
            `torch.compile` or TensorBoard where they do not work.
        FloatingPointError: the loss or the weights are no longer finite; the checkpoint before that is kept.
        OSError: a checkpoint cannot be written; the one before is kept.

    Warns:
        RuntimeWarning: the last checkpoint is damaged, and the one before is used.
    """
    rate = schedule or cosine()
    fabric = join(device_of(model), precision=precision)
    _check(epochs=epochs, batch_size=batch_size, images=len(data), processes=fabric.world_size)
    if ema is not None and not 0 <= ema < 1:
        raise InputError(f"ema ({ema}) is the share that the average keeps at a step, expected 0 <= ema < 1")
    if checkpoint_every is not None and checkpoint_every < 1:
        raise InputError(f"checkpoint_every ({checkpoint_every}) is a number of steps, expected at least 1")
    if tensorboard and out is None:
        raise InputError("the log for TensorBoard needs a folder: give out")
    arguments = {
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "momentum": momentum, "weight_decay": weight_decay,
        "augment": augment, "precision": precision, "seed": seed, "images": len(data),
        "objective": described(objective),
        "validation": 0 if validation is None else len(validation), "attack": described(attack), "ema": ema,
        "schedule": [rate(epoch / epochs) for epoch in range(epochs)], "stop": stop and described(stop),
        "network": [list(p.shape) for p in model.parameters()],
    }  # fmt: skip
    model.to(fabric.device).to(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0)
    state, folder = State(model, sgd), Path(out) if out is not None and fabric.is_global_zero else None
    _resume(state, folder, arguments, fabric)
    plan = Plan(
        data=data.to(fabric.device), objective=objective, epochs=epochs, batch_size=batch_size, augment=augment,
        rate=lambda done: lr * rate(done), ema=ema, seed=seed, validation=validation, attack=attack, watch=watch,
        stop=stop, fabric=fabric, save_every=checkpoint_every,
        save=lambda: None if folder is None else checkpoints.save(folder, arguments, state),
    )  # fmt: skip
    done, shown = len(state.history), progress and fabric.is_global_zero
    log = folder / "tensorboard" if folder is not None and tensorboard else None
    with (
        synchronized_batch_norm(model, fabric),
        _compiled(model, on=compile),
        reporting.progress_bar(shown, images=epochs * plan.images, done=done * plan.images) as bar,
        reporting.tensorboard_log(log, epochs=done) as write,
    ):
        for epoch in range(done, epochs):
            if "stopped" in (state.history or [{}])[-1]:
                break
            bar(completed=epoch * plan.images, description=f"epoch {epoch + 1}/{epochs}")
            run_epoch(state, plan, epoch, bar)
            write(state.history[-1])
            plan.save()
    fabric.barrier()  # the files are there for all
    model.load_state_dict(state.best or state.average or model.state_dict())
    model.eval()
    return state.history


def _check(*, epochs: int, batch_size: int, images: int, processes: int) -> None:
    if epochs < 1 or not 0 < batch_size <= images:
        raise InputError(
            f"epochs ({epochs}) must be >= 1, and batch_size ({batch_size}) in 1..{images}, the number of images"
        )
    if batch_size % processes:
        raise InputError(f"batch_size ({batch_size}) must be a multiple of the number of processes ({processes})")


def _resume(state: State, folder: Path | None, arguments: Record, fabric: Fabric) -> None:
    """Sets the training to its last checkpoint, if there is one, the same in all processes."""
    kept = {} if folder is None else checkpoints.load(folder, arguments)
    if fabric.world_size > 1:
        kept = fabric.broadcast(kept or checkpoints.contents(state))
    if kept:
        checkpoints.restore(state, kept)


@contextmanager
def _compiled(model: nn.Module, *, on: bool) -> Iterator[None]:
    """The network run through `torch.compile`, if that is wanted; then as it was."""
    if not on:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # here: slow to import
    from torch._inductor.exc import InductorError

    model.compile()
    try:
        yield
    except (TorchDynamoException, InductorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"torch.compile does not work here: train without it ({reason})") from error
    finally:
        model._compiled_call_impl = None
