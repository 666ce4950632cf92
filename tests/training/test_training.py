"""The loop: against SGD written out by hand, resumed against unbroken, and the objectives against their formulas."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator, nn

from lrc.attacks import pgd
from lrc.data import Images, batches
from lrc.models import resnet8
from lrc.training import cosine, milestones, train
from lrc.training.objectives import adversarial, standard
from lrc.utils.errors import InputError
from lrc.utils.hashes import described


def coloured(n=64, seed=0):
    """Two classes told apart by colour, with noise: learnt in a few steps."""
    g = Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randint(0, 80, (n, 3, 32, 32), generator=g)
    x[y == 1, 0] += 120
    return Images(x.to(torch.uint8), y, ("dark", "red"))


def tiny(seed=0):
    return resnet8(2, width=4, generator=Generator().manual_seed(seed))


def same(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(v, other[k]) for k, v in a.state_dict().items())


def test_it_is_sgd_with_momentum_and_decay():
    """The same steps by hand, on a linear model."""
    data, lr, mu, decay = coloured(32), 0.1, 0.9, 0.01
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    w, b = (p.detach().clone().requires_grad_() for p in model.parameters())
    train(model, data, standard, epochs=2, batch_size=16, lr=lr, momentum=mu, weight_decay=decay,
          schedule=lambda done: 1.0, augment=False, seed=3)  # fmt: skip
    velocity = [torch.zeros_like(w), torch.zeros_like(b)]
    for epoch in range(2):
        order = Generator().manual_seed((3 * 100_003 + epoch) * 2)
        for x, y in batches(data, 16, shuffle=True, generator=order):
            F.cross_entropy(x.flatten(1) @ w.T + b, y).backward()
            with torch.no_grad():
                for p, v in zip((w, b), velocity, strict=True):
                    g = p.grad + decay * p
                    v.mul_(mu).add_(g)
                    p -= lr * (g + mu * v)
                    p.grad = None
    torch.testing.assert_close(list(model.parameters()), [w, b], rtol=1e-4, atol=1e-5)


def test_it_learns():
    data = coloured(64)
    model = tiny()
    metrics = train(model, data, standard, epochs=4, batch_size=16, lr=0.05, validation=coloured(32, seed=1))
    assert metrics[-1]["clean"] >= 0.95 and metrics[-1]["loss"] < metrics[0]["loss"]
    assert not model.training


@pytest.mark.parametrize("objective", [standard, partial(adversarial, eps=8 / 255, steps=2)])
def test_a_network_that_views_its_images_as_rows_learns_the_same(objective):
    """The usual `x.view(len(x), -1)`, which fails where convolutions get channels-last images or weights."""
    data, found = coloured(), []
    for flat in (lambda x: x.view(len(x), -1), lambda x: x.contiguous().view(len(x), -1)):
        torch.manual_seed(0)
        model = Flat(flat, len(data.classes), data.x.shape[1:])
        train(model, data, objective, epochs=2, batch_size=16, validation=data.subset(16))
        assert not model._forward_pre_hooks
        found.append(model.state_dict())
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=1e-3, atol=1e-4)


class Flat(nn.Module):
    def __init__(self, flat, classes, shape):
        super().__init__()
        channels, height, width = shape
        self.stem, self.flat = nn.Conv2d(channels, 4, 3), flat
        self.fc = nn.Linear(4 * (height - 2) * (width - 2), classes)

    def forward(self, x):
        return self.fc(self.flat(torch.relu(self.stem(x))))


def test_same_seed_same_weights_and_nothing_global_is_seeded():
    models = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        models.append(tiny())
        train(models[-1], coloured(), partial(adversarial, steps=2), epochs=1, batch_size=32)
        assert torch.equal(torch.get_rng_state(), state)
    assert same(*models)
    other = tiny()
    train(other, coloured(), partial(adversarial, steps=2), epochs=1, batch_size=32, seed=1)
    assert not same(models[0], other)


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2])
def test_broken_off_and_resumed_is_the_same_as_unbroken(tmp_path, after):
    def run(model, out, kill=None):
        def watch(_):
            calls.append(1)
            if kill is not None and len(calls) > kill:
                raise Killed
            return {"seen": 1.0}

        calls = []
        attack, objective = partial(pgd, eps=0.03, steps=1), partial(adversarial, steps=1)
        return train(model, coloured(), objective, epochs=3, batch_size=16, validation=coloured(16, 5),
                     attack=attack, watch=watch, out=out)  # fmt: skip

    whole, broken, resumed = tiny(), tiny(), tiny(seed=9)
    expected = run(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        run(broken, tmp_path / "broken", kill=after)
    metrics = run(resumed, tmp_path / "broken")
    assert same(whole, resumed)
    for record in expected + metrics:
        record.pop("seconds")
    assert metrics == expected
    lines = [json.loads(line) for line in (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]


def test_a_checkpoint_of_other_arguments_is_refused(tmp_path):
    train(tiny(), coloured(), standard, epochs=1, batch_size=16, out=tmp_path)
    with pytest.raises(
        InputError, match=r"last\.pt holds another run, .* in epochs, lr, objective, schedule: remove it"
    ):
        train(tiny(), coloured(), adversarial, epochs=2, batch_size=16, lr=0.01, out=tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        {"schedule": milestones(0.5)},
        {"validation": coloured(16)},
        {"attack": partial(pgd, eps=0.1, steps=1)},
        {"objective": partial(adversarial, steps=3)},
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, other):
    """Each of these changes the result, so going on would give neither training's."""
    arguments = {"objective": partial(adversarial, steps=1), "validation": None, "attack": None, "schedule": None}
    run = {"epochs": 2, "batch_size": 16, "out": tmp_path}
    train(tiny(), coloured(), **arguments, **run)
    with pytest.raises(InputError, match=f"which differs in {next(iter(other))}: "):
        train(tiny(), coloured(), **(arguments | other), **run)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    train(tiny(), coloured(), standard, epochs=1, batch_size=16, out=tmp_path)
    with pytest.raises(InputError, match=r"which differs in network\.answers, network\.layers: "):
        train(resnet8(2, width=6), coloured(), standard, epochs=1, batch_size=16, out=tmp_path)


