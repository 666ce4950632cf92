"""Of all runs, toward whatever target and from whatever start, each image keeps the best."""

from functools import partial

import pytest
import torch
from attacking import Linear, grey
from torch import Generator, nn

import lrc.linearization.folding as folding_module
from lrc.attacks import apgd, fab, nattack, pgd, square
from lrc.attacks.losses import cross_entropy, margin
from lrc.attacks.threat_model import distance

SHAPE = (3, 6, 6)


class Waves(Linear):
    """Logits with many hills, so that runs end in different places."""

    def forward(self, x):
        return torch.sin(3 * super().forward(x))


def seeded(attack, model, x, y, **options):
    return attack(model, x, y, generator=Generator().manual_seed(0), **options)


@pytest.mark.parametrize("attack", [partial(apgd, steps=6), partial(apgd, steps=6, loss="dlr"), partial(pgd, steps=0)])
def test_more_restarts_fool_no_fewer_and_leave_no_smaller_lead(attack):
    """The first r runs are the same whatever comes after them, so the best of r + 1 is at least the best of r."""
    model, x = Waves(5, SHAPE), grey(40, SHAPE)
    y = model(x).argmax(1)
    options = {} if attack.func is pgd else {"until_fooled": False}
    leads = [
        margin(model(seeded(attack, model, x, y, eps=0.02, restarts=count, **options)), y) for count in (1, 2, 3, 4)
    ]
    for fewer, more in zip(leads, leads[1:], strict=False):
        assert (more >= fewer - 1e-6).all()
    assert (leads[3] > leads[0] + 1e-3).any()


@pytest.mark.parametrize("until_fooled", [True, False])
def test_a_targeted_run_that_succeeds_is_not_lost_to_the_next(until_fooled):
    """The first runs are the same however many follow, so an image that they fool stays fooled."""
    model, x = Waves(5, SHAPE), grey(60, SHAPE)
    y, eps = model(x).argmax(1), 0.03
    attack = partial(apgd, steps=8, loss="ce", until_fooled=until_fooled)
    every = [seeded(attack, model, x, y, eps=eps, targets=count) for count in (1, 2, 3, 4)]
    fools = torch.stack([model(found).argmax(1) != y for found in every])
    assert (fools[1:] >= fools[:-1]).all() and fools[3].sum() > fools[0].sum()
    assert not until_fooled or (margin(model(every[3]), y) >= margin(model(every[0]), y))[~fools[3]].all()


def test_a_targeted_attack_keeps_the_run_in_which_the_target_leads_by_most():
    model, x = Waves(5, SHAPE), grey(40, SHAPE)
    y = model(x).argmax(1)
    target = (y + 2) % 5
    leads = [
        -margin(model(seeded(pgd, model, x, y, eps=0.02, steps=3, restarts=count, target=target)), target)
        for count in (1, 3)
    ]
    assert (leads[1] >= leads[0] - 1e-6).all() and (leads[1] > leads[0] + 1e-3).any()


@pytest.mark.parametrize("options", [{"restarts": 3}, {"targets": 3}, {"targets": 2, "restarts": 2}])
def test_fab_keeps_the_nearest_of_all_runs(options):
    model, x = Waves(5, SHAPE), grey(20, SHAPE)
    y = model(x).argmax(1)
    least = {"targets": 1} if "targets" in options else {}
    away = [
        distance(seeded(fab, model, x, y, steps=5, **each), x, "linf").where(
            model(seeded(fab, model, x, y, steps=5, **each)).argmax(1) != y, torch.inf
        )
        for each in (least, options)
    ]
    assert (away[1] <= away[0]).all()


def test_pgd_returns_the_largest_loss_a_linear_model_allows_whatever_the_number_of_runs():
    """One class of two: the best point is a corner of the ball, and no run may be lost to a later one."""
    model, x = Linear(2, SHAPE), grey(10, SHAPE)
    y = model(x).argmax(1)
    w = (model.w[1] - model.w[0]).detach() * (1 - 2 * y).view(-1, 1, 1, 1)
    corner = x + 0.004 * w.sign()
    for restarts in (1, 3):
        found = seeded(pgd, model, x, y, eps=0.004, steps=20, restarts=restarts)
        torch.testing.assert_close(cross_entropy(model(found), y), cross_entropy(model(corner), y), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["apgd", "apgd-t", "square", "nattack", "pgd"])
def test_what_the_network_itself_does_not_confirm_goes_on_being_attacked(name, monkeypatch):
    """A fast form that calls every image fooled: what comes out fools the network wherever it can be fooled."""
    attack = {
        "apgd": partial(apgd, steps=10),
        "apgd-t": partial(apgd, steps=10, targets=1),
        "square": partial(square, queries=100),
        "nattack": partial(nattack, queries=200, samples=10),
        "pgd": partial(pgd, steps=5, restarts=2),
    }[name]
    model = nn.Sequential(nn.Conv2d(1, 2, 4, bias=False), nn.BatchNorm2d(2), nn.Flatten()).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4) / 16)
    x, y = torch.full((4, 1, 4, 4), 0.5), torch.tensor([0, 0, 0, 0])
    x += torch.tensor([0.01, 0.02, 0.2, 0.3]).view(4, 1, 1, 1)
    model[1].running_mean.copy_(torch.tensor([0.5, -0.5]))  # class 0 where the mean is above 0.5
    honest, lead = folding_module._ways, torch.tensor([0.0, 9.0]).view(2, 1, 1)
    monkeypatch.setattr(
        folding_module, "_ways", lambda conv, norm: [honest(conv, norm)[0], (vars(norm), lambda z: z + lead)]
    )
    monkeypatch.setattr(folding_module, "ROUNDING", torch.inf)
    found = attack(model, x, y, eps=0.1, generator=Generator().manual_seed(0))
    assert (model(found).argmax(1) != y).tolist() == [True, True, False, False]
