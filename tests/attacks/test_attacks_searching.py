"""APGD, FAB, C&W, Square, NES and NATTACK against closed forms on linear models, and against their papers."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attacking import Counting, Linear, Strange, boundary, grey
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Generator, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lrc.attacks import apgd, cw, fab, nattack, nes, pgd, square
from lrc.attacks.apgd import _judge, checkpoints
from lrc.attacks.apgd import _State as _Walk
from lrc.attacks.common import Victim, ascent, check
from lrc.attacks.fab import _boundary, to_hyperplane
from lrc.attacks.losses import cross_entropy, dlr, margin
from lrc.attacks.rng import image_keys, uniform
from lrc.attacks.square import _first, _propose, _State, share_at, side
from lrc.attacks.threat_model import ball, distance, unit
from lrc.utils.errors import InputError

SHAPE = (3, 6, 6)


def linear(classes, n=12, seed=0):
    """A linear model, images, what it says about them, and a generator."""
    model = Linear(classes, SHAPE, seed)
    x = grey(n, SHAPE, seed + 1)
    return model, x, model(x).argmax(1), Generator().manual_seed(seed)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targets", [0, 9])
def test_fab_finds_the_nearest_boundary_of_a_linear_model(classes, norm, targets):
    model, x, y, generator = linear(classes)
    found = fab(model, x, y, norm=norm, targets=targets, steps=20, generator=generator)
    assert (model(found).argmax(1) != y).all()
    ratio = distance(found, x, norm) / boundary(model, x, norm=norm)
    assert 1 - 1e-4 <= ratio.min() and ratio.max() <= 1.05


class Tanh(torch.autograd.Function):
    """With a way back of its own, which `torch.func` cannot take for many classes at once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return gradient * (1 - y**2)


class Small(nn.Module):
    def __init__(self, classes, tanh=torch.tanh):
        super().__init__()
        generator = Generator().manual_seed(0)
        self.tanh, self.first, self.last = tanh, nn.Linear(108, 8), nn.Linear(8, classes)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5

    def forward(self, x):
        return self.last(self.tanh(self.first(x.flatten(1))))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_nearest_linearized_boundary_is_that_of_the_whole_jacobian(norm):
    model, x = Small(7).double(), grey(5, SHAPE).double()
    y = model(x).argmax(1)
    victim = Victim(model, highest=6)
    gap, slope, hit = _boundary(victim, x, y, norm=norm)
    for i in range(5):
        J = torch.autograd.functional.jacobian(lambda z: model(z[None])[0], x[i])
        gaps, slopes = model(x[i : i + 1])[0] - model(x[i : i + 1])[0, y[i]], J - J[y[i]]
        away = gaps.abs() / slopes.flatten(1).norm(p=1 if norm == "linf" else 2, dim=1)
        away[y[i]] = torch.inf
        torch.testing.assert_close(gap[i], gaps[away.argmin()])
        torch.testing.assert_close(slope[i], slopes[away.argmin()])
    assert not hit.any()


