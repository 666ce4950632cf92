"""Checkpoints: written whole or not at all, verified when read, the one before kept."""

import io
import json
import os
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrc.training.averaging import Weights
from lrc.utils.errors import InputError

__all__ = ["LAST", "PREVIOUS", "Record", "State", "contents", "load", "restore", "save"]

LAST, PREVIOUS = "last.pt", "previous.pt"

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
    kept = {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict(), "average": state.average}
    return kept | {"history": state.history, "best": state.best, "within": state.within}


def save(folder: Path, arguments: Record, state: State) -> None:
    """Writes checkpoint and metrics; the checkpoint before becomes `previous.pt`.

    Raises:
        OSError: they cannot be written (the disk is full, say); the checkpoints that were there still are.
    """
    torch.save(
        contents(state) | {"arguments": arguments}, buffer := io.BytesIO()
    )  # a full disk raises no OSError there
    lines = "".join(json.dumps(record) + "\n" for record in state.history)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _written(folder / f"{LAST}.part", buffer.getbuffer())
        _written(folder / "metrics.jsonl.part", lines.encode())
    except OSError as error:
        for name in (LAST, "metrics.jsonl"):
            (folder / f"{name}.part").unlink(missing_ok=True)
        reason = f"{error.strerror or error}: free some space, and start again to go on from the checkpoint before"
        raise OSError(error.errno, reason, str(folder / LAST)) from error
    if (folder / LAST).exists():
        os.replace(folder / LAST, folder / PREVIOUS)
    os.replace(folder / f"{LAST}.part", folder / LAST)
    os.replace(folder / "metrics.jsonl.part", folder / "metrics.jsonl")


def _written(path: Path, content: bytes | memoryview) -> None:
    """The file, on the disk when this returns: a rename must not overtake what it renames."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def load(folder: Path, arguments: Record) -> Record:
    """The newest checkpoint that is whole, on the CPU; empty where there is none.

    Raises:
        InputError: none is whole, or it was made with other arguments.

    Warns:
        RuntimeWarning: the newest is damaged, and the one before is used.
    """
    there = [path for path in (folder / LAST, folder / PREVIOUS) if path.exists()]
    for path in there:
        try:
            return _of(arguments, read(path), path)
        except InputError:
            raise
        except Exception as error:  # damage looks like many things
            reason = " ".join(str(error).split())[:100]
            if path == there[-1]:
                raise InputError(f"{path} is damaged ({reason}): remove it to begin anew") from error
            warnings.warn(f"{path} is damaged ({reason}): going on from {PREVIOUS}", RuntimeWarning, stacklevel=2)
    return {}


def read(path: Path) -> Record:
    """A checkpoint, on the CPU, its checksums tested: it is a ZIP archive, which has one for each of its parts.

    Raises whatever a damaged file leads to.
    """
    with zipfile.ZipFile(path) as archive:
        if (part := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {part}")
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def _of(arguments: Record, kept: Record, path: Path) -> Record:
    """The checkpoint, if it is of a training with these arguments; what older ones do not know was None."""
    differ = [name for name, value in arguments.items() if kept["arguments"].get(name) != value]
    if differ:
        raise InputError(
            f"{path} was made with other arguments ({', '.join(differ)}): remove it, or name another folder"
        )
    return kept


def restore(state: State, kept: Record) -> None:
    """Sets the training to a checkpoint."""
    device = next(state.model.parameters()).device
    state.model.load_state_dict(kept["model"])
    state.optimizer.load_state_dict(kept["optimizer"])
    state.history[:] = kept["history"]
    state.within.update(kept.get("within", {}))
    for weights, name in ((state.average, "average"), (state.best, "best")):
        weights.update({key: value.to(device) for key, value in kept.get(name, {}).items()})
