"""AutoAttack: budgets, verdicts, few classes, strange logits."""

from functools import partial

import pytest
import torch
from attacking import Counting, Linear, Strange, boundary, grey
from torch import Generator

from lrc.attacks import Verdicts, apgd, autoattack, fab, fgsm, pgd, square
from lrc.attacks.autoattack import standard
from lrc.attacks.threat_model import ball
from lrc.utils.errors import InputError

SHAPE = (3, 6, 6)
SMALL = {"apgd": partial(apgd, steps=5), "fab": partial(fab, steps=3, targets=2), "square": partial(square, queries=20)}


def seeded(seed=0):
    return Generator().manual_seed(seed)


def linear(classes=3, n=12):
    model, x = Linear(classes, SHAPE), grey(n, SHAPE)
    return model, x, model(x).argmax(1)


def test_the_standard_version_has_the_standard_budgets():
    parts = {name: (attack.func, attack.keywords) for name, attack in standard("l2").items()}
    assert parts == {
        "apgd-ce": (apgd, {"loss": "ce", "steps": 100, "norm": "l2"}),
        "apgd-t": (apgd, {"loss": "dlr", "targets": 9, "steps": 100, "norm": "l2"}),
        "fab-t": (fab, {"targets": 9, "steps": 100, "norm": "l2"}),
        "square": (square, {"queries": 5000, "horizon": 10_000, "norm": "l2"}),
    }


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_verdict_on_a_linear_model_is_the_closed_form(classes, norm):
    """All parts run to their end on the image out of reach; heads of 2, 3 and 4 classes."""
    model, x, y = linear(classes, n=6)
    reach = boundary(model, x, norm=norm)
    order = reach.argsort()
    x, y, reach = x[order[-3:]], y[order[-3:]], reach[order[-3:]]
    short = standard(norm) | {"square": partial(square, queries=300, norm=norm)}
    version = "standard" if norm == "linf" else short  # the whole of Square would take 10 s
    found = autoattack(model, x, y, eps=reach[1:].mean().item(), norm=norm, version=version, generator=seeded())
    assert found.fooled.tolist() == [True, True, False] and found.fooled_by[2] is None
    assert set(found.fooled_by[:2]) <= {"apgd-ce", "apgd-t", "fab-t"}
    assert torch.equal(found.x_adv[2], x[2])


def test_verdicts_are_what_the_model_says_when_asked_again():
    model, x, y = linear(n=40)
    y[:3] = (y[:3] + 1) % 3
    eps = boundary(model, x, norm="linf").median().item()
    found = autoattack(model, x, y, eps=eps, version=SMALL, generator=seeded())
    assert torch.equal(model(found.x_adv).argmax(1) != y, found.fooled)
    assert ball(x, eps, "linf").contains(found.x_adv).all()
    assert found.fooled_by[:3] == ("clean",) * 3 and torch.equal(found.x_adv[:3], x[:3])
    assert found.clean_accuracy == 37 / 40
    assert found.robust_accuracy == pytest.approx(1 - found.fooled.float().mean().item())
    assert list(found.accuracies) == ["clean", "apgd", "fab", "square"]
    assert sorted(found.accuracies.values(), reverse=True) == list(found.accuracies.values())
    assert not found.nonfinite.any() and 0 < found.robust_accuracy < found.clean_accuracy


def test_a_fooled_image_is_dropped():
    """The second part sees only what the first left over."""
    model, x, y = linear()
    seen = []

    def idle(model, x, y, *, eps, generator):
        seen.append(len(x))
        return x

    eps = boundary(model, x, norm="linf").median().item()
    found = autoattack(model, x, y, eps=eps, version={"pgd": partial(pgd, steps=40), "idle": idle})
    assert seen == [int((~found.fooled).sum())] and 0 < seen[0] < len(x)


@pytest.mark.parametrize("size", [1, 5, 7, 100])
def test_the_size_of_the_batches_changes_no_answer(size):
    model, x, y = linear()
    eps = boundary(model, x, norm="linf").median().item()
    whole = autoattack(model, x, y, eps=eps, version=SMALL, generator=seeded())
    parts = autoattack(model, x, y, eps=eps, version=SMALL, generator=seeded(), batch_size=size)
    assert parts.fooled_by == whole.fooled_by and torch.equal(parts.x_adv, whole.x_adv)


def test_a_generator_makes_it_repeatable():
    model, x, y = linear()
    runs = [autoattack(model, x, y, eps=0.01, version=SMALL, generator=seeded(s)).x_adv for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_count_as_fooled_and_are_reported(value):
    model, x, y = linear()
    strange = Strange(model, limit=x.mean((1, 2, 3)).median().item(), value=value)
    with pytest.warns(RuntimeWarning, match=r"\d+ of 12 images gave NaN or infinite logits"):
        found = autoattack(strange, x, y, eps=1e-4, version=SMALL)
    assert found.nonfinite.sum() >= 5 and found.fooled[found.nonfinite].all()
    assert (~strange(found.x_adv).isfinite()).any(1).equal(found.nonfinite)


def test_images_come_back_without_a_graph():
    model, x, y = linear()
    found = autoattack(model, x.requires_grad_(), y, eps=0.01, version=SMALL)
    assert not found.x_adv.requires_grad and x.requires_grad and not found.nonfinite.requires_grad


def test_an_attack_that_leaves_the_ball_is_refused():
    model, x, y = linear()
    with pytest.raises(InputError, match=r"_far\(by=2\) left the ball of radius 0.01 in linf"):
        autoattack(model, x, y, eps=0.01, version={"far": partial(_far, by=2)})


def nothing(model, x, y):
    return None


def _far(model, x, y, *, eps, generator, by):
    return fgsm(model, x, y, eps=by * eps)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(version="quick"), "no version is called 'quick'"),
        (dict(version={"own": partial(pgd, queries=3)}), r"pgd\(queries=3\) cannot be called as an attack .*queries"),
        (dict(version={"own": nothing}), "nothing gave NoneType, not images"),
        (dict(batch_size=0), "batch_size must be a whole number >= 1"),
        (dict(norm="l1"), "no norm is called 'l1'"),
        (dict(x=torch.full((12, 5), 0.5)), "needs images"),
        (dict(y=torch.full((12,), 3)), r"label 3 where the network has classes 0..2"),
    ],
)
def test_bad_input_is_named(change, says):
    model, x, y = linear()
    with pytest.raises(InputError, match=says):
        autoattack(**dict(model=model, x=x, y=y, eps=0.1) | change)


def test_verdicts_of_nothing():
    model, x, y = linear(n=0)
    found = autoattack(model, x, y, eps=0.1)
    assert isinstance(found, Verdicts) and found.fooled_by == () and found.robust_accuracy == 1.0


def test_each_image_is_asked_about_no_more_than_the_budget_allows():
    network = Counting(Linear(3, SHAPE))
    x = grey(2, SHAPE)
    y = network(x).argmax(1)
    network.seen.clear()
    autoattack(network, x, y, eps=1e-7, version={"square": partial(square, queries=50)})
    assert (
        network.images == 2 * (50 + 1 + 2) + 4
    )  # queries, the image before them, and the verdict on each part; the probe
