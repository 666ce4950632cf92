"""FGSM, PGD and momentum FGSM against closed forms (on a linear model the best step is known), losses, bad input."""

import types
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from attacking import Counting, Linear, Strange, TwoClasses, grey, zeros
from torch import Generator, nn

from lrc.attacks import fgsm, mifgsm, pgd
from lrc.attacks.common import check, input_gradient
from lrc.attacks.losses import dlr, fooled, likely_targets, margin, targeted_dlr, targeted_margin
from lrc.attacks.pgd import shrink
from lrc.attacks.threat_model import ball, norms
from lrc.models import resnet8
from lrc.utils.errors import InputError
from lrc.utils.networks import untouched


@pytest.fixture
def linear():
    return TwoClasses(torch.randn(1, 3, 4, 4, generator=Generator().manual_seed(1)))


@pytest.fixture
def middle():
    return grey(5, (3, 4, 4))


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
        (dict(steps=-1), "steps must be a whole number >= 0"),
        (dict(norm="l1"), "no norm is called 'l1'"),
        (dict(loss="hinge"), "no loss is called 'hinge'; there are ce, margin, dlr"),
        (dict(x=torch.full((1, 3, 4, 4), 0.5).half()), "under torch.autocast"),
        (dict(y=torch.tensor([-1])), "labels must be >= 0"),
        (dict(y=torch.tensor([2])), r"label 2 where the network has classes 0..1"),
        (dict(y=torch.tensor([0]), target=torch.tensor([5])), r"label 5 where the network has classes 0..1"),
        (dict(eps=float("inf")), "eps must be >= 0 and finite"),
        (dict(eps=float("nan")), "eps must be >= 0 and finite"),
        (dict(restarts=0), "restarts must be a whole number >= 1"),
    ],
)
def test_bad_input_is_named(linear, change, says):
    arguments = dict(x=torch.full((1, 3, 4, 4), 0.5), y=torch.tensor([0]), eps=0.1, steps=1) | change
    with pytest.raises(InputError, match=says) as error:
        pgd(linear, arguments.pop("x"), arguments.pop("y"), **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (lambda x: x.flatten(1)[:, :1], "two classes or more"),
        (lambda x: x, r"not \(1, 3, 4, 4\)"),
        (lambda x: x[:, :, :1, :1], r"not \(1, 3, 1, 1\): flatten\(1\)"),
        (lambda x: (x.flatten(1),), "not tuple"),
        (lambda x: x.flatten(1).to(torch.cfloat), "real logits"),
        (lambda x: types.SimpleNamespace(logits=x.flatten(1)), r"return the .logits"),
        (lambda x: x @ torch.rand(7, 7), "the network fails on images"),
        (lambda x: None, "not None: return one tensor"),
    ],
)
def test_what_is_no_classifier_is_named(output, says):
    class Other(nn.Module):
        def forward(self, x):
            return output(x)

    with pytest.raises(InputError, match=says):
        pgd(Other(), torch.rand(1, 3, 4, 4), torch.tensor([0]), eps=0.1, steps=1)


def test_labels_and_images_must_be_as_many():
    with pytest.raises(InputError, match="2 images with 1 labels"):
        check(torch.rand(2, 3), torch.tensor([0]), 0.1, "linf")


def test_restarts_go_on_where_an_image_is_not_fooled(middle):
    """An image of class 0 that is fooled by the first run is left out of the second."""
    network = Counting(Linear(2, (3, 4, 4)))
    y = network(middle).argmax(1)
    network.seen.clear()
    pgd(network, middle, y, eps=1e-6, steps=1, restarts=3)
    assert [len(x) for x in network.seen] == [5] * 6  # three times a step and a look
    network.seen.clear()
    pgd(network, middle, y, eps=0.9, steps=1, step=0.9, random_start=False, restarts=3)
    assert [len(x) for x in network.seen] == [5, 5]  # all fooled at the first look


def test_restarts_differ(middle):
    model = Linear(3, (3, 4, 4))
    y = model(middle).argmax(1)
    options = dict(eps=1e-4, steps=0, generator=Generator().manual_seed(0))
    one, two = pgd(model, middle, y, **options), pgd(model, middle, y, restarts=2, **options)
    assert not torch.equal(one, two)