def test_an_objective_is_known_again_in_another_process():
    """Names of functions and their options, no addresses."""
    assert described(partial(standard, inner=partial(pgd, 1, eps=0.5))) == "standard(inner=pgd(1, eps=0.5))"
    assert described(partial(adversarial, 3)) != described(adversarial)


def test_what_watch_gives_is_kept_as_plain_numbers(tmp_path):
    """NumPy's numbers would make the checkpoint unreadable, tensors the metrics."""

    def watch(_):
        return {"a": np.float32(0.5), "b": torch.tensor(2.0)}

    run = {"epochs": 1, "batch_size": 16, "watch": watch, "out": tmp_path}
    metrics = train(tiny(), coloured(), standard, **run)
    assert metrics[0]["a"] == 0.5 and metrics[0]["b"] == 2.0
    assert train(tiny(), coloured(), standard, **run) == metrics


def test_the_best_epoch_on_validation_is_kept():
    """An objective that ruins the model after the first epoch: the first epoch's weights come back."""
    data, weights = coloured(), []

    def objective(model, x, y, *, generator):
        return standard(model, x, y) * (-100.0 if weights else 1.0)

    def watch(model):
        weights.append({k: v.clone() for k, v in model.state_dict().items()})
        return {}

    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    nn.init.zeros_(model[1].weight)
    metrics = train(model, data, objective, epochs=3, batch_size=16, lr=0.01, augment=False, weight_decay=0,
                    schedule=lambda done: 1.0, validation=data, watch=watch)  # fmt: skip
    scores = [m["clean"] for m in metrics]
    assert scores[0] > max(scores[1:])
    assert torch.equal(model[1].weight, weights[0]["1.weight"])


def test_a_diverging_loss_stops_with_the_last_good_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(tiny(), coloured(), standard, epochs=3, batch_size=16, lr=1e30, out=tmp_path,
              schedule=lambda done: 1e-32 if done < 1 / 3 else 1.0)  # fmt: skip
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert len(state["history"]) == 1 and all(v.isfinite().all() for v in state["model"].values())
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_bf16_stays_near_float32():
    losses = [train(tiny(), coloured(), standard, epochs=2, batch_size=16, lr=0.02, precision=p)[-1]["loss"]
              for p in ("float32", "bf16")]  # fmt: skip
    assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < 0.1


def test_adversarial_objective_is_cross_entropy_on_pgd_examples_made_in_eval_mode():
    model, data = tiny(), coloured(16)
    x, y = data.float(), data.y
    loss = adversarial(model.train(), x, y, eps=0.05, steps=3, step=0.02, generator=Generator().manual_seed(1))
    model.load_state_dict(tiny().state_dict())  # the training pass has moved the running statistics
    examples = pgd(model.eval(), x, y, eps=0.05, steps=3, step=0.02, generator=Generator().manual_seed(1))
    torch.testing.assert_close(loss, F.cross_entropy(model.train()(examples), y))
    assert loss.requires_grad


def test_running_statistics_see_the_training_pass_alone():
    """One adversarial step moves them once (by the examples), not once a crafting step."""
    model, data = tiny().train(), coloured(16)
    adversarial(model, data.float(), data.y, steps=5)
    assert model.bn.num_batches_tracked == 1


def test_schedules():
    warm = cosine(warmup=0.25)
    assert warm(0.125) == pytest.approx(0.5) and warm(0.25) == 1 and warm(0.625) == pytest.approx(0.5)
    assert warm(0.9999) < 1e-4 and math.isclose(cosine(warmup=0)(0), 1)
    paper = milestones(75 / 200, 90 / 200)
    assert [paper(e / 200) for e in (0, 74, 75, 89, 90, 199)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(InputError, match="batch_size must be in 1..64, the number of images, not 128"):
        train(tiny(), coloured(), standard, epochs=1)
