"""The set that an attack may not leave: images within eps of x, in [0, 1], exactly."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lrc.attacks.rng import normal, uniform
from lrc.utils.checks import check_choice
from lrc.utils.errors import InputError
from lrc.utils.tensors import Labels, Mask, PerImage, Pixels

SLACK = 1e-6  # of the radius, for the rounding of an L2 norm
ROUNDING = 1e-5  # of the radius: how far outside an attack of one's own may end by rounding


@dataclass(frozen=True)
class Ball:
    """Images within `eps` of each `x` in the norm, and in [0, 1].

    Both hold exactly for what `project` returns: for the real numbers that the floats stand for.

    Attributes:
        x: centres, in [0, 1].
        eps: radius, in units of a pixel.
        norm: "linf" or "l2".
        lower, upper: of each pixel: of the whole set for "linf", 0 and 1 for "l2".
    """

    x: Pixels
    eps: float
    norm: str
    lower: Float[Tensor, "..."]
    upper: Float[Tensor, "..."]

    def __getitem__(self, rows: Tensor) -> "Ball":
        """The balls around the images `x[rows]`."""
        if self.norm == "linf":
            return Ball(self.x[rows], self.eps, self.norm, self.lower[rows], self.upper[rows])
        return Ball(self.x[rows], self.eps, self.norm, self.lower, self.upper)

    def project(self, z: Pixels) -> Pixels:
        """The points of the balls nearest to z: for "linf" exactly so, for "l2" those of the ball, then cut to [0, 1].

        What lies inside is returned unchanged.
        """
        if self.norm == "l2":
            z = _shrink(z, self.x, self.eps)
        return torch.clamp(z, self.lower, self.upper)

    def contains(self, z: Pixels) -> Mask:
        """Whether each z lies in its ball and in [0, 1]."""
        inside = ((z >= self.lower) & (z <= self.upper)).flatten(1).all(1)
        return inside if self.norm == "linf" else inside & (distance(z, self.x, "l2") <= self.eps)

    def accept(self, z: Pixels, *, name: str) -> Pixels:
        """What the attack called `name` gave, brought inside where no more than rounding has left it outside.

        An attack that clips ``x_adv - x`` to eps, and adds it to x again, ends that far outside.

        Raises InputError: further outside, or NaN.
        """
        z, rounding = z.to(self.x), torch.finfo(self.x.dtype).eps
        inside = self.project(z)
        if self.norm == "l2":
            rounding *= math.sqrt(max(self.x[:1].numel(), 1))
        near = distance(z, self.x, self.norm) <= self.eps * (1 + ROUNDING) + rounding
        if not (near & (distance(z, z.clamp(0, 1), self.norm) <= rounding)).all():
            raise InputError(f"{name} left the ball of radius {self.eps} in {self.norm}: it must stay inside")
        return inside

    def sample(self, keys: Labels, *, draw: int) -> Pixels:
        """A point of each ball, uniform by volume, then cut to [0, 1]; from the image's own stream."""
        shape = tuple(self.x.shape[1:])
        if self.norm == "linf":
            return self.project(self.x + (2 * uniform(keys, shape, draw=draw) - 1).to(self.x.dtype) * self.eps)
        direction = unit(normal(keys, shape, draw=draw), "l2")
        radius = self.eps * uniform(keys, (1,), draw=draw + 1) ** (1 / max(self.x[:1].numel(), 1))
        return self.project(self.x + (direction * spread(radius.squeeze(1), self.x)).to(self.x.dtype))


def ball(x: Pixels, eps: float, norm: str) -> Ball:
    """The balls of radius eps around x, in [0, 1]. Raises InputError: an unknown norm."""
    check_choice("norm", norm, ("linf", "l2"))
    if norm == "linf":
        return Ball(x, eps, norm, *box(x, eps))
    return Ball(x, eps, norm, x.new_tensor(0.0), x.new_tensor(1.0))


def box(x: Pixels, eps: float) -> tuple[Pixels, Pixels]:
    """Lowest and highest images within eps of x (Linf) and in [0, 1]: |bound - x| <= eps in real numbers."""
    radius = _floor(eps, x)
    lower, upper = x - radius, x + radius
    lower = torch.where(_error(x, -radius, lower) > 0, torch.nextafter(lower, x), lower)
    upper = torch.where(_error(x, radius, upper) < 0, torch.nextafter(upper, x), upper)
    return lower.clamp_(min=0), upper.clamp_(max=1)


def unit(v: Pixels, norm: str) -> Pixels:
    """The steepest step of length one along each v: its sign for "linf", v / |v| for "l2"; 0 where v is 0 or NaN."""
    if norm == "linf":
        return v.sign()
    peak = v.abs().amax(within(v), keepdim=True)
    v = torch.where((peak > 0) & peak.isfinite(), v / peak, 0.0)  # first, or the squares of small gradients vanish
    return v / norms(v).clamp(min=1)


def norms(delta: Pixels) -> Float[Tensor, "n *ones"]:
    """L2 norm of each image, shaped to multiply the batch."""
    return torch.linalg.vector_norm(delta, 2, within(delta), keepdim=True)


def distance(z: Pixels, x: Pixels, norm: str) -> PerImage:
    """Distance of each z from its x, in double precision where the device has it."""
    order = torch.inf if norm == "linf" else 2
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    return torch.linalg.vector_norm(z.to(wide).sub(x), order, within(x))


def within(v: Pixels) -> tuple[int, ...]:
    """The dimensions inside an image, to reduce over; flattening them would copy what is channels-last."""
    return tuple(range(1, v.dim()))


def spread(values: Shaped[Tensor, "n"], like: Pixels) -> Shaped[Tensor, "n *ones"]:
    """One value an image, shaped to meet the batch `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _shrink(z: Tensor, x: Tensor, eps: float) -> Tensor:
    """z where it lies within eps of x, else the point on the way to it, each coordinate rounded toward x."""
    delta = z - x
    length = distance(delta, torch.zeros_like(x), "l2")
    outside = length > eps * (1 - SLACK)
    if not outside.any():
        return z
    delta = delta * spread(eps * (1 - 2 * SLACK) / length.clamp(min=torch.finfo(x.dtype).tiny), x).to(x.dtype)
    near = x + delta
    too_far = _error(x, delta, near) * delta.sign() < 0
    return torch.where(spread(outside, z), torch.where(too_far, torch.nextafter(near, x), near), z)


def _floor(eps: float, x: Tensor) -> Tensor:
    """eps in the type of x, rounded down."""
    radius = torch.tensor(eps, dtype=x.dtype)
    if radius.item() > eps:
        radius = torch.nextafter(radius, torch.zeros_like(radius))
    return radius.to(x.device)


def _error(a: Tensor, b: Tensor, rounded: Tensor) -> Tensor:
    """a + b - rounded, exactly, where rounded = fl(a + b) (Knuth's TwoSum)."""
    virtual = rounded - a
    return (a - (rounded - virtual)) + (b - virtual)
