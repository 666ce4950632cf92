"""Public entry point of training: `train`, with a checkpoint after each epoch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrc.data import Images
from lrc.data.images import check_set
from lrc.evaluation import Attack, logits
from lrc.training import checkpoints, reporting
from lrc.training.checkpoints import Record, State
from lrc.training.distributed import device_of, synchronized_batch_norm
from lrc.training.epochs import Plan, Schedule, Stop, Watch, cosine, run_epoch
from lrc.utils.checks import check_function, check_network, check_number, check_whole, out_of_memory
from lrc.utils.errors import InputError
from lrc.utils.files import locked
from lrc.utils.hashes import described
from lrc.utils.networks import Asked, untouched
from lrc.utils.processes import Fabric, join


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
            goes on from it, on a CPU to the very result of an unbroken run. The same are images, labels, classes and
            the network's layers; its initial weights do not count. No other process can train in the folder meanwhile.
        checkpoint_every: steps after which a checkpoint is written within an epoch too.
        tensorboard: also write the metrics as a TensorBoard log, into the folder `tensorboard` of `out`.
        progress: show a progress bar.

    Returns:
        For each epoch: epoch (from 1), lr (of its last step), loss (mean over the epoch), seconds; with a validation
        part clean, and with an attack robust, accuracies in [0, 1]; and whatever `watch` gave.

    Raises:
        InputError: sizes or numbers that do not fit, a network that has nothing to train or does not take the images,
            a checkpoint in `out` that is damaged or was made with other arguments, another process that trains in
            `out`, memory that ran out (the last checkpoint is kept), `torch.compile` or TensorBoard where they do not
            work.
        FloatingPointError: the loss or the weights are no longer finite; the checkpoint before that is kept.
        OSError: a checkpoint cannot be written; the one before is kept.

    Warns:
        RuntimeWarning: the last checkpoint is damaged, and the one before is used.
    """
    rate = schedule or cosine()
    _check_network(model)
    check_set(data, "data and validation")
    check_function("objective", objective, "model", "x", "y", generator=None)
    for name, function in (("schedule", rate), ("watch", watch), ("stop", stop)):
        if function is not None:
            check_function(name, function, {"schedule": "share", "watch": "model", "stop": "history"}[name])
    fabric = join(device_of(model), precision=precision)
    _check_numbers(
        epochs=epochs, batch_size=batch_size, lr=lr, momentum=momentum, weight_decay=weight_decay, ema=ema, seed=seed,
        checkpoint_every=checkpoint_every, rates=rate, images=len(data), processes=fabric.world_size,
    )  # fmt: skip
    if tensorboard and out is None:
        raise InputError("the log for TensorBoard needs a folder: give out")
    model.to(fabric.device).to(memory_format=torch.contiguous_format)
    for images in (data, *([] if validation is None else [validation])):
        _check_data(model, images, like=data)
    layout = _layout(model, data)
    sgd = torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0)
    state, folder = State(model, sgd), Path(out) if out is not None and fabric.is_global_zero else None
    arguments = {} if folder is None else {
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "momentum": momentum, "weight_decay": weight_decay,
        "augment": augment, "precision": precision, "seed": seed, "objective": described(objective),
        "attack": described(attack), "ema": ema, "schedule": [rate(epoch / epochs) for epoch in range(epochs)],
        "stop": stop and described(stop), "data": checkpoints.of_data(data),
        "validation": checkpoints.of_data(validation),
        "network": checkpoints.of_network(model, tuple(data.x.shape[1:])),
    }  # fmt: skip
    plan = Plan(
        data=data.to(fabric.device), objective=objective, epochs=epochs, batch_size=batch_size, augment=augment,
        rate=lambda done: lr * rate(done), ema=ema, seed=int(seed), validation=validation, attack=attack, watch=watch,
        stop=stop, fabric=fabric, save_every=checkpoint_every,
        save=lambda: None if folder is None else checkpoints.save(folder, arguments, state),
    )  # fmt: skip
    with (
        nullcontext() if folder is None else locked(folder),
        _memory_explained(batch_size, folder),
        synchronized_batch_norm(model, fabric),
        _laid_out(model, layout),
        _compiled(model, on=compile),
    ):
        _resume(state, folder, arguments, fabric)
        _run(
            state,
            plan,
            shown=progress and fabric.is_global_zero,
            log=folder / "tensorboard" if folder is not None and tensorboard else None,
        )
        fabric.barrier()  # the files are there for all
    model.load_state_dict(state.best or state.average or model.state_dict())
    model.eval()
    return state.history