def test_fab_takes_a_way_back_of_ones_own():
    x = grey(6, SHAPE)
    y = Small(5)(x).argmax(1)
    found, expected = (fab(Small(5, tanh), x, y, steps=5) for tanh in (Tanh.apply, torch.tanh))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_memory_of_fab_does_not_grow_with_the_number_of_classes():
    """No tensor that it makes is larger than the batch of images."""

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                self.numel = max(self.numel, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
            return out

    x = grey(40, SHAPE)
    for classes in (3, 60):
        model = Small(classes)
        with Largest() as largest:
            fab(model, x, model(x).argmax(1), steps=2)
        assert largest.numel == x.numel()


@pytest.mark.parametrize("classes", [2, 4])
def test_cw_finds_the_nearest_boundary_of_a_linear_model(classes):
    """To 5 %, where the boundary is farther away than the first steps of Adam go."""
    model, x, y, _ = linear(classes, n=30)
    far = boundary(model, x, norm="l2") > 0.1
    x, y = x[far], y[far]
    found = cw(model, x, y, steps=300)
    ratio = distance(found, x, "l2") / boundary(model, x, norm="l2")
    assert (model(found).argmax(1) != y).all() and len(x) > 8
    assert 1 - 1e-4 <= ratio.min() and ratio.max() <= 1.05


def test_cw_reaches_a_target_with_confidence():
    model, x, y, _ = linear(4, n=4)
    target = (y + 1) % 4
    found = cw(model, x, y, target=target, confidence=0.5, steps=200, searches=6, c=1.0)
    z = model(found)
    lead = z.gather(1, target[:, None]) - z.scatter(1, target[:, None], -torch.inf).amax(1, keepdim=True)
    assert (lead >= 0.5).all() and (lead <= 0.6).all()


@pytest.mark.parametrize("attack", [fab, partial(cw, steps=100, searches=4)])
def test_nearest_attacks_keep_to_a_radius_if_given_one(attack):
    model, x, y, _ = linear(3)
    norm = "l2" if isinstance(attack, partial) else "linf"
    eps = boundary(model, x, norm=norm).median().item()
    found = attack(model, x, y, eps=eps)
    assert ball(x, eps, norm).contains(found).all()
    assert ((model(found).argmax(1) != y) == (boundary(model, x, norm=norm) < eps * 0.98))[
        boundary(model, x, norm=norm) != eps
    ].float().mean() > 0.9


@pytest.mark.parametrize("norm", ["linf", "l2"])
@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), part=st.floats(0.01, 1.5), sign=st.sampled_from([-1, 1]))
def test_the_step_to_a_hyperplane_is_the_shortest_in_the_cube(norm, seed, part, sign):
    """By duality, a step along the signs of w is the shortest if it arrives and is min(t s, room) for one t."""
    generator = Generator().manual_seed(seed)
    x = torch.rand(2, 3, 5, generator=generator).mul(1.4).sub(0.2).clamp(0, 1)
    w = torch.randn(2, 3, 5, generator=generator)
    room = torch.where(sign * w > 0, 1 - x, x)
    farthest = (w.abs() * room).flatten(1).sum(1)
    need = sign * part * farthest
    step = to_hyperplane(x, w, need, norm=norm)
    arrived = (w * step).flatten(1).sum(1)
    assert ((x + step) >= -1e-6).all() and ((x + step) <= 1 + 1e-6).all()
    torch.testing.assert_close(arrived, sign * torch.minimum(need.abs(), farthest), rtol=1e-4, atol=1e-5)
    moved, pace = step.abs(), w.abs() if norm == "l2" else torch.ones_like(w)
    time = (moved / pace).flatten(1).amax(1).view(-1, 1, 1)
    torch.testing.assert_close(moved, torch.minimum(time * pace, room), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_step_to_a_hyperplane_is_that_of_linear_programming(seed):
    rng = np.random.default_rng(seed)
    x, w = rng.random(8), rng.normal(size=8)
    need = 0.5 * np.abs(w * np.where(w > 0, 1 - x, x)).sum()
    identity, ones = np.eye(8), np.ones((8, 1))
    result = linprog(  # variables: step (8), t; minimize t with |step| <= t, <w, step> = need
        [0] * 8 + [1],
        A_ub=np.block([[identity, -ones], [-identity, -ones]]),
        b_ub=np.zeros(16),
        A_eq=[[*w, 0]],
        b_eq=[need],
        bounds=[*zip(-x, 1 - x, strict=True), (0, None)],
    )
    step = to_hyperplane(
        *(torch.tensor(v, dtype=torch.float64)[None] for v in (x, w)), torch.tensor([need]), norm="linf"
    )
    assert step.abs().max().item() == pytest.approx(result.fun, rel=1e-5)


ATTACKS = {
    "apgd-ce": apgd,
    "apgd-dlr": partial(apgd, loss="dlr"),
    "apgd-t": partial(apgd, loss="dlr", targets=9),
    "fab-t": partial(fab, targets=9, steps=30),
    "square": partial(square, queries=2000),
    "nes": partial(nes, queries=6000, samples=200, loss="margin"),
    "nattack": partial(nattack, queries=2000, samples=100),
}


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("name", ATTACKS)
def test_all_images_within_reach_of_a_linear_model_are_fooled_and_no_others(name, classes):
    """Linf; within reach: the boundary is nearer than eps, by 5 %."""
    model, x, y, generator = linear(classes)
    reach = boundary(model, x, norm="linf")
    eps = reach.sort().values[7:9].mean().item()
    found = ATTACKS[name](model, x, y, eps=eps, generator=generator)
    hit = model(found).argmax(1) != y
    assert hit[reach < 0.95 * eps].all() and not hit[reach > eps].any()
    assert hit.sum() >= 6


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "nattack"])
def test_the_same_in_l2(name):
    model, x, y, generator = linear(3)
    reach = boundary(model, x, norm="l2")
    eps = reach.sort().values[7:9].mean().item()
    found = ATTACKS[name](model, x, y, eps=eps, norm="l2", generator=generator)
    hit = model(found).argmax(1) != y
    assert hit[reach < 0.9 * eps].all() and not hit[reach > eps].any()


