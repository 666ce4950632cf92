"""Claims: what holds, what fails, what is printed and recorded."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lrc.experiments.claims import ClaimError, claim
from lrc.utils.errors import InputError


@pytest.fixture
def scorecard(tmp_path, monkeypatch):
    for name in ("LRC_PROFILE", "LRC_LIMIT", "LRC_CHAPTER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LRC_SCORECARD", str(tmp_path / "scorecard.jsonl"))

    def records():
        return [json.loads(line) for line in (tmp_path / "scorecard.jsonl").read_text().splitlines()]

    return records


@pytest.mark.parametrize(
    ("value", "bound"),
    [
        (0.5, {"at_least": 0.5}),
        (0.5, {"at_most": 0.5}),
        (-1, {"at_most": 0}),
        (True, {"at_least": 1}),
        (torch.tensor(2.0), {"at_least": torch.tensor(1)}),
        (np.float32(2), {"at_least": 1}),
        (float("inf"), {"at_least": 1}),
    ],
)
def test_what_holds_is_printed_without_the_value(scorecard, capsys, value, bound):
    claim("robust classes cluster", value, **bound)
    assert capsys.readouterr().out == "holds: robust classes cluster\n"
    assert [r["holds"] for r in scorecard()] == [True]


@pytest.mark.parametrize(
    ("value", "bound"),
    [
        (0.4999, {"at_least": 0.5}),
        (0.5001, {"at_most": 0.5}),
        (float("nan"), {"at_least": 0}),
        (float("nan"), {"at_most": 0}),
        (1, {"at_least": float("nan")}),
        (1, {"at_most": float("nan")}),
        (False, {"at_least": 1}),
    ],
)
def test_what_does_not_hold_raises_and_is_recorded(scorecard, capsys, value, bound):
    with pytest.raises(ClaimError, match="does not hold: robust classes cluster"):
        claim("robust classes cluster", value, **bound)
    assert capsys.readouterr().out == ""
    assert [r["holds"] for r in scorecard()] == [False]


def test_a_failed_claim_is_an_assertion_error():
    assert issubclass(ClaimError, AssertionError)


@pytest.mark.parametrize("bounds", [{}, {"at_least": 0, "at_most": 1}])
def test_exactly_one_bound(bounds):
    with pytest.raises(InputError, match="either at_least or at_most"):
        claim("something", 1, **bounds)


def test_record(scorecard, monkeypatch):
    monkeypatch.setenv("LRC_PROFILE", "cifar")
    monkeypatch.setenv("LRC_CHAPTER", "03_clusters")
    claim("it clusters", 0.75, at_least=0.5)
    claim("it does not", 0.25, at_most=0.5, chapter="elsewhere")
    first, second = scorecard()
    assert first == {
        "chapter": "03_clusters",
        "claim": "it clusters",
        "value": 0.75,
        "relation": "at least",
        "bound": 0.5,
        "holds": True,
        "enforced": True,
        "profile": "cifar",
    }
    assert (second["chapter"], second["relation"]) == ("elsewhere", "at most")


def test_without_a_scorecard_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("LRC_SCORECARD", raising=False)
    monkeypatch.chdir(tmp_path)
    claim("two is more than one", 2, at_least=1)
    assert not list(tmp_path.iterdir())


def test_limited_runs_claim_nothing(scorecard, capsys, monkeypatch):
    monkeypatch.setenv("LRC_LIMIT", "8")
    claim("it clusters", 0, at_least=0.5)
    assert capsys.readouterr().out == "not tested (LRC_LIMIT): it clusters\n"
    assert [(r["holds"], r["enforced"]) for r in scorecard()] == [(False, False)]


def test_records_of_chapters_that_run_at_once_do_not_mix(scorecard):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: claim("x" * 3000, i, at_least=0), range(64)))
    assert sorted(r["value"] for r in scorecard()) == list(range(64))
