"""Averaged weights, compiled networks, rules for stopping, layers that draw, the log: what each adds and leaves."""

import builtins
import io
import shutil
import sys
import types
from functools import partial

import pytest
import torch
from killing import coloured
from rich.console import Console
from torch import Generator, nn

from lrc.models import resnet8
from lrc.training import averaging, reporting, train
from lrc.training.objectives import adversarial, standard
from lrc.utils.errors import InputError


def tiny(seed=0):
    return resnet8(2, width=4, generator=Generator().manual_seed(seed))


def run(model, **options):
    return train(model, coloured(32), options.pop("objective", standard), batch_size=8, **{"epochs": 2} | options)


def equal(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


# Averaged weights


def test_the_average_is_that_of_the_formula():
    """Weights after each step, the i-th from the last weighing decay^i; whole numbers are the last ones."""
    model, seen, decay = nn.BatchNorm1d(3), [], 0.7
    average = {}
    for step in range(1, 6):
        model(torch.randn(8, 3, generator=Generator().manual_seed(step)))
        model.weight.data.normal_(generator=Generator().manual_seed(step))
        seen.append(averaging.copied(model))
        averaging.update(average, model, decay=decay, step=step)
    weighing = torch.tensor([decay ** (5 - i) for i in range(1, 6)])
    for name in ("weight", "running_mean", "running_var"):
        expected = sum(w * s[name] for w, s in zip(weighing / weighing.sum(), seen, strict=True))
        torch.testing.assert_close(average[name], expected)
    assert average["num_batches_tracked"] == 5


def test_the_average_is_what_is_watched_validated_and_returned():
    watched, live = [], []

    def objective(model, x, y, *, generator):
        live.append(averaging.copied(model))
        return standard(model, x, y)

    def watch(model):
        watched.append(averaging.copied(model))
        return {}

    model = tiny()
    run(model, ema=0.5, watch=watch, objective=objective)
    plain = tiny()
    run(plain)
    assert equal(model.state_dict(), watched[-1])
    assert not equal(model.state_dict(), plain.state_dict())
    average = {}
    for step, weights in enumerate([*live[1:], plain.state_dict()], 1):
        other = tiny()
        other.load_state_dict(weights)
        averaging.update(average, other, decay=0.5, step=step)
    assert equal(average, watched[-1])  # the training itself went on with its own weights


def test_no_decay_is_no_averaging():
    averaged, plain = tiny(), tiny()
    run(averaged, ema=0.0)
    run(plain)
    assert equal(averaged.state_dict(), plain.state_dict())
    with pytest.raises(InputError, match=r"ema, .* must be in \[0, 1\), not 1.0"):
        run(tiny(), ema=1.0)


# Compiled


def small():
    """Little to compile."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=Generator().manual_seed(parameter.numel()))
    return model


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="no compiler")
@pytest.mark.filterwarnings("default")  # of the compiler
def test_a_compiled_network_learns_the_same_and_comes_back_as_it_was():
    compiled, plain = small(), small()
    options = {"objective": partial(adversarial, steps=1), "epochs": 1}
    losses = [run(compiled, compile=True, **options)[0]["loss"], run(plain, **options)[0]["loss"]]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-4)
    assert compiled._compiled_call_impl is None
    assert list(compiled.state_dict()) == list(plain.state_dict())


@pytest.mark.filterwarnings("default")
def test_where_nothing_can_be_compiled_one_line_says_so(monkeypatch, tmp_path):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("/nowhere/c++",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = small().append(nn.Softplus())  # not compiled yet
    with pytest.raises(InputError, match="torch.compile does not work here: train without it") as caught:
        run(model, compile=True)
    assert "\n" not in str(caught.value) and model._compiled_call_impl is None


# Stopping


def test_a_reason_stops_the_training_and_is_kept(tmp_path):
    def collapsed(history):
        return "collapsed" if len(history) == 2 else None

    model = tiny()
    metrics = run(model, epochs=5, stop=collapsed, out=tmp_path)
    assert [m.get("stopped") for m in metrics] == [None, "collapsed"]
    again = tiny(seed=1)
    assert run(again, epochs=5, stop=collapsed, out=tmp_path) == metrics
    assert equal(again.state_dict(), model.state_dict())
    with pytest.raises(InputError, match="which differs in stop: "):
        run(tiny(), epochs=5, out=tmp_path)


def test_weights_that_are_no_numbers_stop_the_training_before_they_are_kept(tmp_path):
    """A finite loss whose last step goes astray."""

    def objective(model, x, y, *, generator):
        steps.append(1)
        loss = standard(model, x, y)
        return loss + 0 * (model.fc.weight.sum() * 0 + 1e-40).sqrt() * 1e38 * 1e38 if len(steps) == 8 else loss

    steps = []
    with pytest.raises(FloatingPointError, match="the weights are no longer finite: lower the learning rate"):
        run(tiny(), objective=objective, out=tmp_path)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert len(state["history"]) == 1 and all(v.isfinite().all() for v in state["model"].values())


def test_an_adversarial_training_that_diverges_says_so_once(recwarn):
    with pytest.raises(FloatingPointError, match="no longer finite"):
        run(tiny(), objective=partial(adversarial, steps=1), lr=1e30)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"checkpoint_every": 0}, "checkpoint_every, a number of steps, must be a whole number >= 1, not 0"),
        ({"tensorboard": True}, "needs a folder"),
        ({"ema": -1}, "ema"),
    ],
)
def test_options_that_cannot_be_are_named(options, says):
    with pytest.raises(InputError, match=says):
        run(tiny(), **options)


# Layers that draw


def test_dropout_draws_from_the_seed_and_leaves_the_global_generator(tmp_path):
    def dropping():
        return nn.Sequential(nn.Dropout2d(0.3), tiny())

    models = [dropping() for _ in range(3)]
    for i, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        torch.manual_seed(i)
        before = torch.get_rng_state()
        run(model, seed=seed, epochs=1)
        assert torch.equal(torch.get_rng_state(), before)
    assert equal(models[0].state_dict(), models[1].state_dict())
    assert not equal(models[0].state_dict(), models[2].state_dict())


# What a person sees


@pytest.fixture
def board(monkeypatch):
    """A stand-in for TensorBoard's writer, and what was written."""
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((str(folder), purge_step))

        def add_scalar(self, name, value, epoch):
            written.append((name, value, epoch))

        def close(self):
            written.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return written


def test_the_log_has_every_number_of_every_epoch(board, tmp_path):
    metrics = run(tiny(), tensorboard=True, out=tmp_path, validation=coloured(8))
    assert board[0] == (str(tmp_path / "tensorboard"), 1) and board[-1] == "closed"
    expected = [(name, value, m["epoch"]) for m in metrics for name, value in m.items() if name != "epoch"]
    assert sorted(board[1:-1]) == sorted(expected)
    run(tiny(), tensorboard=True, out=tmp_path, validation=coloured(8))
    assert board[-2:] == [(str(tmp_path / "tensorboard"), 3), "closed"]


def test_without_tensorboard_one_line_names_what_is_missing(monkeypatch, tmp_path):
    original = builtins.__import__

    def missing(name, *rest):
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match="pip install tensorboard"):
        run(tiny(), tensorboard=True, out=tmp_path)


def test_the_bar_says_images_a_second_and_the_time_left(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(reporting, "Progress", partial(reporting.Progress, console=console))
    run(tiny(), progress=True)
    output = console.file.getvalue()
    assert "epoch 2/2" in output and "images/s" in output and "0:00:0" in output
