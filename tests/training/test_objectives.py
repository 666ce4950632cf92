"""Losses against their formulas written out number by number, and how the examples for them are made."""

import inspect
import math
from functools import partial

import pytest
import torch
from attacking import TwoClasses
from torch import Generator, nn

from lrc import InputError
from lrc.attacks import fgsm, pgd
from lrc.training.objectives import (
    clustr,
    collapsed,
    cross_entropy,
    distillation,
    gradient_norm_attack,
    local_flatness,
    local_linearity,
    local_linearity_attack,
    magnet,
    mart,
    named,
    trades,
    trades_attack,
    watch_collapse,
)


def tiny(seed=0):
    """A smooth network with batch norm, 12 pixels to 4 logits, in double precision."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4)).double()
    generator = Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.double)
    return model


def batch(n=6, seed=1):
    generator = Generator().manual_seed(seed)
    x, noise = torch.rand(2, n, 3, 2, 2, generator=generator, dtype=torch.double)
    return x, torch.arange(n) % 4, (x + 0.1 * (noise - 0.5)).clamp(0, 1)


def gradients(value, model):
    return torch.autograd.grad(value, list(model.parameters()), allow_unused=True, materialize_grads=True)


def softmax(z):
    e = z.exp()
    return e / e.sum(1, keepdim=True)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def kl(p, q):
    return sum(p[k] * (p[k].log() - q[k].log()) for k in range(len(p)))


def input_gradient(model, x, y):
    """The losses of the images, the leaf that they are of, and the gradient of their sum by it."""
    x = x.clone().requires_grad_()
    losses = torch.stack([-p[k].log() for p, k in zip(softmax(model(x)), y, strict=True)])
    return losses, torch.autograd.grad(losses.sum(), x, create_graph=True)[0]


def by_hand(name, model, x, y, x_adv):
    """The formula of the loss, image by image and class by class."""
    teacher, n = tiny(seed=5).eval(), range(len(x))
    if name == "temperature":
        return mean(-p[k].log() for p, k in zip(softmax(model(x_adv) / 20), y, strict=True))
    if name == "smoothing":
        q = softmax(model(x_adv))
        return mean(-sum((0.9 * (k == y[i]) + 0.1 / 4) * q[i, k].log() for k in range(4)) for i in n)
    if name == "distillation":
        t, q = softmax(teacher(x) / 20), softmax(model(x_adv) / 20)
        return mean(-sum(t[i, k].detach() * q[i, k].log() for k in range(4)) for i in n)
    if name == "linearity":
        (at, slope), (at_adv, _) = input_gradient(model, x, y), input_gradient(model, x_adv, y)
        rise = [((x_adv[i] - x[i]) * slope[i]).sum() for i in n]
        return mean(at[i] + 4 * abs(at_adv[i] - at[i] - rise[i]) + 3 * abs(rise[i]) for i in n)
    if name == "flatness":
        (at, _), (_, slope) = input_gradient(model, x, y), input_gradient(model, x_adv, y)
        return mean(at[i] + 0.5 * slope[i].abs().sum() for i in n)
    p, q = softmax(model(x)), softmax(model(x_adv))
    if name == "cross_entropy":
        return mean(-q[i, y[i]].log() for i in n)
    if name == "trades":
        return mean(-p[i, y[i]].log() for i in n) + 6 * sum(kl(p[i], q[i]) for i in n) / len(x)
    rivals = [max(q[i, k] for k in range(4) if k != y[i]) for i in n]
    bce = [-q[i, y[i]].log() - torch.log(1.0001 - rivals[i]) for i in n]
    return mean(bce) + 5 * sum(kl(p[i], q[i]) * (1 - p[i, y[i]]) for i in n) / len(x)


LOSSES = {
    "cross_entropy": cross_entropy,
    "temperature": partial(cross_entropy, temperature=20.0),
    "smoothing": partial(cross_entropy, smoothing=0.1),
    "trades": trades,
    "mart": mart,
    "distillation": partial(distillation, teacher=tiny(seed=5).eval()),
    "linearity": local_linearity,
    "flatness": partial(local_flatness, weight=0.5),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_their_formulas_gradient_included(name):
    model, (x, y, x_adv) = tiny(), batch()
    ours, theirs = LOSSES[name](model, x, y, x_adv), by_hand(name, model, x, y, x_adv)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, model), gradients(theirs, model))
    assert all(p.grad is None for p in model.parameters())


def test_the_gradient_of_trades_goes_through_both_branches():
    """It is that of the value, by finite differences; with the clean branch detached it would be another."""
    model, (x, y, x_adv) = tiny(), batch()
    W, d = model[4].weight, torch.randn(4, 6, dtype=torch.double, generator=Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad(trades(model, x, y, x_adv), W)
    values = []
    for move in (1e-6, -2e-6):
        W.data += move * d
        values.append(trades(model, x, y, x_adv).item())
    W.data += 1e-6 * d
    assert (gradient * d).sum().item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6)
    p, log_q = model(x).detach().softmax(1), model(x_adv).log_softmax(1)
    one_sided = nn.functional.cross_entropy(model(x), y) + 6 * nn.functional.kl_div(log_q, p, reduction="batchmean")
    assert not torch.allclose(gradient, torch.autograd.grad(one_sided, W)[0], rtol=0.01)


def test_trades_is_a_mean_over_images_not_over_classes():
    model, (x, y, x_adv) = tiny(), batch()
    term = trades(model, x, y, x_adv, beta=1.0) - trades(model, x, y, x_adv, beta=0.0)
    p, log_q = model(x).softmax(1), model(x_adv).log_softmax(1)
    torch.testing.assert_close(term, nn.functional.kl_div(log_q, p, reduction="batchmean"))


def test_mart_stays_finite_where_a_wrong_class_is_certain():
    """Its rival is the likeliest wrong class, certain here: the constant inside the logarithm is what is left."""
    z = torch.tensor([[0.0, 200.0, 0.0], [0.0, 0.0, 200.0]], requires_grad=True)
    value = mart(lambda_model(z), torch.zeros(2, 1), torch.tensor([0, 2]), torch.zeros(2, 1), beta=0.0)
    certain, right = 200 - math.log(1.0001 - 1), -math.log(1.0001)
    assert value.item() == pytest.approx((certain + right) / 2, rel=1e-3)
    assert torch.autograd.grad(value, z)[0].isfinite().all()


def lambda_model(z):
    class Constant(nn.Module):
        def forward(self, x):
            return z

    return Constant()


def test_clustr_draws_the_features_of_a_class_together():
    model, (x, y, x_adv) = tiny(), batch(8)
    f = model[:4](x)
    centres = [mean(f[i] for i in range(8) if y[i] == k) for k in range(4)]
    own = [((f[i] - centres[y[i]]) ** 2).sum() for i in range(8)]
    s = sum(own) / 7
    pulls = []
    for i in range(8):
        others = sum(torch.exp(-((f[i] - centres[k]) ** 2).sum() / (2 * s)) for k in range(4) if k != y[i])
        pulls.append(-torch.log(torch.exp(-own[i] / (2 * s) - 1) / others))
    p, q = softmax(model(x)), softmax(model(x_adv))
    expected = mean(-p[i, y[i]].log() for i in range(8)) + mean(max(v, 0 * v) for v in pulls)
    expected = expected + 2 * mean(kl(p[i], q[i]) for i in range(8))
    ours = clustr(model, x, y, x_adv, beta=2.0)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients(ours, model), gradients(expected, model))
    assert not model[4]._forward_pre_hooks


@pytest.mark.parametrize("y", [[0, 1, 2], [1, 1, 1], [3, 3, 0]])
def test_clusters_of_single_images_and_a_single_cluster_are_finite(y):
    features = torch.randn(3, 5, generator=Generator().manual_seed(0), requires_grad=True)
    value = magnet(features, torch.tensor(y))
    assert value >= 0 and torch.autograd.grad(value, features)[0].isfinite().all()


class Log(nn.Module):
    """Notes in which mode and with which parameters a network runs."""

    def __init__(self, network):
        super().__init__()
        self.network, self.runs = network, []

    def forward(self, x):
        self.runs.append((self.network.training, any(p.requires_grad for p in self.network.parameters())))
        return self.network(x)


CRAFTED = ["fast", "adversarial", "trades", "mart", "local_linearity", "local_flatness", "clustr"]


@pytest.mark.parametrize("name", CRAFTED)
def test_examples_are_made_in_eval_mode_with_frozen_parameters(name):
    """And the running statistics move with the passes of the loss alone."""
    model, (x, y, _) = Log(tiny().train()), batch()
    named(name)(model, x, y).backward()
    passes = 1 if name in ("fast", "adversarial") else 2
    assert model.runs[-passes:] == [(True, True)] * passes
    crafting = model.runs[:-passes]
    assert crafting and set(crafting) == {(False, False)}
    assert model.network[2].num_batches_tracked == passes
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_eps_is_8_of_255_everywhere():
    """Not the 0.031 of some published scripts."""
    for name in CRAFTED:
        assert named(name).attack.keywords["eps"] == 8 / 255 != 0.031
    assert all(
        inspect.signature(craft).parameters["eps"].default == 8 / 255
        for craft in (trades_attack, local_linearity_attack, gradient_norm_attack)
    )
    assert named("adversarial").attack.keywords["step"] == named("trades").attack.keywords["step"] == 0.007
    assert named("trades").loss.keywords == {"beta": 6.0} and named("mart").loss.keywords == {"beta": 5.0}


def test_fast_training_steps_further_than_eps():
    """A step of 1.25 eps from a uniform start ends between eps / 4 and eps, at eps five times of eight."""
    model, x, y = TwoClasses(torch.ones(3, 32, 32)), torch.full((6, 3, 32, 32), 0.5), torch.zeros(6, dtype=torch.long)
    made = named("fast").attack(model, x, y, generator=Generator().manual_seed(3))
    assert torch.equal(made, fgsm(model, x, y, eps=8 / 255, random_start=True, generator=Generator().manual_seed(3)))
    reached = (made - x) / (8 / 255)
    assert (reached > 0.9999).double().mean().item() == pytest.approx(5 / 8, abs=0.02)
    assert reached.min().item() == pytest.approx(0.25, abs=0.01)
    made = named("fast", random_start=False).attack(model, x, y)
    torch.testing.assert_close(made, x + 8 / 255)


def test_examples_that_start_nearby():
    x = torch.full((2, 3, 40, 40), 0.5)
    start = trades_attack(TwoClasses(torch.ones(3, 40, 40)), x, torch.tensor([0, 1]), steps=0)
    assert (start - x).std() == pytest.approx(0.001, rel=0.05) and abs((start - x).mean()) < 1e-4
    again = [trades_attack(tiny(), *batch()[:2], generator=Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*again)


def test_attacks_may_start_anywhere_but_end_in_the_ball():
    model, (x, y, _) = tiny().eval(), batch()
    assert torch.equal(pgd(model, x, y, eps=0.1, steps=0, start=x + 5), (x + 0.1).clamp(max=1))
    with pytest.raises(InputError, match="leave out start or restarts"):
        pgd(model, x, y, eps=0.1, steps=1, start=x, restarts=2)


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_examples_climb_their_loss_by_signed_steps(loss):
    model, (x, y, _) = tiny().eval(), batch()
    start = trades_attack(model, x, y, steps=0, generator=Generator().manual_seed(4))
    z = start
    for _ in range(10):
        z = z.detach().requires_grad_()
        p, q = softmax(model(x)).detach(), softmax(model(z))
        rows = [kl(p[i], q[i]) if loss == "kl" else -q[i, y[i]].log() for i in range(6)]
        z = (z + 0.007 * torch.autograd.grad(sum(rows), z)[0].sign()).clamp(x - 8 / 255, x + 8 / 255).clamp(0, 1)
    torch.testing.assert_close(trades_attack(model, x, y, loss=loss, generator=Generator().manual_seed(4)), z)


@pytest.mark.parametrize("craft", [local_linearity_attack, gradient_norm_attack])
def test_the_most_curved_and_the_steepest_image_lie_in_a_corner(craft):
    """Of a linear two-class network: in the corner of the ball where the loss of label 0 is largest, or the other."""
    w = torch.randn(3, 4, 4, generator=Generator().manual_seed(0))
    x = torch.full((5, 3, 4, 4), 0.5)
    made = craft(TwoClasses(w), x, torch.zeros(5, dtype=torch.long), eps=0.125, steps=3)
    signs = ((made - x) / 0.125 * w.sign()).flatten(1)
    assert (signs.abs() == 1).all() and (signs == signs[:, :1]).all()
    assert craft is local_linearity_attack or (signs == 1).all()


def test_a_collapse_is_told_from_learning_nothing():
    good, lost = {"fgsm": 0.5, "pgd": 0.4}, {"fgsm": 0.9, "pgd": 0.01}
    assert collapsed([good, lost]) and not collapsed([good]) and not collapsed([lost, good]) and not collapsed([])
    assert not collapsed([good, {"fgsm": 0.1, "pgd": 0.1}]) and collapsed([good, {"clean": 1.0}, lost])
    chance = [{"fgsm": 0.12, "pgd": 0.12}, {"fgsm": 0.11, "pgd": 0.05}]
    assert not collapsed(chance) and not collapsed([{"fgsm": 0.45, "pgd": 0.2}])
    assert (
        collapsed([{"fgsm": 0.7, "pgd": 0.0}])
        == "catastrophic overfitting: accuracy 0.70 under FGSM, but 0.00 under PGD"
    )
    model, (x, y, _) = tiny(), batch()
    watch = watch_collapse(x, y, eps=0.2)
    assert watch(model) == watch(model) and model.training
    made = pgd(model, x, y, eps=0.2, steps=10, generator=Generator().manual_seed(0))
    assert watch(model)["pgd"] == pytest.approx((model.eval()(made).argmax(1) == y).double().mean().item())
