"""Terms against their formulas, and what combining objectives does and leaves alone."""

import copy
from functools import partial

import pytest
import torch
from test_objectives import batch, gradients, mean, tiny
from torch import Generator, nn

from lrc import InputError, class_correlation, linear_map
from lrc.attacks import pgd
from lrc.attacks.rng import image_keys, normal
from lrc.models import build
from lrc.training.objectives import (
    METHODS,
    Objective,
    TermInputs,
    adding,
    adversarial,
    awp,
    clustered,
    clustering_term,
    cross_entropy,
    jacobian,
    named,
    orthogonality,
    parseval,
    row_clustering,
    soft_orthogonality,
    spectral_norm,
    standard,
    trades,
    trades_attack,
)
from lrc.training.objectives import objective as objective_module
from lrc.utils import processes

GROUPS = [[0, 1], [2, 3]]


def seen(x, y, z=None, seed=0):
    return TermInputs(x, y, x, torch.zeros(len(x), 4) if z is None else z, Generator().manual_seed(seed))


def test_the_clustering_term_is_the_papers():
    """0.1 times the sum over groups and members, or the mean over groups of the mean over members."""
    z = torch.randn(5, 7, generator=Generator().manual_seed(0), dtype=torch.double)
    groups = [[0, 3, 4], [1, 6]]
    deviations = [[mean((z[i, j] - mean(z[i, k] for k in g)) ** 2 for i in range(5)) for j in g] for g in groups]
    torch.testing.assert_close(clustering_term(z, groups), 0.1 * sum(sum(d) for d in deviations))
    torch.testing.assert_close(clustering_term(z, groups, reduction="mean"), mean(mean(d) for d in deviations))


def test_detaching_the_group_mean_changes_no_gradient_of_the_clustering_term():
    z = torch.randn(5, 7, generator=Generator().manual_seed(0), dtype=torch.double, requires_grad=True)
    groups = [[0, 3, 4], [1, 6]]
    means = {j: z[:, g].mean(1).detach() for g in groups for j in g}
    detached = 0.1 * sum(((z[:, j] - means[j]) ** 2).mean() for j in means)
    ours, theirs = (torch.autograd.grad(value, z)[0] for value in (clustering_term(z, groups), detached))
    torch.testing.assert_close(ours, theirs)
    assert (ours[:, [2, 5]] == 0).all() and (ours[:, [0, 1]] != 0).all()


@pytest.mark.parametrize("groups", [[[0, 1], [1, 2]], [[0, 4]], [[0], []], [[-1, 0]]])
def test_groups_that_are_none_are_refused(groups):
    with pytest.raises(InputError, match="each in one group"):
        clustering_term(torch.zeros(2, 4), groups)


@pytest.mark.parametrize("name", ["adversarial", "trades"])
def test_the_clustering_term_takes_the_logits_that_the_loss_had_of_the_examples(name):
    """The network is not run again for it."""
    model, (x, y, x_adv) = tiny().eval(), batch()
    calls = []
    handle = model.register_forward_hook(lambda *args: calls.append(args[1][0] is x_adv))
    plain = named(name)
    objective = clustered(Objective(plain.loss, lambda *_, generator: x_adv), GROUPS)
    value = objective(model, x, y)
    assert calls == ([True] if name == "adversarial" else [False, True])
    torch.testing.assert_close(value, plain.loss(model, x, y, x_adv) + 0.1 * clustering_term(model(x_adv), GROUPS))
    handle.remove()


def test_terms_need_a_loss_that_runs_the_network_on_the_examples():
    objective = clustered(Objective(lambda model, x, y, x_adv: model(x).sum()), GROUPS)
    model, (x, y, _) = tiny(), batch()
    assert objective(model, x, y).isfinite()
    with pytest.raises(InputError, match="never runs the network on x_adv"):
        adding(Objective(objective.loss, lambda m, x, y, generator: x + 0), objective.terms[0][1], weight=1.0)(
            model, x, y
        )


def test_the_term_on_rows_is_what_their_correlation_lacks():
    """Through a batch norm that the linear map leaves out; the gradient by finite differences."""
    model, (x, y, _) = tiny(), batch()
    C = class_correlation(linear_map(model, (3, 2, 2)), centre=True)
    value = row_clustering(model, seen(x, y), groups=GROUPS)
    torch.testing.assert_close(value, 1 - mean(C[g][:, g].mean() for g in GROUPS))
    W, d = model[4].weight, torch.randn(4, 6, dtype=torch.double, generator=Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad(value, W)
    values = []
    for move in (1e-5, -2e-5):
        W.data += move * d
        values.append(row_clustering(model, seen(x, y), groups=GROUPS).item())
    assert (gradient * d).sum().item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_the_jacobian_term_is_half_the_squared_norm_on_average():
    """Along the direction drawn for each image it is exact, gradient included."""
    model, (x, y, _) = tiny().eval(), batch(3)
    J = torch.autograd.functional.jacobian(model, x, create_graph=True).flatten(3)  # image, class, image, pixel
    v = normal(image_keys(x, Generator().manual_seed(0)), (4,), draw=0).double()
    v = v / v.norm(dim=1, keepdim=True)
    expected = 4 * mean(((v[i] @ J[i, :, i]) ** 2).sum() for i in range(3)) / 2
    ours = jacobian(model, seen(x, y))
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients(ours, model), gradients(expected, model))
    estimate = jacobian(model, seen(x, y), projections=600)
    assert estimate.item() == pytest.approx(mean((J[i, :, i] ** 2).sum() for i in range(3)).item() / 2, rel=0.1)


