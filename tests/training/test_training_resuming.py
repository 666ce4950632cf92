"""What a training survives: being killed at any moment, damaged checkpoints, a full disk."""

import errno
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from killing import coloured, network
from torch import Generator, nn

from lrc.data import Images
from lrc.models import Normalize
from lrc.training import averaging, checkpoints, train
from lrc.training.objectives import adversarial, standard
from lrc.utils.errors import InputError
from lrc.utils.files import locked, write_bytes


def test_killed_at_any_moment_it_goes_on_to_the_same_weights(tmp_path):
    script = Path(__file__).parents[1].joinpath("killing.py")
    result = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 10 and [line for line in lines if not line.endswith("died same")] == []


def run(out, *, epochs=3, model=None, **options):
    """A training of three epochs, or as much of it as `watch` lets through; its weights."""
    model = network() if model is None else model
    train(model, coloured(24), partial(adversarial, steps=1), epochs=epochs, batch_size=8, out=out, **options)
    return model.state_dict()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of an unbroken training, and its folder."""
    out = tmp_path_factory.mktemp("whole")
    return run(out), out


class Broken(Exception):
    pass


def broken(out, *, after=2, **options):
    """A training broken off after so many epochs, with its two checkpoints."""

    def watch(_):
        calls.append(1)
        if len(calls) > after:
            raise Broken
        return {}

    calls = []
    with pytest.raises(Broken):
        run(out, watch=watch, **options)
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
    with pytest.warns(RuntimeWarning, match=r"last\.pt is damaged .*\(.+\): going on from previous\.pt$") as caught:
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


def without(name):
    return lambda kept: kept.pop(name)


def cut(part):
    def doctor(kept):
        name = next(name for name, value in kept[part].items() if value.numel() > 1)
        kept[part][name] = kept[part][name].flatten()[:-1]

    return doctor


def momentum_of_another_shape(kept):
    kept["optimizer"][0]["momentum_buffer"] = torch.zeros(3)


DOCTORED = {
    **{f"no {name}": without(name) for name in ("model", "optimizer", "average", "history", "best", "within")},
    "no arguments": without("arguments"),
    "a weight is missing": lambda kept: kept["model"].popitem(),
    "a weight too many": lambda kept: kept["model"].update(more=torch.zeros(2)),
    "a weight of another shape": cut("model"),
    "a weight that is a text": lambda kept: kept["model"].update({next(iter(kept["model"])): "weights"}),
    "the best weights of another shape": cut("best"),
    "the average of one weight": lambda kept: kept.update(average={"1.fc.bias": torch.zeros(2)}),
    "momentum of another shape": momentum_of_another_shape,
    "a foreign generator": lambda kept: kept.update(
        within={"steps": 1, "loss": torch.zeros(()), "rng": torch.zeros(16, dtype=torch.uint8)}
    ),
    "no steps": lambda kept: kept.update(within={"rng": Generator().get_state(), "loss": torch.zeros(())}),
    "losses of another shape": lambda kept: kept.update(
        within={"steps": 1, "loss": torch.zeros(3), "rng": Generator().get_state()}
    ),
    "an epoch twice": lambda kept: kept.update(history=2 * kept["history"]),
    "a history that is none": lambda kept: kept.update(history=[1, 2]),
}


def rewritten(path, doctor):
    kept = checkpoints.read(path)
    doctor(kept)
    torch.save(kept, buffer := io.BytesIO())
    write_bytes(path, buffer.getvalue())


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a training broken off after two of three epochs."""
    return broken(tmp_path_factory.mktemp("stopped"), validation=coloured(8, 5))


@pytest.mark.parametrize("what", DOCTORED)
def test_a_checkpoint_with_other_contents_is_refused_before_it_does_anything(tmp_path, stopped, what):
    folder = shutil.copytree(stopped, tmp_path / "run")
    for name in ("last.pt", "previous.pt"):
        rewritten(folder / name, DOCTORED[what])
    model = network()
    before = averaging.copied(model)
    with pytest.warns(RuntimeWarning, match=r"last\.pt is damaged .*: going on from previous\.pt$") as warned:
        with pytest.raises(InputError, match=r"previous\.pt is damaged .*: remove it to begin anew$") as caught:
            run(folder, model=model, validation=coloured(8, 5))
    assert "\n" not in str(caught.value) + str(warned[0].message)
    assert equal(before, model.state_dict())


def test_behind_a_checkpoint_with_other_contents_the_older_one_serves(tmp_path, whole):
    rewritten(broken(tmp_path) / "last.pt", cut("model"))
    with pytest.warns(RuntimeWarning, match="going on from previous"):
        assert equal(run(tmp_path), whole[0])


def small(activation=nn.ReLU, *, drop=0.1, mean=0.5, freeze=False, seed=0):
    """A network of 8 x 8 images with something of each kind that its weights do not show."""
    model = nn.Sequential(
        Normalize((mean,) * 3, (0.25,) * 3), nn.Conv2d(3, 4, 3), activation(), nn.Dropout(drop), nn.BatchNorm2d(4),
        nn.Flatten(), nn.Linear(144, 2),
    )  # fmt: skip
    for p in model.parameters():
        nn.init.normal_(p, std=0.1, generator=Generator().manual_seed(seed + p.numel()))
    model[1].requires_grad_(not freeze)
    return model