def test_a_target_is_reached(middle):
    model = Linear(4, (3, 4, 4))
    y = model(middle).argmax(1)
    target = (y + 1) % 4
    for attack in (pgd, mifgsm):
        for loss in ("ce", "margin"):
            found = attack(model, middle, y, eps=0.3, steps=20, loss=loss, target=target)
            assert (model(found).argmax(1) == target).all(), (attack, loss)
        pairs = torch.stack([y, target], 1)
        found = attack(model, middle, y, eps=0.3, steps=20, loss="dlr", target=target)
        assert (targeted_dlr(model(found), pairs) > targeted_dlr(model(middle), pairs)).all()
    assert (model(fgsm(model, middle, y, eps=0.3, target=target)).argmax(1) == target).all()


def test_dlr_is_the_papers_ratio():
    z = torch.tensor([[1.0, 5.0, 2.0, 4.0], [1.0, 5.0, 2.0, 4.0]])
    y = torch.tensor([1, 0])
    torch.testing.assert_close(dlr(z, y), torch.tensor([-(5.0 - 4.0) / (5 - 2), (5.0 - 1.0) / (5 - 2)]))
    torch.testing.assert_close(dlr(3 * z + 7, y), dlr(z, y))
    pairs = torch.tensor([[1, 0], [1, 3]])
    expected = torch.tensor([(1.0 - 5.0) / (5 - (2 + 1) / 2), (4.0 - 5.0) / (5 - (2 + 1) / 2)])
    torch.testing.assert_close(targeted_dlr(z, pairs), expected)


@pytest.mark.parametrize("classes", [2, 3])
def test_with_few_classes_dlr_is_a_margin_with_a_gradient(classes):
    z = torch.randn(5, classes, generator=Generator().manual_seed(0)).requires_grad_()
    y = torch.zeros(5, dtype=torch.long)
    pairs = torch.stack([y, y + 1], 1)
    assert torch.equal(targeted_dlr(z, pairs), z[:, 1] - z[:, 0])
    if classes == 2:
        assert torch.equal(dlr(z, y), margin(z, y))
    for values in (dlr(z, y), targeted_dlr(z, pairs)):
        (gradient,) = torch.autograd.grad(values.sum(), z)
        assert (gradient.abs().sum(1) > 0).all()


def test_targeted_margin_is_positive_where_the_target_is_said():
    z = torch.tensor([[1.0, 3.0, 2.0]])
    assert targeted_margin(z, torch.tensor([[0, 1]])).item() == 1
    assert targeted_margin(z, torch.tensor([[0, 2]])).item() == -1


def test_likely_targets_are_the_wrong_classes_in_order():
    z = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    assert likely_targets(z, torch.tensor([1]), count=9).tolist() == [[2, 0, 3]]
    assert likely_targets(z, torch.tensor([2]), count=1).tolist() == [[1]]


def test_fooled_is_another_class_or_logits_that_are_not_finite():
    nan, inf = float("nan"), float("inf")
    z = torch.tensor([[1.0, 2.0], [2.0, 1.0], [nan, 1.0], [inf, 1.0], [1.0, -inf]])
    assert fooled(z, torch.tensor([1, 1, 1, 0, 0])).tolist() == [False, True, True, True, True]
    pairs = torch.tensor([[1, 0], [1, 0], [1, 0], [1, 0], [1, 0]])
    assert fooled(z, pairs).tolist() == [False, True, True, True, True]


def test_momentum_without_decay_is_iterative_fgsm(middle):
    model = resnet8(width=4)
    x = F.interpolate(middle, size=(32, 32))
    plain = pgd(model, x, zeros(x), eps=0.1, steps=5, step=0.02, random_start=False)
    torch.testing.assert_close(mifgsm(model, x, zeros(x), eps=0.1, steps=5, decay=0.0), plain)


def test_momentum_adds_up_gradients_of_length_one(middle):
    """Two steps by hand."""
    model = resnet8(width=4).eval()
    x = F.interpolate(middle, size=(32, 32))

    def direction(z):
        gradient = input_gradient(model, z, zeros(z), loss=cross_entropy)
        return gradient / gradient.abs().sum((1, 2, 3), keepdim=True)

    first = direction(x)
    one = (x + 0.05 * first.sign()).clamp(0, 1)
    second = 0.7 * first + direction(one)
    two = (one + 0.05 * second.sign()).clamp(0, 1)
    torch.testing.assert_close(mifgsm(model, x, zeros(x), eps=0.1, steps=2, decay=0.7), two, rtol=0, atol=1e-6)


