"""Checkpoints: atomic, with a digest that is verified when they are read, the one before kept."""

import io
import os
import warnings
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lrc.data import Images
from lrc.training import averaging
from lrc.training.averaging import Weights
from lrc.utils.errors import InputError
from lrc.utils.files import read_bytes, write_bytes, write_lines
from lrc.utils.hashes import digest, fingerprint, probe_answers, same_answers
from lrc.utils.runs import differences, same_run

LAST, PREVIOUS = "last.pt", "previous.pt"
NEXT = "next.pt"  # written, but not yet in its place

Record = dict[str, Any]


@dataclass(frozen=True)
class State:
    """All that changes in a training.

    Attributes:
        model, optimizer: with what they remember.
        average: moving average of the weights; empty without one.
        history: metrics, a record an epoch.
        best: weights of the best epoch so far; empty without validation.
        within: of an epoch broken off: steps done, sum of their losses, the generator's state; else empty.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Weights = field(default_factory=dict)
    history: list[Record] = field(default_factory=list)
    best: Weights = field(default_factory=dict)
    within: Record = field(default_factory=dict)


def contents(state: State) -> Record:
    """What `restore` sets a training to."""
    kept = {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()["state"]}
    return kept | {name: getattr(state, name) for name in ("average", "history", "best", "within")}


def save(folder: Path, arguments: Record, state: State) -> None:
    """Writes checkpoint and metrics; the checkpoint before becomes `previous.pt`.

    Raises:
        OSError: they cannot be written (the disk is full, say); the checkpoints that were there still are.
    """
    buffer = io.BytesIO()
    torch.save(contents(state) | {"arguments": arguments}, buffer)
    try:
        write_bytes(folder / NEXT, buffer.getvalue())
        write_lines(folder / "metrics.jsonl", state.history)
        if (folder / LAST).exists():
            os.replace(folder / LAST, folder / PREVIOUS)
        os.replace(folder / NEXT, folder / LAST)
    except OSError as error:
        (folder / NEXT).unlink(missing_ok=True)
        reason = f"{error.strerror or error}: free some space, and start again to go on from the checkpoint before"
        raise OSError(error.errno, reason, str(folder / LAST)) from error


def resume(folder: Path, arguments: Record, state: State) -> None:
    """Sets the training to the newest checkpoint that is whole; does nothing where there is none.

    Raises:
        InputError: none is whole, or it was made with other arguments; the training is as it was.

    Warns:
        RuntimeWarning: the newest is damaged, and the one before is used.
    """
    paths = [path for path in (folder / LAST, folder / PREVIOUS) if path.exists()]
    for path in paths:
        before = deepcopy(contents(state))
        try:
            kept = read(path)
            there_with = _alike(kept["arguments"], arguments)
            if not differences(there_with, arguments):
                restore(state, kept)
        except Exception as error:  # damage looks like many things
            restore(state, before)
            reason = str(error) if isinstance(error, InputError) else f"{path} is damaged ({_line(error)})"
            reason = reason.removesuffix(": remove it to begin anew")
            if path == paths[-1]:
                raise InputError(f"{reason}: remove it to begin anew") from error
            warnings.warn(f"{reason}: going on from {PREVIOUS}", RuntimeWarning, stacklevel=3)
        else:
            same_run(there_with, arguments, place=path, mend="remove it, or name another folder")
            return


def read(path: Path) -> Record:
    """A checkpoint, on the CPU. Raises whatever a damaged file leads to."""
    return dict(torch.load(io.BytesIO(read_bytes(path)), map_location="cpu", weights_only=True))


@torch.no_grad()
def restore(state: State, kept: Record) -> None:
    """Sets the training to a checkpoint. Raises whatever contents that do not fit lead to, with the training half set.

    What the optimizer remembers is taken over, not its options.
    """
    device, shapes = next(state.model.parameters()).device, {k: v.shape for k, v in state.model.state_dict().items()}
    state.model.load_state_dict(kept["model"])
    options = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": kept["optimizer"], "param_groups": options})
    for p, held in state.optimizer.state.items():
        if not all(value is None or value.shape == p.shape for value in held.values()):
            raise ValueError("the momentum has another shape than its weight")
    for weights, name in ((state.average, "average"), (state.best, "best")):
        if kept[name] and {k: v.shape for k, v in kept[name].items()} != shapes:
            raise ValueError(f"the weights called {name!r} are not those of the network")
        weights.clear()
        weights.update({key: value.to(device) for key, value in kept[name].items()})
    if [record["epoch"] for record in kept["history"]] != list(range(1, len(kept["history"]) + 1)):
        raise ValueError("the metrics are not those of one epoch after the other")
    state.history[:] = kept["history"]
    within = dict(kept["within"])
    if within:
        Generator().set_state(within["rng"])
        within = {"steps": int(within["steps"]), "loss": within["loss"].reshape(()), "rng": within["rng"]}
    state.within.clear()
    state.within.update(within)


def of_data(images: Images | None) -> Record | None:
    """What tells images from others."""
    if images is None:
        return None
    return {"images": images.digest(), "labels": digest([images.y]), "classes": list(images.classes)}


def of_network(model: nn.Module, shape: tuple[int, ...]) -> Record:
    """What tells a network from others, whatever its trainable weights and running statistics are.

    These are set to fixed values for the time: what is left are the layers with their constants, and the answers to a
    few images of that shape. A training that goes on brings its own weights, so initial ones do not count.
    """
    learned = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    norms = [name for name, module in model.named_modules() if isinstance(module, _NormBase)]
    weights = averaging.copied(model)
    for name, value in weights.items():
        if name in learned:
            value.copy_(_fixed(value))
        elif name.rpartition(".")[0] in norms and "running" in name or name.endswith("num_batches_tracked"):
            value.fill_(name.endswith("running_var"))
    modes = {module: module.training for module in model.modules()}
    try:
        with averaging.using(weights, model.eval()):
            answers = probe_answers(model, shape, device=next(model.parameters()).device)
            return {"layers": fingerprint(model), "trainable": sorted(learned), "answers": answers}
    finally:
        for module, mode in modes.items():
            module.training = mode


def _fixed(like: Tensor) -> Float[Tensor, "*shape"]:
    """Numbers that depend on the shape alone, of the size that weights have; vectors lie in [0.5, 1]."""
    k = torch.arange(like.numel()) % 10007
    value = ((k * k * 7919 + k * 4729) % 10007).double().reshape(like.shape) / 10007
    return 0.5 + value / 2 if like.dim() < 2 else (value - 0.5) * (24 / like[0].numel()) ** 0.5


def _alike(there: Record, wanted: Record) -> Record:
    """The arguments that are there, with the wanted answers of the network where theirs are the same but for rounding.

    Frozen layers and another device make the last digits differ.
    """
    one, other = there["network"], wanted["network"]
    if same_answers(one["answers"], other["answers"]):
        return there | {"network": one | {"answers": other["answers"]}}
    return there


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__
