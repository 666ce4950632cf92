"""Layers that defend: JPEG against Pillow's, channel suppression against its formula."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator, nn
from torch.nn import functional as F

from lrc import InputError, linear_map
from lrc.attacks import pgd
from lrc.attacks.graphs import Wiring
from lrc.models import build
from lrc.models.layers import CAS, JPEG, Guarded, labelled
from lrc.training.objectives import named, suppressed


def pictures(n=8, size=32, seed=0):
    """Smooth images in whole 255ths."""
    coarse = torch.rand(n, 3, 6, 6, generator=Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1).mul(255).round() / 255


def by_pillow(x, quality, mode):
    """One image through Pillow's encoder and decoder, colours at full resolution."""
    pixels = (x * 255).round().byte().permute(1, 2, 0).numpy()
    held = io.BytesIO()
    Image.fromarray(pixels[..., 0] if mode == "L" else pixels).save(held, "JPEG", quality=quality, subsampling=0)
    return torch.from_numpy(np.array(Image.open(held).convert("RGB"))).permute(2, 0, 1) / 255


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 51, 75, 95, 100])
def test_the_tables_are_pillows(quality):
    held = io.BytesIO()
    Image.new("RGB", (8, 8)).save(held, "JPEG", quality=quality)
    tables = Image.open(held).quantization
    ours = JPEG(quality).tables.flatten(1).int().tolist()
    assert ours == [tables[0], tables[1], tables[1]]


@pytest.mark.parametrize("quality", [10, 50, 75, 95])
def test_jpeg_is_pillows(quality):
    """To one 255th for grey images, but where a coefficient lies between two multiples: Pillow has integer arithmetic.

    Colours it rounds once more before the transform, so that there the errors are compared.
    """
    x = pictures(32)
    grey = x.mean(1, keepdim=True).mul(255).round().div(255).expand(-1, 3, -1, -1)
    off = (JPEG(quality)(grey) - torch.stack([by_pillow(image, quality, "L") for image in grey])).abs() * 255
    assert (off < 1.01).float().mean() > 0.93 and off.mean() < 0.5
    ours, theirs = JPEG(quality)(x), torch.stack([by_pillow(image, quality, "RGB") for image in x])
    errors = [(made - x).abs().mean().item() * 255 for made in (ours, theirs)]
    assert errors[0] == pytest.approx(errors[1], rel=0.1, abs=0.5)
    assert (ours - theirs).abs().mean() * 255 < 1.6


def test_better_quality_changes_less():
    x = pictures()
    errors = [(JPEG(quality)(x) - x).abs().mean().item() for quality in (5, 20, 50, 80, 95, 100)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5 / 255


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 20, 12), (2, 1, 1)])
def test_sides_of_any_length(shape):
    n, h, w = shape
    x = torch.rand(n, 3, h, w, generator=Generator().manual_seed(0))
    assert JPEG(100)(x).shape == x.shape and (JPEG(100)(x) - x).abs().max() < 4 / 255
    flat = torch.full_like(x, 0.5)
    assert (JPEG(75)(flat) - flat).abs().max() < 1 / 255


def test_each_image_is_compressed_alone():
    x = pictures()
    assert torch.equal(JPEG(50)(x)[2:4], JPEG(50)(x[2:4]))


def test_the_gradient_goes_straight_through():
    """As of the identity where nothing is clipped, so that attacks are not led astray by a gradient of zero."""
    x = (0.25 + 0.5 * pictures()).requires_grad_()
    c = torch.randn(x.shape, generator=Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((JPEG(50)(x) * c).sum(), x)
    torch.testing.assert_close(gradient, c, rtol=1e-4, atol=1e-4)


def test_the_layer_takes_images_in_double_precision_and_under_autocast():
    x = pictures()
    assert JPEG(50)(x.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(JPEG(50)(x), JPEG(50)(x.clone()))
    torch.testing.assert_close(JPEG(50)(x.contiguous(memory_format=torch.channels_last)), JPEG(50)(x))


def test_jpeg_in_front_of_a_network():
    bare = build("resnet8", width=4, generator=Generator().manual_seed(0)).eval()
    guarded = build("resnet8", width=4, jpeg=30, generator=Generator().manual_seed(0)).eval()
    x = pictures()
    assert isinstance(guarded, Guarded) and guarded.input_shape == (3, 32, 32)
    assert torch.equal(guarded(x), bare(JPEG(30)(x))) and not torch.equal(guarded(x), bare(x))
    assert torch.equal(guarded.features(x), bare.features(JPEG(30)(x)))
    assert set(guarded.state_dict()) == {f"network.{name}" for name in bare.state_dict()}
    torch.testing.assert_close(linear_map(guarded), linear_map(bare))
    assert named("jpeg")(guarded, x, torch.arange(8)).isfinite()
    with pytest.raises(InputError, match=r"build\(name, jpeg=50\)"):
        named("jpeg")(bare, x, torch.arange(8))


@pytest.mark.parametrize("quality", [0, 101, -5])
def test_qualities_that_are_none(quality):
    with pytest.raises(InputError, match="1..100"):
        JPEG(quality)


def suppressing():
    generator = Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), CAS(5, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(5, 4)).double()  # fmt: skip
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.double)
    return model


