"""The ball that no attack leaves, and the random numbers that are each image's own."""

import pytest
import torch
from attacking import grey
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from lrc.attacks.rng import _mix, image_keys, integers, new_seed, normal, signs, uniform
from lrc.attacks.threat_model import ball, box, norms, unit
from lrc.utils.errors import InputError

seeds = st.integers(0, 2**32)
radii = st.one_of(st.floats(0, 2), st.floats(0, 1e-5), st.sampled_from([0.0, 8 / 255, 0.031, 1.0]))
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


def pixels(seed, n, shape):
    """Images with some pixels at 0 and at 1, and some tiny ones."""
    generator = Generator().manual_seed(seed)
    x = torch.rand(n, *shape, generator=generator).mul(1.3).sub(0.15).clamp(0, 1)
    return torch.where(torch.rand(x.shape, generator=generator) < 0.1, x * 1e-6, x)


@settings(max_examples=300, deadline=None)
@given(eps=radii, seed=seeds, shape=shapes, wide=st.booleans())
def test_box_holds_in_real_numbers(eps, seed, shape, wide):
    x = pixels(seed, 3, shape).to(torch.float64 if wide else torch.float32)
    lower, upper = box(x, eps)
    for bound in (lower, upper):
        assert ((bound.double() - x.double()).abs() <= eps).all()  # exact for floats, whose difference fits a double
        assert ((bound - x).abs() <= eps).all() and (bound >= 0).all() and (bound <= 1).all()
    assert (lower <= x).all() and (x <= upper).all()
    inner = (x.double() - lower.double() >= min(eps, 1) * (1 - 1e-6) - 2e-7) | (lower == 0)
    assert inner.all()  # and it is no smaller than it has to be


@settings(max_examples=300, deadline=None)
@given(
    eps=radii, seed=seeds, shape=shapes, far=st.floats(0, 10), norm=st.sampled_from(["linf", "l2"]), wide=st.booleans()
)
def test_projection_lies_in_the_ball_in_real_numbers_and_leaves_what_does(eps, seed, shape, far, norm, wide):
    x = pixels(seed, 3, shape).to(torch.float64 if wide else torch.float32)
    z = x + far * torch.randn(x.shape, generator=Generator().manual_seed(seed), dtype=x.dtype)
    inside = ball(x, eps, norm)
    found = inside.project(z)
    delta = found.double() - x.double()
    assert found.min() >= 0 and found.max() <= 1
    assert (delta.flatten(1).norm(p=torch.inf if norm == "linf" else 2, dim=1) <= eps).all()
    assert inside.contains(found).all() and torch.equal(inside.project(found), found)
    assert torch.equal(inside[torch.tensor([1])].project(z[1:2]), found[1:2])  # row by row the same


@settings(max_examples=200, deadline=None)
@given(eps=st.floats(1e-3, 0.3), seed=seeds, norm=st.sampled_from(["linf", "l2"]))
def test_projection_is_the_nearest_point_of_the_ball(eps, seed, norm):
    """Nearer than any of many other points of the ball; where [0, 1] does not bind."""
    generator = Generator().manual_seed(seed)
    x = (0.4 + 0.2 * torch.rand(1, 6, generator=generator)).expand(300, 6)
    z = x + torch.randn(1, 6, generator=generator)
    inside = ball(x, eps, norm)
    others = inside.project(x + eps * torch.randn(300, 6, generator=generator))
    assert ((others - z).norm(dim=1) >= (inside.project(z) - z).norm(dim=1) - 1e-5).all()


def test_what_lies_outside_is_not_contained():
    x = torch.full((1, 4), 0.5)
    for norm, inner, outer in (("linf", 0.1, 0.100001), ("l2", 0.05, 0.0501)):
        inside = ball(x, 0.1, norm)
        assert inside.contains(x + inner * (1 - 1e-6)).all() and not inside.contains(x + outer).any()
    assert not ball(x, 9.0, "l2").contains(x + 0.6).any()


