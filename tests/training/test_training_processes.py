"""Two processes compute what one computes: losses, batch norm, weights, accuracies; and only one of them writes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from spreading import OBJECTIVES, coloured, keys_counted, trained

from lrc.training import train
from lrc.training.objectives import standard
from lrc.utils.errors import InputError
from lrc.utils.processes import join

SCRIPT = Path(__file__).parents[1].joinpath("spreading.py")


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT, folder]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_compute_what_one_computes(processes, name):
    alone, (first, second) = trained(name, double=True), (found[name] for found in processes)
    mean = (first["losses"] + second["losses"]) / 2  # each is over half of the batch
    torch.testing.assert_close(mean, alone["losses"], rtol=1e-9, atol=0)
    torch.testing.assert_close(first["figures"], alone["figures"])
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(second["weights"], first["weights"], rtol=0, atol=0)
    assert not torch.allclose(first["losses"], second["losses"], rtol=1e-4)  # they had different images


def test_two_processes_give_the_losses_of_one_in_single_precision_too(processes):
    """Of a smooth objective: where a gradient is as small as rounding, a step by its sign may go either way."""
    alone, (first, second) = trained("standard", double=False), (found["float"] for found in processes)
    torch.testing.assert_close((first["losses"] + second["losses"]) / 2, alone["losses"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first["figures"], alone["figures"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_every_image_is_counted_once(processes, n):
    shares = [found["counted"][n] for found in processes]
    assert sorted(torch.cat(shares).tolist()) == sorted(keys_counted(n).tolist())
    assert abs(len(shares[0]) - len(shares[1])) <= 1


def test_only_the_first_process_writes(processes):
    first, second = (found["written"] for found in processes)
    assert first["who"] == ["saves", "is watched", "saves"] and second["who"] == []
    assert first["metrics"] == second["metrics"]


def test_all_begin_with_the_weights_of_the_first_or_of_its_checkpoint(processes):
    first, second = (found["written"] for found in processes)
    for name in ("weights", "again"):
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
    torch.testing.assert_close(first["again"], first["weights"], rtol=0, atol=0)


def test_a_batch_that_cannot_be_shared_is_refused(processes):
    says = "batch_size (9) must be a multiple of the number of processes (2)"
    assert [found["refused"] for found in processes] == [says, says]


def test_alone_nothing_is_joined(capfd):
    team = join(torch.device("cpu"), precision="bf16")
    assert (team.world_size, team.global_rank, team.device) == (1, 0, torch.device("cpu"))
    assert not torch.distributed.is_initialized()
    assert capfd.readouterr() == ("", "")


def test_an_unknown_precision_is_named():
    with pytest.raises(InputError, match="precision 'bf8', expected one of float32, bf16"):
        train(torch.nn.Linear(1, 1), coloured(4), standard, epochs=1, batch_size=2, precision="bf8")