def test_channels_are_weighed_by_the_class_that_is_predicted_or_by_the_true_one():
    model, x, y = suppressing(), pictures(6, size=7).double(), torch.arange(6) % 4
    hidden, cas = model[:2](x), model[2]
    said = cas.fc(hidden.mean((2, 3)))
    for labels, made in ((said.argmax(1), cas(hidden)), (y, _with_labels(cas, hidden, y))):
        for i in range(6):
            for c in range(5):
                torch.testing.assert_close(made[i, c], hidden[i, c] * cas.fc.weight[labels[i], c])
    assert not torch.equal(said.argmax(1), y)


def _with_labels(cas, hidden, y):
    with labelled(cas, y) as heard:
        made = cas(hidden)
    assert len(heard) == 1 and cas.labels is None and not cas.fc._forward_hooks
    return made


def test_suppressing_is_its_formula_and_the_attack_is_not_told_the_answer():
    model, x, y = suppressing(), pictures(6, size=7).double(), torch.arange(6) % 4
    hidden = model[:2](x)
    said = model[2].fc(hidden.mean((2, 3)))
    z = model[3:](hidden * model[2].fc.weight[y][:, :, None, None])
    expected = F.cross_entropy(z, y) + 2 * F.cross_entropy(said, y)
    ours = suppressed(model, x, y, x)
    torch.testing.assert_close(ours, expected)
    parameters = list(model.parameters())
    torch.testing.assert_close(torch.autograd.grad(ours, parameters), torch.autograd.grad(expected, parameters))
    made = pgd(model, x, y, eps=8 / 255, steps=10, step=2 / 255, generator=Generator().manual_seed(1))
    torch.testing.assert_close(
        named("cas")(model, x, y, generator=Generator().manual_seed(1)), suppressed(model, x, y, made)
    )


def test_a_layer_of_its_own_has_weights_from_the_generator():
    made = [CAS(64, 10, generator=Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(made[0].fc.weight, made[1].fc.weight) and not torch.equal(made[0].fc.weight, made[2].fc.weight)
    assert made[0].fc.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.15) and not made[0].fc.bias.any()
    state = torch.get_rng_state()
    build("resnet18", width=4, suppress=True, generator=Generator())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("options", [{"jpeg": 50}, {"suppress": True}])
def test_networks_with_such_layers_can_be_rewired(options):
    """Their forward passes cannot be traced, so the tracer must not look into them; forward all is as it was."""
    model = build("resnet8", width=4, generator=Generator().manual_seed(0), **options).eval()
    wiring = Wiring(model)
    assert wiring.relus(0) and wiring.residuals()
    x = pictures(2)
    torch.testing.assert_close(wiring.assemble()(x), model(x), rtol=0, atol=0)


def test_suppression_in_a_network():
    model = build("resnet18", width=4, suppress=True, generator=Generator().manual_seed(0))
    assert [type(m) for m in model.stages][-4:] == [type(model.stages[0]), CAS, type(model.stages[0]), CAS]
    bare = nn.ModuleList(m for m in model.stages if not isinstance(m, CAS))
    assert len(bare) == 8
    W = linear_map(model)
    model.stages = nn.Sequential(*bare)
    torch.testing.assert_close(linear_map(model), W)
    with pytest.raises(InputError, match=r"build\(name, suppress=True\)"):
        named("cas", steps=1)(model, pictures(), torch.arange(8))
