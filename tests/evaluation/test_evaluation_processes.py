"""Processes share an evaluation: the verdicts of one process, whatever their number, and whichever of them dies."""

import subprocess
import sys
from pathlib import Path

import pytest
from evaluating import evaluated

from lrc.evaluation import Report
from lrc.evaluation.report import numbers
from lrc.utils.files import read_json

SCRIPT = Path(__file__).parents[1].joinpath("evaluating.py")


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=600)


def verdicts(report):
    return {name: result.predictions for name, result in report.results.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return evaluated(tmp_path_factory.mktemp("alone"))


def test_two_processes_find_what_one_finds_each_at_its_share(alone, tmp_path):
    run = torchrun(tmp_path)
    assert run.returncode == 0, run.stderr
    ranks = [(tmp_path / f"{rank}.json").read_text() for rank in (0, 1)]
    assert ranks[0] == ranks[1] == (tmp_path / "report.json").read_text()
    assert verdicts(Report.from_json(ranks[0])) == verdicts(alone)
    shares = [numbers(read_json(path)["rows"]) for path in (tmp_path / "mortal").iterdir()]
    assert sorted(map(len, shares)) == [2, 3, 4, 4, 4, 4]
    assert all(len({row % 2 for row in rows}) == 1 for rows in shares)


def test_where_one_of_two_was_killed_one_goes_on(alone, tmp_path):
    run = torchrun(tmp_path, 5)
    assert run.returncode != 0 and not (tmp_path / "report.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json")}
    assert kept
    assert verdicts(evaluated(tmp_path)) == verdicts(alone)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