def test_an_unknown_norm_is_named():
    with pytest.raises(InputError, match="no norm is called 'l1'"):
        ball(torch.rand(1, 3), 0.1, "l1")


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30])
def test_a_step_has_length_one_however_small_the_gradient(scale):
    v = torch.tensor([[3.0, -4.0]]) * scale
    assert torch.equal(unit(v, "linf"), torch.tensor([[1.0, -1.0]]))
    torch.testing.assert_close(unit(v, "l2"), torch.tensor([[0.6, -0.8]]), rtol=1e-2, atol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_gradient_no_step(norm):
    v = torch.tensor([[0.0, 0.0], [float("nan"), float("nan")]])
    assert unit(v, norm).eq(0).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_samples_are_uniform_by_volume(norm):
    """Of a ball's volume (r / eps)^d lies within r; in five dimensions half of it within 0.87 eps."""
    x = torch.rand(20_000, 5, generator=Generator().manual_seed(0)) * 1e-3 + 0.5
    delta = ball(x, 0.1, norm).sample(image_keys(x, Generator().manual_seed(1)), draw=0) - x
    radius = delta.norm(p=torch.inf if norm == "linf" else 2, dim=1) / 0.1
    assert radius.max() <= 1 + 1e-6 and abs((radius**5).mean() - 0.5) < 0.01 and delta.mean(0).abs().max() < 0.002


def test_the_stream_is_splitmix64():
    """First numbers for seed 1234567 as published with the reference implementation."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    counters = torch.arange(1, 6) * (0x9E3779B97F4A7C15 - 2**64)
    assert [n % 2**64 for n in _mix(1234567 + counters).tolist()] == expected


@settings(max_examples=200, deadline=None)
@given(seed=seeds, shape=shapes, draw=st.integers(0, 2**40), rows=st.permutations(range(4)))
def test_an_images_numbers_depend_on_the_generator_and_itself_alone(seed, shape, draw, rows):
    x = pixels(seed, 4, shape)
    keys = image_keys(x, Generator().manual_seed(seed))
    other = image_keys(x[rows][:2], Generator().manual_seed(seed))
    assert torch.equal(other, keys[rows][:2])
    assert torch.equal(uniform(other, (7,), draw=draw), uniform(keys, (7,), draw=draw)[rows][:2])
    assert not torch.equal(image_keys(x, Generator().manual_seed(seed + 1)), keys)


def test_every_pixel_and_every_draw_counts():
    x = torch.rand(1, 3, 4, 4, generator=Generator().manual_seed(0)).repeat(49, 1, 1, 1)
    for i in range(48):
        x[i].view(-1)[i] += 2**-20
    keys = image_keys(x, Generator().manual_seed(0))
    assert len(set(keys.tolist())) == 49
    assert len({tuple(uniform(keys[:1], (3,), draw=draw)[0].tolist()) for draw in range(100)}) == 100


def test_layout_and_zeros_of_either_sign_do_not_count():
    x = torch.rand(2, 3, 4, 5)
    x[0, 0, 0, 0] = 0.0
    minus = x.clone()
    minus[0, 0, 0, 0] = -0.0
    keys = [
        image_keys(z, Generator().manual_seed(0)) for z in (x, x.contiguous(memory_format=torch.channels_last), minus)
    ]
    assert torch.equal(keys[0], keys[1]) and torch.equal(keys[0], keys[2])


def test_distributions():
    keys = image_keys(torch.rand(100, 5, generator=Generator().manual_seed(0)), Generator().manual_seed(0))
    u, z = uniform(keys, (1000,), draw=0), normal(keys, (1000,), draw=1)
    assert 0 < u.min() and u.max() < 1 and abs(u.mean() - 0.5) < 0.005 and abs(u.var() - 1 / 12) < 0.002
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01 and z.isfinite().all() and abs((z**4).mean() - 3) < 0.1
    assert torch.corrcoef(u).sub(torch.eye(100)).abs().max() < 0.2  # of two images
    s = signs(keys, (1000,), draw=2)
    assert s.abs().eq(1).all() and abs(s.mean()) < 0.02
    k = integers(keys, (1000,), below=7, draw=3)
    assert k.min() == 0 and k.max() == 6 and (k.flatten().bincount() / k.numel() - 1 / 7).abs().max() < 0.005


def test_seeds_come_from_the_generator_or_from_the_system():
    assert new_seed(Generator().manual_seed(0)) == new_seed(Generator().manual_seed(0))
    before = torch.get_rng_state()
    assert new_seed() != new_seed() and torch.equal(torch.get_rng_state(), before)


def test_norms_meet_the_batch():
    assert norms(torch.ones(2, 3, 4)).shape == (2, 1, 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [0.0, 1e-4, 0.03, 0.2])
def test_what_rounding_left_outside_is_accepted_and_what_is_further_is_not(norm, eps):
    x = grey(20, (3, 8, 8))
    step = torch.ones_like(x) if norm == "linf" else torch.ones_like(x) / x[0].numel() ** 0.5
    inside = ball(x, eps, norm)
    for times in (1, 1 + 5e-6):
        accepted = inside.accept(x + times * eps * step, name="own")
        assert inside.contains(accepted).all() and (accepted - x).abs().amax() >= 0.95 * eps * step.amax()
    for far in (x + 1.001 * eps * step + 1e-5, x * torch.nan, x + 1, -x):
        with pytest.raises(InputError, match="own left the ball"):
            inside.accept(far, name="own")
