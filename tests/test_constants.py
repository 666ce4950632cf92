# ruff: noqa: E501 (a line of the table is one number)
"""The numbers that papers fix: written down once more here with their sources, and steps that follow from them.

Where the authors published code the source is the repository and file, which were looked up in November 2026.
"""

import inspect
import math

import pytest
import torch
from attacking import Counting, Linear, grey
from scipy.stats import binomtest
from torch import nn

from lrc import attacks
from lrc.attacks import apgd, autoattack, cw, fab, mifgsm, nattack, nes, pgd, sgm, square
from lrc.attacks.autoattack import standard
from lrc.evaluation import masking
from lrc.training.objectives import inner_attacks, losses, named

modules = {name: inspect.getmodule(getattr(attacks, name)) for name in ("apgd", "fab", "cw", "square")}


def default(function, name):
    return inspect.signature(function).parameters[name].default


def objective(name, option):
    """What an option of a method is by default: of its loss, or of its attack."""
    found = named(name)
    return (getattr(found.loss, "keywords", {}) | found.attack.keywords)[option]


CONSTANTS = [
    (modules["apgd"].MOMENTUM, 0.75, "fra31/auto-attack, autopgd_base.py: a"),
    (modules["apgd"].ENOUGH, 0.75, "fra31/auto-attack, autoattack.py: rho of APGD"),
    (default(apgd, "steps"), 100, "the same: n_iter of APGD"),
    (modules["fab"].TO_ORIGIN, 0.1, "fra31/auto-attack, fab_base.py: alpha_max"),
    (modules["fab"].OVERSHOOT, 1.05, "the same: eta"),
    (modules["fab"].BACKWARD, 0.9, "the same: beta"),
    (default(fab, "steps"), 100, "fra31/auto-attack, autoattack.py: n_iter of FAB"),
    (default(cw, "rate"), 0.01, "carlini/nn_robust_attacks, l2_attack.py: LEARNING_RATE"),
    (default(cw, "searches"), 9, "the same: BINARY_SEARCH_STEPS"),
    (default(cw, "c"), 1e-3, "the same: INITIAL_CONST"),
    (default(cw, "confidence"), 0.0, "the same: CONFIDENCE"),
    (modules["cw"].MOST, 1e10, "the same: upper_bound"),
    (modules["cw"].CHECKS, 10, "the same: abort_early looks every MAX_ITERATIONS // 10"),
    (modules["cw"].STILL, 0.9999, "the same: abort_early asks for l <= 0.9999 prev"),
    (default(square, "share"), 0.8, "fra31/auto-attack, autoattack.py: p_init of Square"),
    (modules["square"].HALVINGS, (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000), "fra31/auto-attack, square.py: p_selection"),
    (default(nes, "sigma"), 0.001, "labsix/limited-blackbox-attacks, main.py: SIGMA"),
    (default(nes, "samples"), 50, "the same: SAMPLES_PER_DRAW"),
    (default(nes, "momentum"), 0.9, "the same: --momentum"),
    (default(nattack, "sigma"), 0.1, "Li et al. 2019 (NAttack), code as kept with advertorch: sigma"),
    (default(nattack, "samples"), 300, "the same: npop"),
    (default(nattack, "rate"), 0.02, "the same: alpha"),
    (default(mifgsm, "decay"), 1.0, "Dong et al. 2018 (MI-FGSM): decay factor mu, 1.0 in code built on theirs"),
    (default(mifgsm, "steps"), 10, "the same: num_iter"),
    (default(sgm, "gamma"), 0.2, "Wu et al. 2020 (SGM): gamma for ResNets; the script of their code has 0.5"),
    ({n: p.keywords.get("steps", p.keywords.get("queries")) for n, p in standard("linf").items()},
     {"apgd-ce": 100, "apgd-t": 100, "fab-t": 100, "square": 5000}, "fra31/auto-attack, autoattack.py: version standard"),
    ([standard("l2")[n].keywords["targets"] for n in ("apgd-t", "fab-t")], [9, 9], "the same: n_target_classes"),
    ([standard("linf")[n].keywords["loss"] for n in ("apgd-ce", "apgd-t")], ["ce", "dlr"], "the same: apgd-ce, and DLR where targeted"),
    (standard("linf")["square"].keywords["horizon"], 10_000, "the same: resc_schedule=False, so that p follows the schedule of 10,000"),
    (default(autoattack, "norm"), "linf", "the same: norm"),
    (objective("trades", "beta"), 6.0, "csdongxian/AWP, train_trades_cifar.py: beta of TRADES, that is 1 / lambda"),
    (objective("trades", "steps"), 10, "yaodongyu/TRADES, train_trades_cifar10.py: num_steps"),
    (objective("trades", "step"), 0.007, "the same: step_size"),
    (default(inner_attacks.trades_attack, "sigma"), 0.001, "yaodongyu/TRADES, trades.py: 0.001 randn"),
    (objective("mart", "beta"), 5.0, "YisenWang/MART, train_resnet.py: beta (train_wideresnet.py has 6)"),
    (objective("mart", "step"), 0.007, "YisenWang/MART, train_wideresnet.py: step_size"),
    (objective("adversarial", "step"), 0.007, "the paper's official code: step_size"),
    (objective("adversarial", "steps"), 10, "the paper, section 4.1: PGD-10"),
    (objective("adversarial", "eps"), 8 / 255, "the paper, section 4.1"),
    (default(losses.distillation, "temperature"), 20.0, "Papernot et al. 2016: T"),
    (default(losses.local_linearity, "weight"), 4.0, "Qin et al. 2019: lambda"),
    (default(losses.local_linearity, "slope"), 3.0, "the same: mu"),
    (default(losses.suppressed, "beta"), 2.0, "bymavis/CAS_ICLR2021, train.py: beta"),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "published", "source"), CONSTANTS, ids=[source for *_, source in CONSTANTS])
