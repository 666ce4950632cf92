"""This process among others: those that `torchrun` started, on one machine or several; by Lightning's Fabric."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from os import environ
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from lrc.utils.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
else:
    Fabric = Any  # imported when processes are joined: it takes two seconds

__all__ = ["Fabric", "first_of", "gathered", "in_turn", "join", "launched", "mean_over_processes", "place"]

T = TypeVar("T")
PRECISIONS: dict[str, Any] = {"float32": "32-true", "bf16": "bf16-mixed"}


def launched() -> bool:
    """Whether `torchrun` started this process."""
    return dist.is_torchelastic_launched()


def join(device: torch.device, *, precision: str = "float32") -> Fabric:
    """This process among those that `torchrun` started, on one machine or several; without `torchrun`, it alone.

    Args:
        device: where this process computes; under `torchrun` only its kind counts, and each gets one of its own.
        precision: "float32" or "bf16".

    Raises InputError: another precision.
    """
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}, expected one of {', '.join(PRECISIONS)}")
    package = "lightning_fabric" if find_spec("lightning_fabric") else "lightning.fabric"  # there are two distributions
    engine, environments = import_module(package), import_module(f"{package}.plugins.environments")
    strategies = import_module(f"{package}.strategies")
    options: dict[str, Any] = {"accelerator": device.type, "precision": PRECISIONS[precision]}
    if environments.TorchElasticEnvironment.detect():
        local = int(environ.get("LOCAL_WORLD_SIZE", 1))
        patient = strategies.DDPStrategy(timeout=timedelta(days=1))  # one may wait for another through a whole attack
        options |= {"strategy": patient, "devices": local, "num_nodes": int(environ["WORLD_SIZE"]) // local}
        options["plugins"] = environments.TorchElasticEnvironment()
    else:
        strategy = strategies.SingleDeviceStrategy(device)  # "auto" takes the CPU for devices that it does not know
        options |= {"strategy": strategy, "devices": [device.index or 0] if device.type == "cuda" else 1}
        options["plugins"] = environments.LightningEnvironment()  # named, so that it looks for no cluster
    with _quiet(package):
        fabric = engine.Fabric(**options)
        fabric.launch()
    return fabric


@contextmanager
def _quiet(package: str) -> Iterator[None]:
    """Without the notes that the package logs about what it was asked for, and the number of threads that it sets."""
    logger = logging.getLogger(package.partition(".")[0])
    level, threads, named = logger.level, torch.get_num_threads(), environ.get("OMP_NUM_THREADS")
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if named is None:
            environ.pop("OMP_NUM_THREADS", None)


def place(fabric: Fabric | None) -> tuple[int, int]:
    """Number of this process, and how many there are. Raises InputError: something else than `join` gives."""
    if fabric is not None and not hasattr(fabric, "global_rank"):
        raise InputError(f"fabric must be what lrc.utils.processes.join gives, not {type(fabric).__name__}")
    return (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)


def first_of(fabric: Fabric | None, make: Callable[[], T]) -> T:
    """What the first process makes, in all of them."""
    if fabric is None or fabric.world_size == 1:
        return make()
    return cast(T, fabric.broadcast(make() if fabric.is_global_zero else None))


def mean_over_processes(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The mean of each tensor over the processes, by one exchange; with one process alone the tensors themselves."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensors
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    parts = (flat / dist.get_world_size()).split([t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def gathered(own: list[T], fabric: Fabric | None) -> list[T]:
    """The lists of all processes as one, in all of them."""
    if fabric is None or fabric.world_size == 1:
        return own
    every: list[list[T]] = [[] for _ in range(fabric.world_size)]
    dist.all_gather_object(every, own)
    return [each for some in every for each in some]


def in_turn(own: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], like: Tensor) -> Iterator[Tensor]:
    """A tensor of each of the first processes, one after the other, in all of them.

    Args:
        own: that of this process; none in a process beyond the first ones.
        shapes: of the tensors, in the order of the processes.
        like: a tensor of their type, on the device of this process.
    """
    for rank, shape in enumerate(shapes):
        tensor = own[0].contiguous() if rank == dist.get_rank() else like.new_empty(shape)
        dist.broadcast(tensor, rank)
        yield tensor
