"""Signs of gradient masking: each raised by a network that is known to mask, none by networks that do not."""

import os
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from attacking import Linear
from torch import Generator, nn

import lrc
from lrc.attacks import pgd
from lrc.data import Images, shapes
from lrc.evaluation import masking_flags
from lrc.evaluation.masking import _with_cross_entropy, draw, scaled_cross_entropy
from lrc.models import resnet8
from lrc.utils.errors import InputError

EPS = 8 / 255
TEMPERATURE = 100
NAMES = {
    "zero gradients", "loss saturation", "randomized output", "black-box stronger", "robust without bound",
    "more effort hurts",
}  # fmt: skip


def seeded(seed=0):
    return Generator().manual_seed(seed)


def network(scale=1.0):
    """A small untrained network; `scale` multiplies its logits."""
    model = resnet8(16, width=8, mean=[0.5] * 3, std=[0.5] * 3, generator=seeded())
    with torch.no_grad():
        model.fc.weight *= scale
    return model


def trained(model, objective, epochs=5):
    """Trained on drawings of 16 x 16 pixels: a few seconds."""
    data = shapes("train", n=960, size=16)
    x, y = data.float(), data.y
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(sgd, 0.3, total_steps=epochs * 20)
    order = seeded()
    for _ in range(epochs):
        for rows in torch.randperm(960, generator=order).split(48):
            model.train()
            loss = objective(model, x[rows], y[rows])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            rate.step()
    return model.eval()


def plainly(model, x, y):
    return F.cross_entropy(model(x), y)


def adversarially(model, x, y):
    return F.cross_entropy(model(pgd(model, x, y, eps=EPS, steps=3, step=EPS / 2, generator=seeded())), y)


def hot(model, x, y):
    return F.cross_entropy(model(x) / TEMPERATURE, y)


@pytest.fixture(scope="session")
def standard():
    return trained(network(), plainly)


@pytest.fixture(scope="session")
def robust():
    return trained(network(), adversarially)


@pytest.fixture(scope="session")
def distilled():
    """Teacher and student trained at temperature 100, the student on the teacher's probabilities; used at 1."""
    teacher = trained(network(TEMPERATURE), hot)

    def taught(model, x, y):
        with torch.no_grad():
            soft = F.softmax(teacher(x) / TEMPERATURE, 1)
        return F.cross_entropy(model(x) / TEMPERATURE, soft)

    return trained(network(TEMPERATURE), taught)


@pytest.fixture(scope="session")
def images():
    return shapes("test", n=320, size=16)


class Masked(nn.Module):
    """A network behind something: `before` acts on the image, `after` on the logits."""

    def __init__(self, network, before=None, after=None):
        super().__init__()
        self.network, self.before, self.after = network, before or nn.Identity(), after or nn.Identity()

    def forward(self, x):
        return self.after(self.network(self.before(x)))


def quantized(x, levels=8):
    return (x * levels).round() / levels


def flags(model, data, **options):
    found = masking_flags(model, data, **{"images": 64, "generator": seeded()} | options)
    assert {flag.name for flag in found} == NAMES
    for flag in found:
        assert flag.explanation and all(isinstance(v, int | float | None) for v in flag.evidence.values())
    return {flag.name: flag for flag in found}


def raised(found):
    return {name for name, flag in found.items() if flag.raised}


@pytest.mark.parametrize(("eps", "norm"), [(EPS, "linf"), (EPS / 8, "linf"), (0.5, "l2")])
def test_a_plain_network_raises_no_flag(standard, images, eps, norm):
    found = flags(standard, images, eps=eps, norm=norm)
    assert not raised(found)
    assert found["robust without bound"].evidence["right under PGD"] < 0.03
    if norm == "linf" and eps == EPS:
        assert found["loss saturation"].evidence["right under PGD"] < 0.1
    assert 0.3 < found["zero gradients"].evidence["part of the change accounted for"] < 3


@pytest.mark.parametrize(("eps", "norm"), [(EPS, "linf"), (2 * EPS, "linf"), (0.5, "l2")])
def test_an_adversarially_trained_network_raises_no_flag(robust, images, eps, norm):
    found = flags(robust, images, eps=eps, norm=norm)
    assert not raised(found)
    if norm == "linf" and eps == EPS:
        assert found["loss saturation"].evidence["right under PGD"] > 0.3


def test_a_defensively_distilled_network_saturates_the_loss(distilled, images):
    found = flags(distilled, images)
    assert raised(found) == {"loss saturation", "robust without bound"}
    evidence = found["loss saturation"].evidence
    assert evidence["right under PGD"] > 0.7 and evidence["right under PGD, logits scaled"] < 0.2
    assert evidence["gradient zero"] > 0.5


def test_scaled_logits_saturate_the_loss(standard, images):
    found = flags(Masked(standard, after=lambda z: 1000 * z), images)
    assert raised(found) == {"loss saturation", "robust without bound"}
    assert found["loss saturation"].evidence["gradient zero"] > 0.8