def _run(state: State, plan: Plan, *, shown: bool, log: Path | None) -> None:
    """The epochs that are left, with a checkpoint after each."""
    done = len(state.history)
    with (
        reporting.progress_bar(shown, images=plan.epochs * plan.images, done=done * plan.images) as bar,
        reporting.tensorboard_log(log, epochs=done) as write,
    ):
        for epoch in range(done, plan.epochs):
            if "stopped" in (state.history or [{}])[-1]:
                break
            bar(completed=epoch * plan.images, description=f"epoch {epoch + 1}/{plan.epochs}")
            run_epoch(state, plan, epoch, bar)
            write(state.history[-1])
            plan.save()


def _resume(state: State, folder: Path | None, arguments: Record, fabric: Fabric) -> None:
    """Sets the training to its last checkpoint, if there is one, and all processes to the state of the first."""
    if folder is not None:
        checkpoints.resume(folder, arguments, state)
    if fabric.world_size > 1:
        of_first = fabric.broadcast(checkpoints.contents(state))
        if not fabric.is_global_zero:
            checkpoints.restore(state, of_first)


def _check_network(model: Any) -> None:
    check_network(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("TorchScript networks cannot be trained here: give the nn.Module that this one was made of")
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(
            "the network has no weights to train: there are none, or all are frozen (requires_grad_(True))"
        )


def _check_numbers(
    *, rates: Schedule, images: int, processes: int, epochs: Any, batch_size: Any, checkpoint_every: Any, seed: Any,
    ema: Any, **options: Any,
) -> None:  # fmt: skip
    check_whole("epochs", epochs, 1)
    check_whole("batch_size", batch_size, 1)
    check_whole("seed", seed)
    if batch_size > images:
        raise InputError(f"batch_size must be in 1..{images}, the number of images, not {batch_size}")
    if batch_size % processes:
        raise InputError(f"batch_size ({batch_size}) must be a multiple of the number of processes ({processes})")
    for name, value in options.items():
        check_number(name, value)
    for epoch in range(epochs):
        try:
            factor = rates(epoch / epochs)
        except (TypeError, AttributeError) as error:
            raise InputError(f"the schedule fails on a share of the training, {epoch / epochs}: {error}") from error
        check_number(f"the schedule's factor of epoch {epoch + 1}", factor)
    if ema is not None:
        check_number("ema, the share that the average keeps at a step,", ema, "[0, 1)")
    if checkpoint_every is not None:
        check_whole("checkpoint_every, a number of steps,", checkpoint_every, 1)


def _check_data(model: nn.Module, images: Any, *, like: Any) -> None:
    """Refuses images that are not like those of training, or that the network gives no logits for all classes of."""
    check_set(images, "data and validation")
    if not len(images):
        raise InputError("the validation part has no images: give some, or None")
    if images.classes != like.classes or images.x.shape[1:] != like.x.shape[1:]:
        raise InputError(f"validation images {images} have other classes or another size than {like} to train on")
    device = device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        z = logits(model, images.subset(min(2, len(images))))
    if z.shape[1] <= images.y.amax():
        raise InputError(f"label {int(images.y.amax())} where the network has classes 0..{z.shape[1] - 1}")


def _layout(model: nn.Module, data: Images) -> torch.memory_format:
    """Channels-last, in which convolutions are fastest, or contiguous where the network's own code fails on that."""
    asked, device = Asked(model), device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad(), untouched(model):
        asked(data.float(torch.arange(min(2, len(data)))).to(device))
    return torch.channels_last if asked.layout is torch.preserve_format else asked.layout


@contextmanager
def _laid_out(model: nn.Module, layout: torch.memory_format) -> Iterator[None]:
    """The network's weights and its images in that memory format."""
    model.to(memory_format=layout)
    if layout is torch.channels_last:
        yield
        return
    hook = model.register_forward_pre_hook(lambda _, given: tuple(x.contiguous() for x in given))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _memory_explained(batch_size: int, folder: Path | None) -> Iterator[None]:
    """Running out of memory as one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        kept = "" if folder is None else f"; {folder} keeps the last checkpoint, which goes on with the same batch_size"
        raise InputError(
            f"training ran out of memory: lower batch_size (now {batch_size}), use a smaller network, precision='bf16' "
            f"on a GPU, or free memory{kept}"
        ) from error


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
    except (TorchDynamoException, InductorError, InputError) as error:
        cause = error.__cause__ if isinstance(error, InputError) else error
        if not isinstance(cause, TorchDynamoException | InductorError):
            raise
        reason = " ".join(str(cause).split())[:200]
        raise InputError(f"torch.compile does not work here: train without it ({reason})") from error
    finally:
        model._compiled_call_impl = None