def noise(seed=0, *, classes=("cat", "dog"), labels=0):
    x = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=Generator().manual_seed(seed))
    return Images(x, (torch.arange(16) + labels) % 2, classes)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder of a training that is over, and the network."""
    out, model = tmp_path_factory.mktemp("ended"), small()
    train(model, noise(), standard, epochs=1, batch_size=8, out=out, validation=noise(1))
    return out, model


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"data": noise(2)}, "data.images"),
        ({"data": noise(labels=1)}, "data.images, data.labels"),
        ({"data": noise(classes=("ship", "truck")), "validation": noise(1, classes=("ship", "truck"))}, "data.classes"),
        ({"validation": noise(2)}, "validation.images"),
        ({"validation": noise(1, labels=1)}, "validation.images, validation.labels"),
        ({"validation": None}, "validation"),
        ({"model": small(nn.Tanh)}, "network.answers, network.layers"),
        ({"model": small(mean=0.4)}, "network.answers, network.layers"),
        ({"model": small(drop=0.2)}, "network.layers"),
        ({"model": small(freeze=True)}, "network.answers, network.layers, network.trainable"),
    ],
)
def test_a_training_on_something_else_is_not_taken_for_this_one(ended, changed, names):
    out, _ = ended
    arguments = {"model": small(), "data": noise(), "validation": noise(1)} | changed
    model = arguments["model"]
    before = averaging.copied(model)
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match=rf"last\.pt holds another run, which differs in {names}") as caught:
        train(objective=standard, epochs=1, batch_size=8, out=out, **arguments)
    assert "\n" not in str(caught.value) and equal(before, model.state_dict())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files


@pytest.mark.parametrize("model", [lambda _: small(), lambda _: small(seed=7), lambda trained: trained])
def test_the_same_network_is_known_again_whatever_its_weights(ended, model):
    """Built anew, with other initial weights, or the one that was trained: the checkpoint brings the weights."""
    out, trained = ended
    expected, again = averaging.copied(trained), model(trained)
    train(again, noise(), standard, epochs=1, batch_size=8, out=out, validation=noise(1))
    assert equal(again.state_dict(), expected)


def test_telling_a_network_leaves_it_as_it_was():
    model = small().train()
    before, buffers = averaging.copied(model), [id(b) for b in model.buffers()]
    state = torch.get_rng_state()
    checkpoints.of_network(model, (3, 8, 8))
    assert equal(before, model.state_dict()) and [id(b) for b in model.buffers()] == buffers
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_full_disk_loses_nothing(tmp_path, whole):
    """Files may grow to half a checkpoint only: then the disk is full."""
    before = {path.name: path.read_bytes() for path in broken(tmp_path, after=1).iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["last.pt"]) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: free some space.*last\.pt") as caught:
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert equal(run(tmp_path), whole[0])


def test_whatever_write_fails_the_training_goes_on_from_before(tmp_path, whole, monkeypatch):
    """Checkpoint, metrics, or any of the renames."""

    def failing(function, call):
        def fail(*arguments):
            calls.append(1)
            if len(calls) == call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments)

        calls = []
        return fail

    for name, count in (("fsync", 2), ("replace", 4)):
        for call in range(1, count + 1):
            out = tmp_path / f"{name}{call}"
            broken(out, after=1)
            with monkeypatch.context() as patch:
                patch.setattr(os, name, failing(getattr(os, name), call))
                with pytest.raises(OSError, match=r"No space left on device: free some space.*last\.pt"):
                    run(out)
            assert equal(run(out), whole[0]), (name, call)


def test_what_is_written_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    done = []
    original = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("sync"), original[0](file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(Path(b).name), original[1](a, b)))
    run(tmp_path, epochs=2)
    written = ["sync", "next.pt", "sync", "metrics.jsonl"]
    assert done == [*written, "last.pt", *written, "previous.pt", "last.pt"]


@pytest.mark.parametrize("where", ["objective", "network", "backward"])
@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")])
def test_out_of_memory_the_last_checkpoint_is_kept(tmp_path, whole, where, error):
    """Of the CPU, whose error is like any other, and of a GPU; in the second of three epochs."""
    model, calls = network(), []

    def grasping(*_):
        if len(calls) == 5:
            calls.append("once")
            torch.empty(2**55) if error is None else raised(error)

    def objective(model, x, y, *, generator):
        calls.append(1)
        if where == "objective":
            grasping()
        loss = adversarial(model, x, y, steps=1, generator=generator)
        if where == "backward":
            loss.register_hook(grasping)
        return loss

    options = {"epochs": 3, "batch_size": 8, "out": tmp_path}
    hook = model.register_forward_pre_hook(grasping) if where == "network" else None
    with pytest.raises(InputError, match=r"out of memory: lower batch_size \(now 8\).*keeps the last") as caught:
        train(model, coloured(24), objective, **options)
    assert "\n" not in str(caught.value) and "once" in calls
    if hook is not None:
        hook.remove()
    train(model, coloured(24), objective, **options)
    assert equal(model.state_dict(), whole[0])


def raised(error):
    raise error


HOLDER = """
import sys, time
from pathlib import Path
from lrc.utils.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_trainings_in_one_folder_are_one_too_many(tmp_path, whole):
    """The second is refused in a line and changes nothing; where the first is killed the folder is free."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process is at work in .*: wait until it ends, or name") as caught:
            run(tmp_path)
        assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == [".lock"]
        holder.kill()
    assert equal(run(tmp_path), whole[0])


def test_a_thread_may_lock_twice_and_no_other_meanwhile(tmp_path):
    def attempt(wait=False):
        try:
            with locked(tmp_path, wait=wait):
                return "locked"
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path):
            assert attempt() == "locked"
            assert "another process is at work" in pool.submit(attempt).result()
            waiting = pool.submit(attempt, wait=True)
            assert not waiting.done()
        assert waiting.result() == "locked"
        assert pool.submit(attempt).result() == "locked"


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