def test_square_in_l2_fools_a_smooth_model():
    """Its tiles suit networks that see large areas: here one class is that the left is brighter than the right."""
    model = Linear(2, (3, 12, 12))
    with torch.no_grad():
        model.w.zero_()
        model.w[0, :, :, :6], model.w[0, :, :, 6:], model.b[:] = 1, -1, 0
    x = torch.full((5, 3, 12, 12), 0.5)
    x[:, :, :, :6] += torch.linspace(0.01, 0.05, 5).view(-1, 1, 1, 1)
    y = model(x).argmax(1)
    reach = boundary(model, x, norm="l2")
    attack = partial(square, model, x, y, eps=1.5 * reach[2].item(), norm="l2")
    start = attack(queries=1, generator=Generator().manual_seed(0))
    found = attack(queries=1000, generator=Generator().manual_seed(0))
    assert (model(found).argmax(1) != y).tolist()[:2] == [True, True]
    assert (margin(model(found), y) > margin(model(start), y)).all()


@pytest.mark.parametrize("attack", [apgd, partial(fab, eps=0.1), square, nes, nattack, cw])
def test_what_is_misclassified_comes_back_unchanged(attack):
    model, x, y, generator = linear(3)
    options = {} if attack is cw or isinstance(attack, partial) else {"eps": 0.1}
    assert torch.equal(attack(model, x, (y + 1) % 3, generator=generator, **options), x)


@pytest.mark.parametrize("attack", [apgd, partial(apgd, targets=2), partial(fab, steps=5), square, nes, nattack])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_count_as_fooled_at_once(attack, value):
    """The first point that makes them so is the answer: the network says so when asked again."""
    model, x, y, generator = linear(3)
    x = x - x.mean((1, 2, 3), keepdim=True) + 0.5
    y = model(x).argmax(1)
    strange = Strange(model, limit=0.5005, value=value)
    eps = 0.3
    with pytest.warns(RuntimeWarning, match="NaN or infinite"):
        found = attack(strange, x.clamp(0, 1), y, eps=eps, generator=generator)
    z = strange(found)
    assert ball(x.clamp(0, 1), eps, "linf").contains(found).all()
    assert ((z.argmax(1) != y) | ~z.isfinite().all(1)).all()


def test_checkpoints_are_those_of_the_paper():
    """By hand: p = 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99, and from there the ceiling of p N."""
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(50) == [11, 21, 29, 35, 40, 44, 47]
    assert checkpoints(20) == [5, 9, 12, 14, 16, 18, 19]
    assert checkpoints(10) == [3, 5, 6, 7, 8, 9]
    assert checkpoints(1) == []


def algorithm_1(model, x, y, x0, *, eps, steps, norm, loss):
    """APGD as the paper prints it, for one image, in plain loops."""
    inside = ball(x, eps, norm)

    def f(z):
        gradient, value, _ = ascent(model, z, y, loss=loss)
        return value.item(), unit(gradient, norm)

    xs, eta = [x0], 2 * eps
    value, g = f(x0)
    fs = [value]
    xs.append(inside.project(x0 + eta * g))
    fs.append(f(xs[1])[0])
    best = max(range(2), key=lambda i: (fs[i], -i))
    x_max, f_max = xs[best], fs[best]
    w, etas, f_maxs, rises = [0, *checkpoints(steps)], [eta], [fs[0]], [fs[1] > fs[0]]
    current, at_current = xs[1], fs[1]
    previous = x0
    for k in range(1, steps):
        if k in w:  # the iterate of index k is judged
            last = w[w.index(k) - 1]
            few = sum(rises[last:k]) < 0.75 * (k - last)
            stuck = etas[-1] == (etas[-2] if len(etas) > 1 else etas[-1]) and f_maxs[-1] == f_max
            etas.append(eta / 2 if few or stuck else eta)
            f_maxs.append(f_max)
            if few or stuck:
                eta, current, at_current = eta / 2, x_max, f_max
        z = inside.project(current + eta * f(current)[1])
        new = inside.project(current + 0.75 * (z - current) + 0.25 * (current - previous))
        value = f(new)[0]
        rises.append(value > at_current)
        previous, current, at_current = current, new, value
        if value > f_max:
            x_max, f_max = new, value
    return x_max


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", [cross_entropy, dlr])
def test_apgd_is_algorithm_1_of_the_paper(norm, loss):
    """A network of small waves, on which steps often fail, so that all the rules come to bear."""

    class Waves(Linear):
        def forward(self, x):
            return torch.sin(3 * super().forward(x)) + 0.2 * torch.sin(17 * super().forward(x.flip(2)))

    model, x = Waves(4, SHAPE).double(), grey(8, SHAPE).double()
    y, eps = model(x).argmax(1), 0.1
    start = ball(x, eps, norm).sample(image_keys(x, Generator().manual_seed(5)), draw=0)
    options = dict(eps=eps, steps=30, norm=norm, loss=loss)
    found = apgd(model, x, y, until_fooled=False, generator=Generator().manual_seed(5), **options)
    for i in range(len(x)):
        rows = slice(i, i + 1)
        expected = algorithm_1(model, x[rows], y[rows], start[rows], **options)
        torch.testing.assert_close(found[rows], expected, rtol=0, atol=1e-9)


