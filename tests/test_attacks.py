"""Attacks against closed forms: on a linear model the best step is known."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, nn

from lrc.attacks import fgsm, pgd
from lrc.attacks.common import box, input_gradient, margin, norms, untouched
from lrc.errors import InputError
from lrc.models import resnet8


class TwoClasses(nn.Module):
    """Logits (0, w.x + b): the loss of label 0 rises along w, so the best Linf perturbation is eps * sign(w)."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x):
        z = (x * self.w).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.fixture
def linear():
    return TwoClasses(torch.randn(1, 3, 4, 4, generator=Generator().manual_seed(1)))


@pytest.fixture
def middle():
    """Images far enough from 0 and 1 that [0, 1] does not bind."""
    return 0.3 + 0.4 * torch.rand(5, 3, 4, 4, generator=Generator().manual_seed(2))


def zeros(x):
    return torch.zeros(len(x), dtype=torch.long)


@pytest.mark.parametrize("random_start", [False, True])
def test_linf_pgd_finds_the_optimum_of_a_linear_model(linear, middle, random_start):
    found = pgd(linear, middle, zeros(middle), eps=0.1, steps=25, step=0.01, random_start=random_start)
    torch.testing.assert_close(found, middle + 0.1 * linear.w.detach().sign(), rtol=0, atol=1e-6)


def test_fgsm_is_one_signed_step(linear, middle):
    found = fgsm(linear, middle, zeros(middle), eps=0.1)
    torch.testing.assert_close(found, middle + 0.1 * linear.w.detach().sign(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("random_start", [False, True])
def test_l2_pgd_finds_the_optimum_of_a_linear_model(linear, middle, random_start):
    found = pgd(linear, middle, zeros(middle), eps=0.5, steps=60, step=0.1, norm="l2", random_start=random_start)
    w = linear.w.detach()
    torch.testing.assert_close(found, middle + 0.5 * w / w.norm(), rtol=0, atol=2e-3)


def test_margin_loss_is_the_difference_of_logits():
    z = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 1.0]])
    assert margin(z, torch.tensor([1, 2])).tolist() == [-1.0, 4.0]


def test_gradient_is_each_images_own(middle):
    """The mean over the batch would make it depend on the batch size; a float sum does not."""
    model = resnet8(width=4).eval()
    x = F.interpolate(middle, size=(32, 32))
    y = zeros(x)
    together = input_gradient(model, x, y, loss=margin)
    alone = torch.cat([input_gradient(model, x[i : i + 1], y[i : i + 1], loss=margin) for i in range(len(x))])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


def test_loss_may_be_a_function(linear, middle):
    """Lowering the true logit's rival: minimizing w.x moves the other way."""
    away = pgd(
        linear, middle, zeros(middle), eps=0.1, steps=1, step=0.1, random_start=False, loss=lambda z, y: -z[:, 1]
    )
    torch.testing.assert_close(away, middle - 0.1 * linear.w.detach().sign(), rtol=0, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    eps=st.floats(0, 1.5),
    seed=st.integers(0, 2**31),
    steps=st.integers(0, 3),
    norm=st.sampled_from(["linf", "l2"]),
    random_start=st.booleans(),
)
def test_result_lies_in_the_ball_and_in_the_unit_cube(eps, seed, steps, norm, random_start):
    generator = Generator().manual_seed(seed)
    x = torch.rand(3, 3, 4, 4, generator=generator).mul(1.2).sub(0.1).clamp(0, 1)  # some pixels at the border
    model = TwoClasses(torch.randn(1, 3, 4, 4, generator=generator))
    found = pgd(model, x, zeros(x), eps=eps, steps=steps, norm=norm, random_start=random_start, generator=generator)
    assert found.min() >= 0 and found.max() <= 1
    if norm == "linf":
        assert ((found - x).abs() <= eps).all()
    else:
        assert norms((found - x).double()).max() <= eps * (1 + 1e-6) + 1e-6


@given(eps=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_box_is_exact_in_floats(eps, seed):
    x = torch.rand(2, 50, generator=Generator().manual_seed(seed))
    lower, upper = box(x, eps)
    assert (x - lower <= eps).all() and (upper - x <= eps).all() and (lower >= 0).all() and (upper <= 1).all()
    assert (lower <= x).all() and (x <= upper).all()


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(training):
    model = resnet8(width=4).train(training)
    model.bn.eval()  # a mixed mode is kept too
    model.fc.weight.requires_grad_(False)
    model.fc.bias.grad = torch.ones(10)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    learning = [p.requires_grad for p in model.parameters()]
    pgd(model, torch.rand(2, 3, 32, 32), torch.tensor([1, 2]), eps=0.1, steps=2)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == learning
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.fc.bias.grad.eq(1).all() and model.stem.weight.grad is None


def test_a_generator_makes_it_repeatable_and_leaves_the_global_one_alone():
    model, x, y = resnet8(width=4), torch.rand(2, 3, 32, 32), torch.tensor([1, 2])
    rng = torch.get_rng_state()
    attack = partial(pgd, model, x, y, eps=0.1, steps=2)
    first, again = attack(generator=Generator().manual_seed(3)), attack(generator=Generator().manual_seed(3))
    other = attack(generator=Generator().manual_seed(4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), rng)


def test_the_model_is_restored_after_an_error():
    model = resnet8(width=4).train()
    with pytest.raises(RuntimeError), untouched(model):
        raise RuntimeError
    assert model.training and model.fc.weight.requires_grad


def test_random_start_fills_the_ball(linear, middle):
    for norm, eps in (("linf", 0.1), ("l2", 0.5)):
        x = middle.repeat(100, 1, 1, 1)
        start = pgd(linear, x, zeros(x), eps=eps, steps=0, norm=norm, generator=Generator().manual_seed(0)) - x
        size = start.abs().flatten(1).amax(1) if norm == "linf" else norms(start).flatten()
        assert size.max() <= eps * (1 + 1e-5) and size.median() > 0.9 * eps  # volume lies near the border
        assert start.mean().abs() < 0.01


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(x=torch.full((1, 3, 4, 4), 200.0)), "divide by 255"),
        (dict(x=torch.full((1, 3, 4, 4), float("nan"))), r"must lie in \[0, 1\]"),
        (dict(eps=-0.1), "eps must be >= 0"),
        (dict(steps=-1), "steps must be >= 0"),
        (dict(norm="l1"), "no norm is called 'l1'"),
        (dict(loss="hinge"), "no loss is called 'hinge'; there are ce, margin"),
    ],
)
def test_bad_input_is_named(linear, change, says):
    arguments = dict(x=torch.full((1, 3, 4, 4), 0.5), eps=0.1, steps=1) | change
    with pytest.raises(InputError, match=says) as error:
        pgd(linear, arguments.pop("x"), torch.tensor([0]), **arguments)
    assert "\n" not in str(error.value)
