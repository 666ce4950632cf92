"""Pieces of work that have nothing to do with each other: side by side on this machine, or on several.

The processes are loky's, as joblib's are: a script needs no main guard, and one that dies is noticed. The machines are
those of a Dask cluster. Joblib's own way to these waits for ever where a piece kills each worker that takes it, as one
does that needs more memory than there is.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from platform import node
from threading import Lock
from typing import Any, TypeVar

import torch

from lrc.utils.devices import device
from lrc.utils.errors import InputError

__all__ = ["cores", "side_by_side"]

S = TypeVar("S")
T = TypeVar("T")
Results = Iterator[tuple[S, Callable[[], T]]]


@contextmanager
def side_by_side(
    function: Callable[[S], T], items: Sequence[S], *, jobs: int = 0, scheduler: str | None = None
) -> Iterator[Results[S, T]]:
    """A function of each of some items, in processes of this machine or on the workers of a Dask cluster.

    On a CPU each takes one thread. Where one process is enough, it is this one: an item is done when it is asked for.

    Args:
        function: of a module, or a `partial` of one. What it gives, as what it takes, goes through pickle.
        items: what it is called with.
        jobs: processes of this machine; 0 for one a core, or one in all on an accelerator.
        scheduler: address of the scheduler of a Dask cluster instead, "tcp://HOST:8786". A worker that dies is stood in
            for by another. Its workers have one thread each, as `dask worker --nthreads 1` starts them, since torch.fx
            patches modules; and their own files, environment variables and copies of the package.

    Yields:
        An iterator over pairs in the order in which they are done: the item, and a function that gives its result or
        raises its error. Whatever still runs when the context ends is ended too.

    Raises:
        InputError: no Dask, scheduler or cluster that will do; on the way, a process of this machine that was killed.
            One from a worker of Dask names the machine.
    """
    jobs = min(jobs or (cores() if device().type == "cpu" else 1), len(items))
    if scheduler is not None:
        with _cluster(scheduler) as client, _on_workers(client, partial(_located, function), items) as results:
            yield results
    elif jobs < 2:
        yield ((item, partial(function, item)) for item in items)
    else:
        with _in_processes(jobs, partial(_alone, function), items) as results:
            yield results


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _in_processes(jobs: int, function: Callable[[S], T], items: Sequence[S]) -> Iterator[Results[S, T]]:
    from loky import ProcessPoolExecutor

    def results() -> Results[S, T]:
        futures = {pool.submit(function, item): item for item in items}
        for done in as_completed(futures):
            if isinstance(error := done.exception(), BrokenProcessPool):
                raise InputError("a process was killed, for want of memory perhaps: the same again goes on") from error
            yield futures[done], done.result

    pool = ProcessPoolExecutor(jobs)
    try:
        yield results()
    finally:
        pool.shutdown(kill_workers=True)


@contextmanager
def _cluster(scheduler: str) -> Iterator[Any]:
    """A client of the cluster."""
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise InputError("several machines are reached by Dask: pip install 'lrc[cluster]'") from error
    try:
        client = Client(scheduler, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        start = "`dask scheduler` starts one, and says its address"
        raise InputError(f"no Dask scheduler answers at {scheduler!r}: {start}") from error
    with client:
        threads, mend = client.nthreads(), f"`dask worker {scheduler} --nthreads 1` starts one"
        if several := [worker for worker, n in threads.items() if n > 1]:
            raise InputError(f"the worker {several[0]} has {threads[several[0]]} threads, where one is right: {mend}")
        if not threads:
            warnings.warn(f"{scheduler} has no worker yet, and waits for one: {mend}", stacklevel=5)
        yield client


@contextmanager
def _on_workers(client: Any, function: Callable[[S], T], items: Sequence[S]) -> Iterator[Results[S, T]]:
    from dask.distributed import as_completed

    futures = {client.submit(function, item, pure=False): item for item in items}
    try:
        yield ((futures[done], done.result) for done in as_completed(futures, loop=client.loop))
    finally:
        if left := {future.key for future in futures if not future.done()}:
            ours = [worker for worker, keys in client.processing().items() if left & {*keys}]
            client.cancel([*futures])
            with suppress(ValueError):  # of workers that no nanny starts again: these end what they are at
                client.restart_workers(ours, raise_for_error=False)


_ONE = Lock()


def _alone(function: Callable[[S], T], item: S) -> T:
    """In a worker: with one thread, and nothing else meanwhile."""
    with _ONE:
        if device().type == "cpu":
            torch.set_num_threads(1)
        return function(item)


def _located(function: Callable[[S], T], item: S) -> T:
    """The same; what is refused names the machine."""
    try:
        return _alone(function, item)
    except InputError as error:
        raise InputError(f"on {node()}: {error}") from error
