"""Random numbers of each image's own, so that its answer depends on no neighbour, batch size or device.

The rule: **what an attack draws for an image is a function of the generator and of that image's pixels**, not of
its place in the batch or of what else is there. An attack draws one number, the seed, from its generator; seed and
pixels make the image's key; the key starts the image's own SplitMix64 stream, whose element j is computed directly,
without the ones before it. So equal images get equal numbers, and a second call with the same generator others.

Without a generator the seed comes from the operating system; PyTorch's global generators are neither read nor
advanced.

Source: Steele, Lea & Flood, *Fast splittable pseudorandom number generators* (2014), with the constants of
SplitMix64; counter-based use: Salmon et al., *Parallel random numbers: as easy as 1, 2, 3* (2011).
"""

import secrets

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from lrc.utils.checks import check_generator
from lrc.utils.tensors import Pixels

GAMMA = 0x9E3779B97F4A7C15 - 2**64  # as signed numbers: PyTorch's 64-bit integers wrap around like unsigned ones
MULTIPLIERS = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def image_keys(x: Pixels, generator: Generator | None) -> Int[Tensor, " n"]:
    """The key of each image's stream, from one number of `generator` and the image's pixels as float32."""
    words = (x.float().flatten(1) + 0.0).view(torch.int32).long()  # + 0.0 makes one zero of two
    weights = _mix(_counters(words.shape[1], x.device)) | 1  # odd: no pixel's change is lost
    return _mix((words * weights).sum(1) + new_seed(generator))


def new_seed(generator: Generator | None = None) -> int:
    """A 64-bit number, signed: the next of the generator, or one from the operating system."""
    check_generator(generator)
    if generator is None:
        return secrets.randbits(64) - 2**63
    low, high = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
    return int(torch.randint(low, high, (), generator=generator, device=generator.device))


def uniform(keys: Int[Tensor, " n"], shape: tuple[int, ...], *, draw: int) -> Pixels:
    """Numbers in (0, 1), odd multiples of 2^-24; the same keys and `draw` give the same ones."""
    bits = _bits(keys, shape, draw).bitwise_right_shift_(41).bitwise_and_(2**23 - 1)
    return bits.float().add_(0.5).mul_(2.0**-23)


def normal(keys: Int[Tensor, " n"], shape: tuple[int, ...], *, draw: int) -> Pixels:
    """Standard normal numbers, by the inverse of their distribution function."""
    return torch.erfinv(uniform(keys, shape, draw=draw).mul_(2).sub_(1)).mul_(2**0.5)


def signs(keys: Int[Tensor, " n"], shape: tuple[int, ...], *, draw: int) -> Pixels:
    """Numbers -1 or 1."""
    return torch.where(_bits(keys, shape, draw) < 0, -1.0, 1.0)


def integers(keys: Int[Tensor, " n"], shape: tuple[int, ...], *, below: int, draw: int) -> Int[Tensor, "n *shape"]:
    """Numbers in range(below)."""
    return (uniform(keys, shape, draw=draw) * below).long().clamp_(max=below - 1)


def _bits(keys: Tensor, shape: tuple[int, ...], draw: int) -> Tensor:
    """The first elements of the streams that `draw` splits off those of the keys."""
    starts = _mix(_mix(keys + GAMMA) + torch.tensor(draw, device=keys.device) * GAMMA)
    counters = _counters(torch.Size(shape).numel(), keys.device)
    return _mix(starts[:, None] + counters).view(len(keys), *shape)


def _counters(count: int, device: torch.device) -> Tensor:
    return torch.arange(1, count + 1, device=device) * GAMMA


def _mix(z: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The output function of SplitMix64, a bijection of 64-bit words; in place, as it is called on whole batches."""
    z, shifted = z.clone(), torch.empty_like(z)
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        torch.bitwise_right_shift(z, shift, out=shifted).bitwise_and_(2 ** (64 - shift) - 1)
        z.bitwise_xor_(shifted).mul_(multiplier)
    torch.bitwise_right_shift(z, 31, out=shifted).bitwise_and_(2**33 - 1)
    return z.bitwise_xor_(shifted)
