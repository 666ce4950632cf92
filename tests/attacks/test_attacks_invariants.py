"""What holds for every attack, whatever the norm, radius, shape and number of classes."""

import copy
from functools import partial

import pytest
import torch
from attacking import Linear
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, nn

from lrc.attacks import apgd, autoattack, cw, fab, fgsm, linbp, mifgsm, nattack, nes, pgd, sgm, square
from lrc.attacks.threat_model import ball
from lrc.models import resnet8


class Residual(nn.Module):
    """ReLU, and a residual branch with another, on pixels of any shape: each image by itself, sum by sum."""

    def __init__(self, classes, shape, seed):
        super().__init__()
        self.inner, self.outer = Linear(6, shape, seed), Linear(classes, (6,), seed + 1)
        self.branch = Linear(6, (6,), seed + 2)

    def forward(self, x):
        h = self.inner(x)
        return self.outer(h + self.branch(torch.relu(self.branch(h))))


def auto(model, x, y, **options):
    """The parts of AutoAttack with small budgets."""
    norm = options.pop("norm")
    parts = {
        "apgd-ce": partial(apgd, steps=2, norm=norm),
        "fab-t": partial(fab, targets=1, steps=1, norm=norm),
    }
    return autoattack(model, x, y, version=parts, norm=norm, **options).x_adv


IMAGES = {  # those that need images (n, c, h, w)
    "square": partial(square, queries=6),
    "mifgsm-diverse": partial(mifgsm, steps=2, diversity=0.7),
}
ANY = {
    "pgd": partial(pgd, steps=2),
    "pgd-restarts": partial(pgd, steps=1, restarts=3, loss="dlr"),
    "mifgsm": partial(mifgsm, steps=2),
    "apgd-ce": partial(apgd, steps=4),
    "apgd-t": partial(apgd, steps=4, loss="dlr", targets=2),
    "fab": partial(fab, steps=2),
    "fab-t": partial(fab, steps=2, targets=2, restarts=2),
    "nes": partial(nes, queries=10, samples=4),
    "nattack": partial(nattack, queries=8, samples=4),
    "linbp": partial(linbp, steps=2),
    "sgm": partial(sgm, steps=2),
    "auto": auto,
}
LINF = {"fgsm": fgsm, "fgsm-random": partial(fgsm, random_start=True)}
L2 = {"cw": partial(cw, steps=4, searches=2)}

image_shapes = st.tuples(st.sampled_from([1, 3]), st.integers(3, 7), st.integers(3, 7))
any_shapes = st.one_of(image_shapes, st.tuples(st.integers(1, 20)), st.tuples(st.integers(2, 5), st.integers(2, 5)))
radii = st.one_of(st.floats(0, 1), st.floats(0, 1e-4), st.sampled_from([0.0, 8 / 255]))


@pytest.mark.parametrize("name", [*IMAGES, *ANY, *LINF, *L2])
@settings(max_examples=40, deadline=None)
@given(data=st.data(), eps=radii, seed=st.integers(0, 2**32), classes=st.integers(2, 6))
def test_in_the_ball_repeatable_and_independent_of_neighbours(name, data, eps, seed, classes):
    """Three images at once; then the last two, in the other order, with a generator of the same seed: the same."""
    shape = data.draw(image_shapes if name in IMAGES else any_shapes)
    norm = "linf" if name in LINF else "l2" if name in L2 else data.draw(st.sampled_from(["linf", "l2"]))
    generator = Generator().manual_seed(seed)
    x = torch.rand(3, *shape, generator=generator).mul(1.3).sub(0.15).clamp(0, 1)  # some pixels at the border
    model = Residual(classes, shape, seed)
    y = torch.where(torch.rand(3, generator=generator) < 0.8, model(x).argmax(1), 0)
    attack = partial((IMAGES | ANY | LINF | L2)[name], eps=eps, **({} if name in LINF | L2 else {"norm": norm}))

    found = attack(model, x, y, generator=Generator().manual_seed(seed))
    delta = (found.double() - x.double()).flatten(1)
    assert found.min() >= 0 and found.max() <= 1
    assert (delta.norm(p=torch.inf if norm == "linf" else 2, dim=1) <= eps).all()
    assert ball(x, eps, norm).contains(found).all()

    others = [2, 1]
    again = attack(model, x[others], y[others], generator=Generator().manual_seed(seed))
    if name in ("cw", "nattack"):  # tanh is computed otherwise for the last few numbers of a tensor: in the last bits
        torch.testing.assert_close(again, found[others], rtol=0, atol=1e-4)
    else:
        assert torch.equal(again, found[others])