def test_a_checkpoint_halves_the_step_where_steps_fail_or_the_best_stands_still():
    """Four images: all well; too few rises; no better best; no better best, but halved at the last checkpoint."""
    x, v = torch.rand(4, 2), torch.ones(4)
    rises, halved = torch.tensor([9, 7, 9, 9]), torch.tensor([False, False, False, True])
    best, mark, where = torch.tensor([2.0, 2.0, 1.0, 1.0]), v, torch.zeros(4, 2)
    rows = torch.arange(4)
    state = _Walk(
        rows, ball(x, 0.1, "linf"), rows, x, x, x, 0 * v, where, where, best, v, rises, halved, mark, halved, v
    )
    judged = _judge(state, gap=10)
    assert judged.step.tolist() == [1.0, 0.5, 0.5, 1.0] and judged.halved.tolist() == [False, True, True, False]
    assert torch.equal(judged.z[1:3], where[1:3]) and torch.equal(judged.z[[0, 3]], x[[0, 3]])
    assert judged.loss.tolist() == [0.0, 2.0, 1.0, 0.0] and judged.mark.tolist() == best.tolist()
    assert judged.rises.eq(0).all()
    exactly = _judge(_Walk(*{**vars(state), "rises": torch.tensor([6, 5, 6, 5])}.values()), gap=8)
    assert exactly.halved.tolist() == [False, True, True, True]  # 6 of 8 are 75 %, which is enough


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_raises_the_loss_at_least_as_far_as_pgd(norm):
    generator = Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 20), nn.Tanh(), nn.Linear(20, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x = grey(50, SHAPE)
    y = model(x).argmax(1)
    eps = 0.03 if norm == "linf" else 0.2
    losses = [
        F.cross_entropy(model(found), y).item()
        for found in (
            pgd(model, x, y, eps=eps, steps=50, norm=norm, generator=generator),
            apgd(model, x, y, eps=eps, steps=50, norm=norm, until_fooled=False, generator=generator),
        )
    ]
    assert losses[1] >= 0.98 * losses[0]


def test_apgd_stops_where_it_succeeds():
    """Within reach all are fooled by the first steps; the network is asked about fewer and fewer images."""
    model, x, y, generator = linear(3)
    network = Counting(model)
    apgd(network, x, y, eps=0.5, generator=generator)
    assert network.images < 6 * len(x)


def test_square_shrinks_on_the_papers_schedule():
    """p = 0.8, halved after 10, 50, 200, ... of 10,000 queries, and in proportion for other numbers."""
    halvings = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
    for i, query in enumerate(halvings):
        assert share_at(query, 10_000) == 0.8 / 2**i and share_at(query + 1, 10_000) == 0.8 / 2 ** (i + 1)
    assert share_at(100, 5000) == 0.2 and share_at(101, 5000) == 0.1
    assert [side(p, 32, 32) for p in (0.8, 0.4, 0.2, 0.1, 0.05, 0.025)] == [29, 20, 14, 10, 7, 5]
    assert [side(p, 32, 32, norm="l2") for p in (0.4, 0.1, 1e-4)] == [21, 11, 3]
    assert side(1.0, 2, 5) == 2


def test_square_starts_from_stripes_and_changes_one_square_at_a_time():
    network = Counting(Linear(3, (3, 12, 12)))
    x = grey(2, (3, 12, 12))
    y = network(x).argmax(1)
    network.seen.clear()
    square(network, x, y, eps=1e-6, queries=30, generator=Generator().manual_seed(0))
    assert len(network.seen) == 31  # the images themselves, and 30 queries
    lower, upper = ball(x, 1e-6, "linf").lower, ball(x, 1e-6, "linf").upper
    first = network.seen[1]
    up = first == upper
    assert (up | (first == lower)).all() and (up == up[:, :, :1]).all() and 0 < up.float().mean() < 1
    for i in range(2):
        best = [first[i]]
        for query, z in enumerate(network.seen[2:], 1):
            changed = [
                (z[i] != old).any(0) for old in best
            ]  # from one of the former points: which was kept is not seen
            rows, columns = min(changed, key=lambda c: c.sum()).nonzero(as_tuple=True)
            length = side(share_at(query, 30), 12, 12)
            assert all(len(v) == 0 or v.max() - v.min() < length for v in (rows, columns))
            best.append(z[i])


def test_the_squares_of_l2_keep_the_budget_and_move_it():
    x = grey(4, (3, 16, 16))
    keys = image_keys(x, Generator().manual_seed(0))
    inside = ball(x, 0.5, "l2")
    numbers = uniform(keys, (64, 8), draw=1)
    state = _State(inside, torch.zeros(4, dtype=torch.long), keys, numbers, x, torch.zeros(4))
    first = _first(state)
    torch.testing.assert_close(distance(first, x, "l2"), torch.full((4,), 0.5, dtype=torch.float64), rtol=1e-4, atol=0)
    second = _propose(_State(*{**vars(state), "z": first}.values()), 1, share=0.1)
    torch.testing.assert_close(distance(second, x, "l2"), torch.full((4,), 0.5, dtype=torch.float64), rtol=1e-4, atol=0)
    for i in range(4):
        changed = ((second[i] - first[i]).abs() > 1e-3).any(0)
        assert 0 < changed.sum() <= 2 * side(0.1, 16, 16, norm="l2") ** 2


@pytest.mark.parametrize(
    ("attack", "queries"), [(square, 50), (partial(nes, samples=10), 50), (partial(nattack, samples=10), 50)]
)
def test_no_more_queries_than_allowed(attack, queries):
    network = Counting(Linear(3, SHAPE))
    x = grey(4, SHAPE)
    y = network(x).argmax(1)
    network.seen.clear()
    attack(network, x, y, eps=1e-6, queries=queries)
    assert 40 * len(x) <= network.images <= (queries + 1) * len(x)


def test_nes_estimates_the_gradient():
    """From 400 samples in 27 dimensions, along the gradient within 30 degrees."""
    network = Counting(Linear(2, (3, 3, 3)))
    x = grey(3, (3, 3, 3))
    y = network(x).argmax(1)
    found = nes(network, x, y, eps=1e-3, queries=401, samples=400, step=1e-3, norm="l2", loss="margin")
    w = (network.network.w[1] - network.network.w[0]).detach() * (1 - 2 * y).view(-1, 1, 1, 1)
    assert F.cosine_similarity((found - x).flatten(1), w.flatten(1)).min() > 0.87


@pytest.mark.parametrize(
    ("attack", "options", "says"),
    [
        (apgd, dict(eps=0.1, steps=0), "steps must be a whole number >= 1"),
        (apgd, dict(eps=0.1, targets=-1), "targets must be a whole number >= 0"),
        (fab, dict(steps=0), "steps must be a whole number >= 1"),
        (fab, dict(norm="l1"), "no norm"),
        (square, dict(eps=0.1, queries=0), "queries must be a whole number >= 1"),
        (square, dict(eps=0.1, share=1.5), "share must be in"),
        (nes, dict(eps=0.1, samples=3), "must be even"),
        (nattack, dict(eps=0.1, samples=1), "samples must be a whole number >= 2"),
        (cw, dict(c=0.0), "c must be > 0"),
    ],
)
def test_bad_options_are_named(attack, options, says):
    model, x, y, _ = linear(3, n=1)
    with pytest.raises(InputError, match=says):
        attack(model, x, y, **options)


def test_square_needs_images():
    with pytest.raises(InputError, match=r"must be \(n, c, h, w\)"):
        square(Linear(2, (5,)), torch.rand(1, 5), torch.tensor([0]), eps=0.1)


def test_check_knows_a_sound_batch():
    check(torch.rand(2, 3), torch.tensor([0, 1]), 0.1, "l2")