def cross_entropy(z, y):
    return F.cross_entropy(z, y, reduction="none")


def test_a_copy_of_full_size_is_the_image_and_a_small_one_lies_on_black(middle):
    one, half, zero = torch.ones(5), torch.full((5,), 0.5), torch.zeros(5)
    torch.testing.assert_close(shrink(middle, one, down=half, right=half), middle)
    small = shrink(middle, half, down=one, right=zero)  # two by two pixels, at the bottom left
    torch.testing.assert_close(small[:, :, 2:, :2], F.avg_pool2d(middle, 2))
    assert small[:, :, :2].eq(0).all() and small[:, :, :, 2:].eq(0).all()


def test_diverse_inputs_change_the_answer_but_not_the_ball(middle):
    model = resnet8(width=4)
    x = F.interpolate(middle, size=(32, 32))
    attack = partial(mifgsm, model, x, zeros(x), eps=0.1, steps=3)
    plain = attack()
    diverse = attack(diversity=0.9, generator=Generator().manual_seed(0))
    assert not torch.equal(plain, diverse) and ball(x, 0.1, "linf").contains(diverse).all()
    with pytest.raises(InputError, match=r"must be \(n, c, h, w\)"):
        mifgsm(Linear(2, (5,)), torch.rand(1, 5), torch.tensor([0]), eps=0.1, diversity=0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_reported_and_the_image_stays_sound(middle, value):
    model = Strange(Linear(3, (3, 4, 4)), limit=0.0, value=value)
    with pytest.warns(RuntimeWarning, match="NaN or infinite logits"):
        found = pgd(model, middle, zeros(middle), eps=0.1, steps=3)
    assert ball(middle, 0.1, "linf").contains(found).all()


def test_a_network_without_a_gradient_is_no_error(middle):
    class Rounded(Linear):
        def forward(self, x):
            return super().forward((x * 4).long() / 4).detach()

    found = pgd(Rounded(3, (3, 4, 4)), middle, zeros(middle), eps=0.1, steps=2, random_start=False)
    assert torch.equal(found, middle)


def test_the_answer_comes_in_the_layout_of_the_images_and_in_memory_of_its_own(middle):
    model, y = Linear(3, (3, 4, 4)), zeros(middle)
    for x in (middle, middle.contiguous(memory_format=torch.channels_last), middle.transpose(2, 3)):
        for eps in (0.0, 0.1):
            found = pgd(model, x, y, eps=eps, steps=1)
            assert found.stride() == x.stride() and found.data_ptr() != x.data_ptr()


def test_in_inference_mode_too(middle):
    model, y = Linear(3, (3, 4, 4)), zeros(middle)
    expected = pgd(model, middle, y, eps=0.1, steps=2, random_start=False)
    with torch.inference_mode():
        assert torch.equal(pgd(model, middle.clone(), y, eps=0.1, steps=2, random_start=False), expected)


def test_under_autocast_the_network_is_in_half_precision_and_the_ball_is_not(middle):
    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = resnet8(width=4)

        def forward(self, x):
            z = self.network(x)
            assert x.dtype == torch.float32 and z.dtype == torch.bfloat16
            return z

    x = F.interpolate(middle, size=(32, 32))
    for norm in ("linf", "l2"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = pgd(Watched(), x, zeros(x), eps=0.1, steps=3, norm=norm)
        assert found.dtype == torch.float32 and ball(x, 0.1, norm).contains(found).all()


def test_in_double_precision(middle):
    model, x = Linear(3, (3, 4, 4)).double(), middle.double()
    found = pgd(model, x, zeros(x), eps=0.1, steps=3, norm="l2")
    assert found.dtype == torch.float64 and ball(x, 0.1, "l2").contains(found).all()


def test_batch_norm_in_train_mode_is_attacked_with_its_running_statistics(middle):
    """The rule: attacks run the network in eval mode, whatever its mode, and put the mode back."""
    model = resnet8(width=4)
    x = F.interpolate(middle, size=(32, 32))
    attack = partial(pgd, model, x, zeros(x), eps=0.1, steps=2, random_start=False)
    evaluated = (model.eval(), attack())[1]
    assert torch.equal((model.train(), attack())[1], evaluated) and model.training