def test_the_jacobian_term_leaves_the_running_statistics_alone():
    model, (x, y, _) = tiny().train(), batch()
    before = copy.deepcopy(model.state_dict())
    jacobian(model, seen(x, y)).backward()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model[1].weight.grad.abs().sum() > 0


class Weights(nn.Module):
    """A tall, a wide and a convolution's weight, and a vector that is no matrix."""

    def __init__(self):
        super().__init__()
        generator = Generator().manual_seed(0)
        shapes = [(6, 3), (3, 5), (4, 2, 3, 3), (7,)]
        draw = partial(torch.randn, generator=generator, dtype=torch.double)
        self.weights = nn.ParameterList([0.5 * draw(shape) for shape in shapes])


def grams(model, scale=lambda p: 1.0):
    """W^T W or W W^T, the smaller, of each weight as a matrix."""
    for p in list(model.weights)[:3]:
        W = p.flatten(1) * scale(p) ** 0.5
        yield W.T @ W if len(W) > W.shape[1] else W @ W.T


def positions(p):
    return float(p[0, 0].numel())


FORMULAS = {
    "srip": (partial(orthogonality, iterations=2000),
             lambda m: sum(torch.linalg.eigvalsh(G - torch.eye(len(G))).abs().max() for G in grams(m))),
    "soft": (soft_orthogonality, lambda m: sum(((G - torch.eye(len(G))) ** 2).sum() for G in grams(m))),
    "spectral": (partial(spectral_norm, iterations=2000),
                 lambda m: sum(torch.linalg.svdvals(p.flatten(1))[0] ** 2 / 2 for p in list(m.weights)[:3])),
    "parseval": (parseval,
                 lambda m: sum(((G - torch.eye(len(G))) ** 2).sum() / (4 * positions(p))
                               for p, G in zip(list(m.weights)[:3], grams(m, positions), strict=True))),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_terms_on_weights_are_their_formulas_gradient_included(name):
    model, (x, y, _) = Weights(), batch()
    term, formula = FORMULAS[name]
    ours, theirs = term(model, seen(x, y)), formula(model)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, model), gradients(theirs, model), rtol=1e-5, atol=1e-7)


def test_terms_on_weights_vanish_for_orthogonal_ones():
    model, (x, y, _) = nn.Linear(5, 5), batch()
    nn.init.orthogonal_(model.weight, generator=Generator().manual_seed(0))
    for term in (orthogonality, soft_orthogonality, parseval):
        assert abs(term(model, seen(x, y)).item()) < 1e-5
    assert spectral_norm(model, seen(x, y)).item() == pytest.approx(0.5)


def test_a_step_on_the_parseval_term_is_the_retraction():
    model, (x, y, _) = nn.Linear(6, 4, bias=False), batch()
    parseval(model, seen(x, y)).backward()
    W = model.weight.detach()
    torch.testing.assert_close(W - 0.1 * model.weight.grad, 1.1 * W - 0.1 * W @ W.T @ W)


def awp_by_hand(model, x, y, x_adv, gamma):
    """Step up on a copy, the gradient there, and back: the gradients and the moved weights."""
    proxy = copy.deepcopy(model)
    steps = gradients(trades(proxy, x, y, x_adv), proxy)
    moved = copy.deepcopy(model)
    for p, d in zip(moved.parameters(), steps, strict=True):
        if p.dim() > 1:
            p.data += gamma * p.data.norm() / d.norm() * d
    value = trades(moved, x, y, x_adv)
    return value, gradients(value, moved), moved


def test_awp_is_the_gradient_at_worse_weights_and_leaves_the_weights_alone():
    model, (x, y, x_adv) = tiny().train(), batch()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    value, expected, moved = awp_by_hand(model, x, y, x_adv, 0.05)
    crafted = []
    objective = awp(Objective(trades, lambda *_, generator: crafted.append(1) or x_adv), gamma=0.05)
    ours = objective(model, x, y)
    ours.backward()
    torch.testing.assert_close(ours, value)
    torch.testing.assert_close([p.grad for p in model.parameters()], list(expected))
    assert ours > trades(model, x, y, x_adv) and len(crafted) == 1
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert not torch.equal(moved[1].weight, model[1].weight) and torch.equal(moved[1].bias, model[1].bias)