@pytest.mark.parametrize("base", ["standard", "robust"])
@pytest.mark.parametrize(
    "noise",
    [lambda x: (x + 0.1 * torch.randn_like(x)).clamp(0, 1), lambda x: F.dropout(x, 0.1, training=True)],
    ids=["noise", "dropout"],
)
def test_a_randomized_network_is_found_out(base, noise, images, request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = flags(Masked(request.getfixturevalue(base), before=noise), images)
    assert raised(found) == {"randomized output"}
    assert found["randomized output"].evidence["difference of logits"] > 0.01


@pytest.mark.parametrize("base", ["standard", "robust"])
def test_a_quantized_input_has_no_gradient(base, images, request):
    found = flags(Masked(request.getfixturevalue(base), before=quantized), images)
    assert raised(found) == {"zero gradients", "black-box stronger", "robust without bound"}
    assert found["zero gradients"].evidence["gradient zero or NaN"] == 1
    assert found["black-box stronger"].evidence["right under PGD, all losses"] == 1
    assert found["black-box stronger"].evidence["of these, Square fools"] > 0.3


def test_a_gradient_that_is_tiny_beside_the_steps_is_none(standard, images):
    """Stairs with a slope of 1e-4 in place of none."""
    found = flags(Masked(standard, before=lambda x: quantized(x) + 1e-4 * (x - x.detach())), images)
    assert found["zero gradients"].raised and found["zero gradients"].evidence["gradient zero or NaN"] == 0


def test_a_gradient_of_nan_is_none(standard, images):
    found = flags(Masked(standard, before=lambda x: x + 0 * (x - x.detach()).sqrt()), images)
    assert found["zero gradients"].raised and found["zero gradients"].evidence["gradient zero or NaN"] == 1


def test_transfer_breaks_what_the_gradient_does_not(standard, images):
    masked = Masked(standard, before=partial(quantized, levels=16))
    without = flags(masked, images, surrogate=None)["black-box stronger"]
    found = flags(masked, images, surrogate=standard)["black-box stronger"]
    assert found.evidence["of these, transfer fools"] > 0.9
    assert "of these, transfer fools" not in without.evidence


class Trap(nn.Module):
    """Wrong only where the mean of the image lies eps above grey, or nearly; the gradient leads on upward."""

    def forward(self, x):
        s = (x.flatten(1).mean(1) - 128 / 255) / EPS
        z = 0.1 * s - 1 + 2 * torch.exp(-(((s - 1) / 0.05) ** 2))
        return torch.stack([torch.zeros_like(z), z], 1)


def test_a_larger_radius_that_hurts_is_found_out():
    grey = Images(torch.full((40, 3, 8, 8), 128, dtype=torch.uint8), torch.zeros(40, dtype=torch.long), ("a", "b"))
    found = flags(Trap(), grey)
    assert found["more effort hurts"].raised
    evidence = found["more effort hurts"].evidence
    assert evidence["right, 20 steps"] == 0 and evidence["right, 2 eps"] == evidence["right, 4 eps"] == 1


def test_the_scaled_cross_entropy_is_the_plain_one_for_small_logits():
    z, y = 4 * torch.rand(7, 5, generator=seeded()), torch.arange(7) % 5
    torch.testing.assert_close(scaled_cross_entropy(z, y), F.cross_entropy(z, y, reduction="none"))
    wide = z / (z.amax(1) - z.amin(1))[:, None] * 10
    torch.testing.assert_close(
        scaled_cross_entropy(1000 * wide, y), F.cross_entropy(wide, y, reduction="none"), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("scale", [1.0, 8.0, 1000.0])
def test_walks_that_are_left_out_would_have_changed_nothing(images, scale):
    """Of images whose logits leave the range of 10, and where all, some or none do."""
    model = network(scale)
    probes = draw(model, images, 40, eps=EPS, norm="linf", batch_size=16, seed=0)
    every = [probes.fooled_by(probes.walk(loss=loss)) for loss in ("ce", scaled_cross_entropy)]
    found = _with_cross_entropy(probes)
    assert all(torch.equal(a, b) for a, b in zip(found, every, strict=True))


def test_few_images_raise_no_flag_by_chance(robust, images):
    """One image of twenty is no sign."""
    assert not raised(flags(robust, images, images=20))


def test_the_same_generator_gives_the_same_evidence(robust, images):
    runs = [flags(robust, images, images=20, generator=seeded(s)) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_the_size_of_the_batches_changes_no_flag(robust, images):
    assert raised(flags(robust, images, images=20, batch_size=7)) == set()


def test_the_model_and_the_global_generator_are_left_as_they_were(images):
    model = trained(network(), plainly, epochs=1).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    masking_flags(model, images.subset(64), images=8)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert not model._forward_hooks


def test_where_nothing_is_right_there_is_nothing_to_look_at():
    x = torch.full((4, 3, 8, 8), 200, dtype=torch.uint8)
    model = Linear(3, (3, 8, 8))
    wrong = (model(x / 255).argmax(1) + 1) % 3
    assert masking_flags(model, Images(x, wrong, ("a", "b", "c"))) is None


def test_bad_input_is_named(images):
    with pytest.raises(InputError, match="the surrogate has 3 classes, the data 16"):
        masking_flags(network(), images, surrogate=Linear(3, (3, 16, 16)))
    with pytest.raises(InputError, match="images must be a whole number >= 1"):
        masking_flags(network(), images, images=0)


@pytest.mark.skipif("LRC_DATA" not in os.environ, reason="LRC_DATA names no folder with CIFAR-10")
@pytest.mark.parametrize("name", ["cifar10-resnet8-standard", "cifar10-resnet8-at"])
def test_the_shipped_networks_raise_no_flag(name):
    assert not raised(flags(lrc.zoo.load(name), lrc.data.cifar10("test"), images=50))