NETWORK = {
    "fgsm": fgsm,
    "pgd": partial(pgd, steps=2),
    "mifgsm": partial(mifgsm, steps=2, diversity=0.5),
    "apgd": partial(apgd, steps=3),
    "fab": partial(fab, steps=2),
    "cw": partial(cw, steps=3, searches=2),
    "square": partial(square, queries=3),
    "nes": partial(nes, queries=10, samples=4),
    "nattack": partial(nattack, queries=8, samples=4),
    "linbp": partial(linbp, steps=2),
    "sgm": partial(sgm, steps=2),
    "autoattack": partial(autoattack, version={"apgd": partial(apgd, steps=2), "square": partial(square, queries=2)}),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORK)
def test_nothing_is_changed(name, training):
    """Model, gradients, statistics of batch norm, hooks, images, labels, global random numbers."""
    model = resnet8(width=4).train(training)
    model.bn.eval()  # a mixed mode is kept too
    model.fc.weight.requires_grad_(False)
    model.fc.bias.grad = torch.ones(10)
    handle = model.bn.register_forward_hook(lambda module, inputs, output: None)
    x, y = torch.rand(2, 3, 32, 32), torch.tensor([1, 2])
    before = copy.deepcopy((model.state_dict(), x, y))
    facts = [
        (m.training, dict(m._forward_hooks), dict(m._backward_hooks), list(m._parameters)) for m in model.modules()
    ]
    learning, rng = [p.requires_grad for p in model.parameters()], torch.get_rng_state()

    NETWORK[name](model, x, y, eps=0.03)

    assert torch.equal(torch.get_rng_state(), rng)
    assert facts == [
        (m.training, dict(m._forward_hooks), dict(m._backward_hooks), list(m._parameters)) for m in model.modules()
    ]
    assert [p.requires_grad for p in model.parameters()] == learning
    assert all(torch.equal(v, before[0][k]) for k, v in model.state_dict().items())
    assert torch.equal(x, before[1]) and torch.equal(y, before[2])
    assert model.fc.bias.grad.eq(1).all() and model.stem.weight.grad is None and handle.id in model.bn._forward_hooks


@pytest.mark.parametrize("name", NETWORK)
def test_no_images_no_error(name):
    found = NETWORK[name](resnet8(width=4), torch.rand(0, 3, 32, 32), torch.zeros(0, dtype=torch.long), eps=0.03)
    assert len(found.x_adv if name == "autoattack" else found) == 0


@pytest.mark.parametrize("name", NETWORK)
def test_under_autocast_and_without_gradients_at_large(name):
    model, x = resnet8(width=4), torch.rand(2, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        y = model.eval()(x).argmax(1)
        found = NETWORK[name](model, x, y, eps=0.03)
    found = found.x_adv if name == "autoattack" else found
    assert found.dtype == torch.float32 and ball(x, 0.03, "l2" if name == "cw" else "linf").contains(found).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NETWORK)
def test_on_a_gpu(name):
    model, x, y = resnet8(width=4).cuda(), torch.rand(2, 3, 32, 32).cuda(), torch.tensor([1, 2]).cuda()
    found = NETWORK[name](model, x, y, eps=0.03, generator=Generator().manual_seed(0))
    found = found.x_adv if name == "autoattack" else found
    assert found.is_cuda and ball(x, 0.03, "l2" if name == "cw" else "linf").contains(found).all()