def test_the_scratch_step_of_awp_leaves_the_running_statistics_alone():
    """They move as one pass at the worse weights moves them, and not twice."""
    model, (x, y, x_adv) = tiny().train(), batch()
    _, _, moved = awp_by_hand(model, x, y, x_adv, 0.05)
    awp(Objective(trades, lambda *_, generator: x_adv), gamma=0.05)(model, x, y)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, dict(moved.named_buffers())[name])


def test_awp_moves_each_layer_in_proportion_to_it():
    model, (x, y, x_adv) = tiny().train(), batch()
    worse = objective_module._worse_weights(model, cross_entropy(model, x, y, x_adv), 0.05)
    assert list(worse) == [id(model[1].weight), id(model[4].weight)]
    for p in (model[1].weight, model[4].weight):
        torch.testing.assert_close((worse[id(p)] - p).norm(), 0.05 * p.norm())
    assert torch.equal(objective_module._scaled(torch.zeros(2, 2), torch.ones(2, 2), 0.1), torch.zeros(2, 2))


def test_awp_is_the_same_on_each_of_several_processes(monkeypatch):
    """Its step is along the mean gradient: here the other process' is three times ours."""
    monkeypatch.setattr(processes.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(processes.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(processes.dist, "all_reduce", lambda flat: flat.mul_(4))
    a, b = processes.mean_over_processes((torch.ones(2, 3), torch.arange(2.0)))
    assert torch.equal(a, 2 * torch.ones(2, 3)) and torch.equal(b, 2 * torch.arange(2.0))


def test_terms_see_the_worse_weights_too():
    model, (x, y, _) = tiny(), batch()
    objective = adding(Objective(lambda m, x, *_: 0 * m(x).sum()), lambda m, _: m[1].weight.square().sum(), weight=1.0)
    assert awp(objective, gamma=0.05)(model, x, y).item() == pytest.approx(
        1.05**2 * model[1].weight.square().sum().item()
    )


def test_functions_of_old_are_objectives_by_name():
    model, (x, y, _) = tiny(), batch()
    torch.testing.assert_close(standard(model, x, y), cross_entropy(model, x, y, x))
    made = pgd(model, x, y, eps=0.1, steps=3, step=0.05, generator=Generator().manual_seed(0))
    ours = adversarial(model, x, y, eps=0.1, steps=3, step=0.05, generator=Generator().manual_seed(0))
    torch.testing.assert_close(ours, cross_entropy(model, x, y, made))


def test_unknown_names_list_the_possible_ones():
    with pytest.raises(InputError, match="no method is called 'trade'; there are standard, .*trades, mart"):
        named("trade")
    with pytest.raises(InputError, match="trades has no option 'gamma'; there are beta, eps, steps, step, groups"):
        named("trades", gamma=0.1)
    with pytest.raises(InputError, match="distillation needs the option 'teacher'"):
        named("distillation")
    with pytest.raises(InputError, match="needs groups"):
        named("trades", clustering=0.1)
    with pytest.raises(InputError, match='"ce" or "kl"'):
        trades_attack(tiny(), *batch()[:2], loss="mse")


def test_the_clustering_term_may_be_the_mean():
    made = named("standard", clustering=1.0, groups=GROUPS, reduction="mean")
    expected = clustered(named("standard"), GROUPS, reduction="mean")
    model, (x, y, _) = tiny(), batch()
    assert str(made) == str(expected) != str(clustered(named("standard"), GROUPS, weight=1.0))
    torch.testing.assert_close(made(model, x, y), expected(model, x, y))


def test_an_objective_says_what_it_is_without_addresses():
    a = named("distillation", teacher=tiny(1), awp=0.01, clustering=0.1, groups=GROUPS)
    b = named("distillation", teacher=tiny(1), awp=0.01, clustering=0.1, groups=GROUPS)
    other = named("distillation", teacher=tiny(2), awp=0.01, clustering=0.1, groups=GROUPS)
    assert str(a) == str(b) != str(other) and "0x" not in str(a) and "gamma=0.01" in str(a)
    assert len({str(METHODS[name]()) for name in METHODS if name != "distillation"}) == len(METHODS) - 1


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("jpeg", "cas", "distillation")])
def test_losses_of_half_precision_networks_are_float32(name):
    model = build("resnet8", width=4, generator=Generator().manual_seed(0))
    x, y = torch.rand(8, 3, 32, 32, generator=Generator().manual_seed(1)), torch.arange(8) % 4
    objective = named(name, groups=[[0, 1], [2, 3]], clustering=0.1, awp=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        value = objective(model, x, y, generator=Generator().manual_seed(2))
    value.backward()
    assert value.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
