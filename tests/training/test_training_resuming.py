"""What a training survives: being killed at any moment, damaged checkpoints, a full disk."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from killing import coloured, network

from lrc.training import checkpoints, train
from lrc.training.objectives import adversarial
from lrc.utils.errors import InputError


def test_killed_at_any_moment_it_goes_on_to_the_same_weights(tmp_path):
    script = Path(__file__).parents[1].joinpath("killing.py")
    result = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 10 and [line for line in lines if not line.endswith("died same")] == []


def run(out, *, epochs=3, watch=None):
    """A training of three epochs, or as much of it as `watch` lets through; its weights."""
    model = network()
    train(model, coloured(24), partial(adversarial, steps=1), epochs=epochs, batch_size=8, out=out, watch=watch)
    return model.state_dict()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of an unbroken training, and its folder."""
    out = tmp_path_factory.mktemp("whole")
    return run(out), out


class Broken(Exception):
    pass


def broken(out, *, after=2):
    """A training broken off after so many epochs, with its two checkpoints."""

    def watch(_):
        calls.append(1)
        if len(calls) > after:
            raise Broken
        return {}

    calls = []
    with pytest.raises(Broken):
        run(out, watch=watch)
    return out


def equal(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip(path, *, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, halve, empty, flip])
def test_a_damaged_checkpoint_is_named_and_the_older_one_used(tmp_path, whole, damage):
    damage(broken(tmp_path) / "last.pt")
    with pytest.warns(RuntimeWarning, match=r"last\.pt is damaged \(.+\): going on from previous\.pt$") as caught:
        weights = run(tmp_path)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert equal(weights, whole[0])


def test_the_checkpoint_before_serves_where_the_last_is_gone(tmp_path, whole):
    """As when the process was killed between the two renames."""
    (broken(tmp_path) / "last.pt").unlink()
    assert equal(run(tmp_path), whole[0])


def test_without_a_whole_checkpoint_the_user_is_asked(tmp_path):
    folder = broken(tmp_path)
    for name in ("last.pt", "previous.pt"):
        halve(folder / name)
    with pytest.warns(RuntimeWarning), pytest.raises(InputError, match=r"previous\.pt is damaged .*: remove it"):
        run(tmp_path)


def test_no_flipped_bit_changes_what_is_loaded(tmp_path, whole):
    """It is noticed, or lies where nothing is kept."""
    content = (whole[1] / "last.pt").read_bytes()
    expected = torch.load(whole[1] / "last.pt", weights_only=True)["model"]
    path, noticed = tmp_path / "last.pt", 0
    for at in range(0, 400):
        path.write_bytes(content)
        flip(path, at=at / 400)
        try:
            found = checkpoints.read(path)["model"]
        except Exception:
            noticed += 1
        else:
            assert equal(found, expected), at
    assert noticed > 200


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("file", ["last.pt", "metrics.jsonl"])
def test_a_full_disk_loses_nothing(tmp_path, whole, file):
    def watch(_):
        (tmp_path / f"{file}.part").symlink_to("/dev/full")
        return {}

    before = {path.name: path.read_bytes() for path in broken(tmp_path, after=1).iterdir()}
    with pytest.raises(OSError, match=r"No space left on device: free some space.*last\.pt") as caught:
        run(tmp_path, watch=watch)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert equal(run(tmp_path), whole[0])


def test_what_is_written_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    done = []
    original = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("sync"), original[0](file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(Path(b).name), original[1](a, b)))
    run(tmp_path, epochs=2)
    assert done == ["sync", "sync", "last.pt", "metrics.jsonl"] + [
        "sync", "sync", "previous.pt", "last.pt", "metrics.jsonl"
    ]  # fmt: skip


def test_checkpoints_within_an_epoch_change_nothing(tmp_path, whole):
    model, lines = network(), []

    def objective(*batch, generator):
        if (tmp_path / "last.pt").exists():
            lines.append(len(torch.load(tmp_path / "last.pt", weights_only=True)["history"]))
        return adversarial(*batch, steps=1, generator=generator)

    options = {"epochs": 3, "batch_size": 8, "out": tmp_path, "checkpoint_every": 1}
    metrics = train(model, coloured(24), objective, **options)
    assert equal(model.state_dict(), whole[0])
    assert lines == [0, 0, 1, 1, 1, 2, 2, 2]
    expected = [json.loads(line)["loss"] for line in (whole[1] / "metrics.jsonl").read_text().splitlines()]
    assert [record["loss"] for record in metrics] == expected
