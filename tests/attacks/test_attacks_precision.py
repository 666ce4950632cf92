"""The search in bfloat16: what stays exact, how far gradients may be off, and that verdicts are those of float32."""

from functools import partial
from importlib import import_module

import pytest
import torch
from attacking import TwoClasses
from torch import Generator, nn

from lrc.attacks import apgd, autoattack, cw, fab, fgsm, linbp, mifgsm, nattack, nes, pgd, sgm, square
from lrc.attacks.common import ROUGH, attacked, input_gradient
from lrc.attacks.losses import cross_entropy, fooled, margin
from lrc.attacks.precision import HalfBackward
from lrc.attacks.threat_model import ball
from lrc.models import resnet8
from lrc.utils.errors import InputError

apgd_module = import_module("lrc.attacks.apgd")  # of the package's attributes the function has the name
LAYERS = {
    "plain": nn.Conv2d(4, 6, 3),
    "strides": nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False),
    "groups": nn.Conv2d(4, 6, 3, groups=2, padding=2),
    "by name": nn.Conv2d(4, 6, 3, padding="same"),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(4 * 9 * 9, 5)),
    "rows": nn.Linear(9, 5, bias=False),
}
ATTACKS = {
    "fgsm": fgsm,
    "pgd": partial(pgd, steps=3, restarts=2),
    "mifgsm": partial(mifgsm, steps=3, diversity=0.5),
    "apgd": partial(apgd, steps=4),
    "fab": partial(fab, steps=3),
    "fab-t": partial(fab, steps=3, targets=2),
    "cw": partial(cw, steps=3, searches=2),
    "square": partial(square, queries=4),
    "nes": partial(nes, queries=10, samples=4),
    "nattack": partial(nattack, queries=8, samples=4),
    "linbp": partial(linbp, steps=2),
    "sgm": partial(sgm, steps=2),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", LAYERS)
def test_values_are_those_of_float32_and_gradients_off_by_rounding(name, layout):
    layer, x = LAYERS[name].requires_grad_(False), torch.randn(3, 4, 9, 9).contiguous(memory_format=layout)
    towards = torch.randn_like(layer(x))

    def run():
        z = x.detach().requires_grad_()
        y = layer(z)
        return y.detach(), torch.autograd.grad((y * towards).sum(), z)[0]

    y, gradient = run()
    with HalfBackward():
        same, rounded = run()
    assert torch.equal(same, y)
    off = (rounded - gradient).norm() / gradient.norm()
    assert off < 2**-7
    assert (off > 0) == (name != "by name")  # what it does not know stays in float32


def test_layers_that_learn_are_left_alone():
    layer, x = nn.Linear(8, 3), torch.randn(2, 8, requires_grad=True)
    expected = torch.autograd.grad(layer(x).sum(), (x, layer.weight))
    with HalfBackward():
        found = torch.autograd.grad(layer(x).sum(), (x, layer.weight))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_the_step_rule_of_apgd_sees_the_losses_of_float32_to_the_last_bit(monkeypatch):
    """At every checkpoint: the loss of the best point is what the network says of it, not what bfloat16 says."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).requires_grad_(False)
    x, judged, judge = torch.rand(6, 3, 8, 8).contiguous(memory_format=torch.channels_last), [], apgd_module._judge
    monkeypatch.setattr(apgd_module, "_judge", lambda s, gap: judged.append(s) or judge(s, gap=gap))
    y = model(x).argmax(1)
    apgd(model, x, y, eps=0.01, steps=40, until_fooled=False, precision="bf16", generator=Generator().manual_seed(0))
    assert len(judged) == len(apgd_module.checkpoints(40))
    coarse = False
    for s in judged:
        loss = cross_entropy(model(s.best), y)
        torch.testing.assert_close(s.best_loss, loss, rtol=1e-6, atol=1e-7)
        with torch.autocast("cpu", torch.bfloat16):
            coarse |= not torch.allclose(s.best_loss, cross_entropy(model(s.best).float(), y), rtol=1e-4)
    assert coarse


def test_where_rounding_leaves_the_signs_a_search_in_bfloat16_is_that_in_float32():
    """A linear network: all that could differ is what the step rule makes of the losses."""
    model, x = TwoClasses(torch.randn(3, 6, 6).sign() / 2), torch.rand(5, 3, 6, 6)
    run = partial(apgd, model, x, torch.zeros(5, dtype=torch.long), eps=0.02, steps=40, until_fooled=False)
    found = [run(precision=p, generator=Generator().manual_seed(0)) for p in ("float32", "bf16")]
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_stays_in_the_ball_and_fools_about_as_many(name):
    torch.manual_seed(0)
    model, x = resnet8(width=8, generator=Generator().manual_seed(0)), torch.rand(12, 3, 32, 32)
    model.eval()
    with torch.no_grad():
        y = model(x).argmax(1)
    eps, norm = (0.5, "l2") if name == "cw" else (0.02, "linf")
    run = partial(ATTACKS[name], model, x, y, eps=eps, generator=Generator().manual_seed(1))
    exact, half = run(), run(precision="bf16")
    assert half.dtype == torch.float32 and ball(x, eps, norm).contains(half).all()
    with torch.no_grad():
        counts = [int(fooled(model(found), y).sum()) for found in (exact, half)]
    assert abs(counts[0] - counts[1]) <= 3


def test_verdicts_are_those_of_the_float32_network():
    model, x = resnet8(width=8, generator=Generator().manual_seed(0)).eval(), torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        y = model(x).argmax(1)
    parts = {"square": partial(square, queries=9), "apgd": partial(apgd, steps=5), "fab": partial(fab, steps=3)}
    with torch.autocast("cpu", torch.bfloat16):  # whatever surrounds the call
        found = autoattack(model, x, y, eps=0.02, version=parts, precision="bf16")
    with torch.no_grad():
        assert torch.equal(found.fooled, fooled(model(found.x_adv), y)) and found.fooled.any()


def test_logits_to_search_by_are_rounded_and_the_network_itself_is_asked_who_is_fooled():
    model, x = resnet8(width=8, generator=Generator().manual_seed(0)).eval(), torch.rand(40, 3, 32, 32)
    with torch.no_grad():
        exact = model(x)
    y, least = exact.topk(2).indices[:, 1], torch.full((40,), -torch.inf)  # all are fooled, some of them hardly
    with attacked(model, x, y, precision="bf16") as (victim, images, _):
        rounded, hit = victim.search(images, y, best=least)
        _, again = victim.search(images, y, best=rounded)
    assert hit.all() and not again.any()  # what is no better than before is not asked about
    lead = margin(exact, y)
    off = (rounded - lead).abs()
    assert 0 < off.max() < ROUGH * exact.abs().max()
    assert not torch.equal(rounded, rounded.bfloat16().float())  # of eight bits they would hide small steps
    with attacked(model, x, y) as (victim, images, _):
        found, hit = victim.search(images, y, best=least)
    assert hit.all() and torch.allclose(found, lead, atol=1e-5)


def test_what_fools_only_after_rounding_is_no_hit():
    """A lead that the right class has by less than bfloat16 tells: the network itself decides."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 2, bias=False))
    model[0].weight.data, model[0].bias.data = torch.tensor([1.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0.001, 0.0])
    model[2].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    x, y = torch.ones(1, 1, 1, 1), torch.tensor([0])
    with attacked(model, x, y, precision="bf16") as (victim, images, labels):
        lead, hit = victim.search(images, labels, best=torch.tensor([-torch.inf]))
    assert lead >= 0 and not hit


def test_neighbours_touch_a_gradient_in_bfloat16_by_rounding_at_most():
    model, x = resnet8(width=8, generator=Generator().manual_seed(0)), torch.rand(9, 3, 32, 32)
    y = torch.arange(9)
    with attacked(model, x, y, precision="bf16") as (victim, images, labels):
        gradient = partial(input_gradient, victim, loss=cross_entropy, half=True)
        together, alone = (
            gradient(images, labels),
            torch.cat([gradient(images[i : i + 1], labels[i : i + 1]) for i in y]),
        )
    off = (together - alone).flatten(1).norm(dim=1) / alone.flatten(1).norm(dim=1)
    assert off.max() < 2**-5


def test_an_unknown_precision_is_named():
    x, y = torch.rand(1, 3, 32, 32), torch.tensor([0])
    for attack in (partial(pgd, steps=1), autoattack):
        with pytest.raises(InputError, match="precision"):
            attack(resnet8(width=4), x, y, eps=0.01, precision="half")
