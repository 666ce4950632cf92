"""What an attack costs: images through the network, forward and backward passes, seconds."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lrc.attacks.journal import sound
from lrc.utils.files import write_text

EVERY = 2.0  # seconds between two states on disk


@dataclass(frozen=True)
class Cost:
    """What an attack spent.

    Attributes:
        seconds: of wall-clock time.
        queries: images that went through the network.
        forward: passes through the network, whatever the size of the batch.
        backward: passes back from its logits. One that gives all rows of a Jacobian at once, as in FAB without targets,
            counts as one, though it costs about as much as one for each class.
    """

    seconds: float = 0.0
    queries: int = 0
    forward: int = 0
    backward: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


class Meter:
    """Adds up what goes through a network while it is watched by `counting`.

    Args:
        path: a file to go on from, if it is there, and in which the sum is kept; a kill loses two seconds of it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.queries = self.forward = self.backward = 0
        self.before = sound(path, _cost) if path is not None and path.exists() else Cost()
        self.began = self.saved = time.perf_counter()

    @property
    def cost(self) -> Cost:
        """All that was spent so far."""
        seconds = time.perf_counter() - self.began
        return self.before + Cost(seconds, self.queries, self.forward, self.backward)

    def seen(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """The forward hook: counts, and waits for the gradient of what came out."""
        self.forward += 1
        self.queries += len(inputs[0])
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(self.returned)
        if time.perf_counter() - self.saved > EVERY:
            self.save()

    def returned(self, gradient: Tensor) -> None:
        """The hook of the logits; it leaves their gradient as it is."""
        self.backward += 1

    def save(self) -> None:
        """Writes the sum beside its file, and moves it there."""
        self.saved = time.perf_counter()
        if self.path is not None:
            write_text(self.path, json.dumps(asdict(self.cost)))


def _cost(path: Path) -> Cost:
    return Cost(**json.loads(path.read_text()))


@contextmanager
def counting(model: nn.Module, path: Path | None = None) -> Iterator[Meter]:
    """Counts the passes through the model, by a forward hook that changes nothing and is gone on leaving.

    What goes through a copy of the model is not counted: LinBP and SGM rewrite one.

    Args:
        model: the network, asked for logits by calling it on a batch.
        path: see `Meter`.
    """
    meter = Meter(path)
    hook = model.register_forward_hook(meter.seen)
    try:
        yield meter
    finally:
        hook.remove()
        meter.save()
