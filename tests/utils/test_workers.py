"""Work side by side: by processes of this machine, and by a cluster of Dask where it is installed."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from lrc.utils.errors import InputError
from lrc.utils.workers import cores, side_by_side


def square(n):
    """Of 3 nothing comes; of others what is asked, the process, and how many threads it takes."""
    if n == 3:
        raise InputError("3 has none")
    return n * n, os.getpid(), torch.get_num_threads()


def outcomes(results):
    found = {}
    for item, result in results:
        try:
            found[item] = result()
        except InputError as error:
            found[item] = str(error)
    return found


def stuck(name, *, folder):
    """One waits until the other has begun, and is killed; the other goes on for a minute."""
    began = folder / "began"
    if name == "killed":
        while not began.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    began.with_suffix(".part").write_text(str(os.getpid()))
    began.with_suffix(".part").rename(began)
    time.sleep(60)


def ended(folder):
    """Whether the process that goes on for a minute is gone, at once or soon."""
    pid = int((folder / "began").read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes():
            return True
        time.sleep(0.05)
    return False


linux = pytest.mark.skipif(not Path("/proc").exists(), reason="looks at /proc")


def test_processes_do_all_of_it_and_one_error_stops_no_other():
    with side_by_side(square, range(5), jobs=2) as results:
        found = outcomes(results)
    assert found.pop(3) == "3 has none" and {n: f[0] for n, f in found.items()} == {0: 0, 1: 1, 2: 4, 4: 16}
    assert os.getpid() not in {f[1] for f in found.values()} and {f[2] for f in found.values()} == {1}


@linux
def test_a_process_that_is_killed_is_one_line_and_ends_the_others(tmp_path):
    with pytest.raises(InputError, match="^a process was killed, for want of memory perhaps: the same again goes on$"):
        with side_by_side(partial(stuck, folder=tmp_path), ["other", "killed"], jobs=2) as results:
            outcomes(results)
    assert ended(tmp_path)


@linux
def test_an_interrupt_ends_the_processes(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with side_by_side(partial(stuck, folder=tmp_path), ["other", "another"], jobs=2) as results:
            threading_interrupt(tmp_path / "began")
            outcomes(results)
    assert ended(tmp_path)


def threading_interrupt(path):
    """Interrupts this process, as Ctrl-C does, as soon as the file is there."""
    from threading import Thread

    def interrupt():
        while not path.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=interrupt, daemon=True).start()


@pytest.mark.parametrize(("device", "jobs", "items"), [("cpu", 1, 3), ("meta", 0, 3), ("cpu", 0, 1), ("cpu", 0, 0)])
def test_where_one_process_is_enough_each_item_is_done_when_it_is_asked_for(monkeypatch, device, jobs, items):
    """On an accelerator one works at a time, unless more are asked for."""
    monkeypatch.setenv("LRC_DEVICE", device)
    done: list[int] = []
    with side_by_side(done.append, range(items), jobs=jobs) as results:
        for n, result in results:
            result()
            assert done == [*range(n + 1)]
    assert len(done) == items


def test_cores_are_those_that_this_process_may_use():
    assert 1 <= cores() <= (os.cpu_count() or 1)


# -- a cluster of Dask --------------------------------------------------------------------------------------------


def test_without_dask_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(InputError, match=r"^several machines are reached by Dask: pip install 'lrc\[cluster\]'$"):
        with side_by_side(square, [1], scheduler="tcp://127.0.0.1:8786"):
            pass


@pytest.fixture
def cluster(monkeypatch):
    """Two workers of one thread, started again when they die."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]))
    options = {"processes": True, "dashboard_address": None, "silence_logs": "CRITICAL"}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **options) as running:
        yield running


def once(name, *, folder):
    """Kills the worker that takes it first; `always` kills all that do."""
    mark = folder / name
    if name == "always" or (name == "first" and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return name, torch.get_num_threads()


@pytest.mark.filterwarnings("default")  # of libraries that are not ours
def test_what_a_worker_of_dask_left_another_does(cluster, tmp_path):
    with side_by_side(square, range(4), scheduler=cluster.scheduler_address) as results:
        found = outcomes(results)
    assert {n: f[0] for n, f in found.items() if n != 3} == {0: 0, 1: 1, 2: 4}
    assert found[3] == f"on {os.uname().nodename}: 3 has none"
    with side_by_side(partial(once, folder=tmp_path), ["first", "b"], scheduler=cluster.scheduler_address) as results:
        assert outcomes(results) == {"first": ("first", 1), "b": ("b", 1)}
    with side_by_side(partial(once, folder=tmp_path), ["always", "b"], scheduler=cluster.scheduler_address) as results:
        for name, result in results:
            if name == "b":
                assert result() == ("b", 1)
            else:
                with pytest.raises(Exception, match="workers died"):
                    result()


@linux
@pytest.mark.filterwarnings("default")
def test_an_interrupt_ends_what_workers_of_dask_do(cluster, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with side_by_side(partial(stuck, folder=tmp_path), ["other"], scheduler=cluster.scheduler_address):
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        with side_by_side(partial(stuck, folder=tmp_path), ["other"], scheduler=cluster.scheduler_address) as results:
            threading_interrupt(tmp_path / "began")
            outcomes(results)
    assert ended(tmp_path)


@pytest.mark.filterwarnings("default")
def test_workers_of_several_threads_are_refused():
    distributed = pytest.importorskip("distributed")
    options = {"processes": False, "dashboard_address": None, "silence_logs": "CRITICAL"}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, **options) as running:
        with pytest.raises(InputError, match="has 2 threads, where one is right: `dask worker .* --nthreads 1`"):
            with side_by_side(square, [1], scheduler=running.scheduler_address):
                pass