def test_a_constant_is_that_of_its_source(ours, published, source):
    assert ours == published


@pytest.fixture
def two():
    """A linear network of two classes that keeps what it is asked, images far from 0 and 1, and their classes."""
    network, x = Counting(Linear(2, (3, 4, 4))), grey(3, (3, 4, 4))
    y = network(x).argmax(1)
    network.seen.clear()
    return network, x, y


@pytest.mark.parametrize(
    ("attack", "times", "source"),
    [(pgd, 2.5, "Madry et al. 2018, section 4: 2.5 eps / steps"), (mifgsm, 1.0, "Dong et al. 2018: eps / T")],
)
def test_the_default_step(two, attack, times, source):
    """Signed steps on a linear network: every pixel moves by one step, while the ball is not reached."""
    network, x, y = two
    options = {"random_start": False} if attack is pgd else {}
    attack(network, x, y, eps=0.1, steps=10, **options)
    step = times * 0.1 / 10
    torch.testing.assert_close((network.seen[1] - network.seen[0]).abs(), torch.full_like(x, step), rtol=1e-4, atol=0)


def test_the_default_step_of_nes_is_a_tenth_of_the_radius(two):
    network, x, y = two
    nes(network, x, y, eps=1e-3, queries=5, samples=4)
    moved = (network.seen[-1] - x).abs()
    torch.testing.assert_close(moved, torch.full_like(x, 1e-4), rtol=1e-2, atol=0)


def test_fast_adversarial_training_steps_by_a_quarter_more_than_the_radius(two):
    """Wong et al. 2020: from a random point 1.25 eps along the sign, then back into the ball."""
    network, x, y = two
    found = attacks.fgsm(network, x, y, eps=0.1, random_start=True, generator=torch.Generator().manual_seed(0))
    start = network.seen[0]
    stepped = start + 1.25 * 0.1 * (found - start).sign()
    torch.testing.assert_close(found, stepped.clamp(x - 0.1, x + 0.1), rtol=0, atol=1e-6)
    assert ((found - x).abs() < 0.0999).any()  # from the far quarter a pixel does not get there


def test_a_step_of_fab_is_drawn_to_the_original_image():
    """Algorithm 1 with the projections onto a hyperplane in closed form, where [0, 1] does not bind (L2)."""
    generator = torch.Generator().manual_seed(0)
    x, w = 0.45 + 0.1 * torch.rand(6, 5, generator=generator), torch.randn(6, 5, generator=generator)
    z = x + 0.02 * torch.randn(6, 5, generator=generator)
    gap = -0.05 * torch.rand(6, generator=generator)
    state = modules["fab"]._State(torch.arange(6), x, torch.zeros(6, dtype=torch.long), z, torch.ones(6))
    found = modules["fab"]._step(state, gap, w, norm="l2")
    for i in range(6):
        value = gap[i] + w[i] @ (x[i] - z[i])
        d_z, d_x = -gap[i] * w[i] / (w[i] @ w[i]), -value * w[i] / (w[i] @ w[i])
        alpha = min(d_z.norm() / (d_z.norm() + d_x.norm()), 0.1)
        expected = (1 - alpha) * (z[i] + 1.05 * d_z) + alpha * (x[i] + 1.05 * d_x)
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("improves", "runs"), [(0.0, 20), (5e-5, 20), (2e-4, 100)])
def test_a_run_of_cw_ends_where_a_tenth_of_its_steps_gains_too_little(improves, runs):
    """The lead shrinks by a given part in each tenth of the steps: under 1e-4 the second look ends the run."""

    class Slower(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = -1

        def forward(self, x):
            self.calls += 1
            lead = 10.0 * (1 - improves) ** (self.calls / 10)
            return torch.tensor([[lead, 0.0]]).expand(len(x), 2) + 0 * x.flatten(1).sum(1, keepdim=True)

    network = Slower()
    cw(network, grey(1, (3, 2, 2)).double(), torch.tensor([0]), steps=100, searches=1, c=1.0, rate=1e-12)
    assert network.calls == runs


@pytest.mark.parametrize("name", ["local_linearity_attack", "gradient_norm_attack"])
def test_the_step_of_inner_maximization_is_that_of_pgd(name):
    """2.5 eps / steps, as Madry et al.: the farthest that a pixel moves between two looks at a curved network."""

    class Curved(Linear):
        def forward(self, x):
            return super().forward(x) ** 2

    network, x = Counting(Curved(3, (3, 4, 4))), grey(4, (3, 4, 4))
    y = network(x).argmax(1)
    network.seen.clear()
    getattr(inner_attacks, name)(network, x, y, eps=0.1, steps=20, generator=torch.Generator().manual_seed(0))
    walk = network.seen[1:] if name == "local_linearity_attack" else network.seen
    moves = [(after - before).abs().amax().item() for before, after in zip(walk, walk[1:], strict=False)]
    assert len(moves) == 19 and max(moves) == pytest.approx(2.5 * 0.1 / 20, rel=1e-4)


@pytest.mark.parametrize("count", [50, 200, 1000])
def test_a_sign_of_masking_counts_where_surely_more_than_two_percent_of_the_images_show_it(count):
    """Wilson's 95 % interval, here from scipy, lies above 0.02; one image fewer is not enough."""
    enough = next(k for k in range(count) if binomtest(k, count).proportion_ci(method="wilson").low > 0.02)
    for k, expected in ((enough, True), (enough - 1, False), (math.ceil(0.02 * count), False)):
        assert masking._often(torch.arange(count) < k) is expected
