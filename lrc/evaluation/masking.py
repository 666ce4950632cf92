"""Signs that a network only seems robust, because its gradients lead attacks nowhere: each with its evidence."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor, nn

from lrc.attacks import mifgsm, pgd, square
from lrc.attacks.autoattack import STRANGE, Attack, called
from lrc.attacks.common import ascent, attacked, check
from lrc.attacks.losses import Loss, cross_entropy, fooled, margin
from lrc.attacks.rng import image_keys, new_seed, signs
from lrc.data import Images
from lrc.data.images import check_set
from lrc.evaluation.accuracy import check_data, device_of
from lrc.evaluation.report import Flag, sign_test, wilson
from lrc.utils.checks import check_network, check_whole
from lrc.utils.errors import InputError
from lrc.utils.tensors import Logits, Mask, PerImage

STEPS = 20
QUERIES = 300  # of Square, for the images that PGD leaves: five times the work of PGD-20 on them
DIRECTIONS = 4  # in which the network is asked how much it changes
REPEATS = 8  # times that the same images are shown
SHARE = 0.02  # of the images: the 95 % interval of what is found must lie above it
GAIN = 0.05  # of the images: what one attack must fool more than the other, and surely so
SURE = 0.01  # p value of the sign test
ASTRAY = 0.01  # a gradient that accounts for less of the change that is seen leads nowhere
NOISE = 1e-3  # of the range of an image's logits: what rounding may do when it is shown again
RANGE = 10.0  # of the logits: there cross-entropy in float32 is far from saturation


def masking_flags(
    model: nn.Module,
    data: Images,
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    images: int = 200,
    surrogate: nn.Module | None = None,
    batch_size: int = 250,
    generator: Generator | None = None,
) -> tuple[Flag, ...] | None:
    """Six signs of gradient masking, looked for on some images that are classified rightly.

    - "zero gradients": the gradient of the logits' margin is zero, or tiny against the change that random steps show.
    - "loss saturation": the gradient of the cross-entropy is zero in float32 where that of the margin is not, or PGD
      fools clearly more images when large logits are scaled down to a range of 10.
    - "randomized output": the same images shown again give other logits.
    - "black-box stronger": Square, or examples for the surrogate, fool images that PGD does not, with either loss.
    - "robust without bound": PGD leaves images right though it may change every pixel as it likes.
    - "more effort hurts": PGD fools clearly fewer images with more steps, or with a larger eps.

    It takes 4 to 10 times as long as PGD-20 on these images, and longer for a network that PGD leaves alone. PGD starts
    at the image: a random start would hide that it makes no way.

    Args:
        model: images in [0, 1] to logits; run in eval mode, and left as it was.
        data: labelled images; drawn from until there are `images` that are classified rightly.
        eps, norm: as in `lrc.attacks.pgd`.
        images: number of images to look at; with fewer than 50 only gross signs show.
        surrogate: another network for the same classes, to transfer examples from (MI-FGSM, 10 steps).
        batch_size: images at a time.
        generator: of the draw, the directions, and Square.

    Returns:
        The six flags, raised or not; None where no image is classified rightly, so that there is nothing to look at.

    Raises:
        InputError: images < 1, a surrogate of other classes or on another device, or as in `lrc.attacks.pgd`.

    Source: Athalye et al., *Obfuscated gradients give a false sense of security* (2018), section 3.1; Carlini et al.,
    *On evaluating adversarial robustness* (2019), section 5; saturation: Carlini & Wagner, *Defensive distillation is
    not robust to adversarial examples* (2016).
    """
    check_whole("images", images, 1)
    check_set(data, "data")
    if not len(data):
        return None
    batch_size = check_data(model, data, batch_size=batch_size, generator=generator)
    check(data.float([0]), data.y[:1], eps, norm)
    if surrogate is not None:
        check_surrogate(surrogate, model, data)
    seed = new_seed(generator) % 2**62
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=STRANGE)  # such an image counts as fooled
        probes = draw(model, data, images, eps=eps, norm=norm, batch_size=batch_size, seed=seed)
        if not len(probes):
            return None
        plain, scaled = _with_cross_entropy(probes)
        rest = (~(plain | scaled)).nonzero().squeeze(1)
        other = torch.zeros_like(plain)
        other[rest] = probes.rows(rest).fooled_by(probes.walk(loss="margin"))
        return (
            _gradients(probes),
            _saturation(probes, plain, scaled),
            _randomized(probes),
            _black_box(probes, plain | scaled | other, surrogate),
            _unbounded(probes),
            _effort(probes, plain),
        )


@dataclass(frozen=True)
class ProbeSet:
    """A network, and images that it classifies rightly, on which attacks are tried."""

    model: nn.Module
    x: Float[Tensor, "n c h w"]
    y: Int64[Tensor, " n"]
    eps: float
    norm: str
    batch_size: int
    seed: int

    def __len__(self) -> int:
        return len(self.x)

    @property
    def whole(self) -> float:
        """The radius within which every pixel may take any value."""
        return 1.0 if self.norm == "linf" else math.sqrt(self.x[:1].numel() or 1)

    def each(self, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """What is measured of the images, batch by batch, on the CPU."""
        parts = zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True)
        return torch.cat([measure(x, y).cpu() for x, y in parts])

    def fooled_by(self, attack: Attack, *, through: nn.Module | None = None) -> Mask:
        """Which images the attack fools; its examples are made for another network, if one is given."""

        def judge(x: Tensor, y: Tensor) -> Tensor:
            x_adv = called(attack, through or self.model, x, y, {"generator": self.generator()})
            with attacked(self.model, x_adv, y) as (victim, images, labels):
                return fooled(victim.verdict(images), labels)

        return self.each(judge)

    def rows(self, which: Int64[Tensor, " m"]) -> "ProbeSet":
        """The same with some of the images."""
        here = which.to(self.x.device)
        return replace(self, x=self.x[here], y=self.y[here])

    def walk(self, *, steps: int = STEPS, times: float = 1.0, loss: str | Loss = "ce") -> Attack:
        """PGD from the image in a ball of `times` eps."""
        eps = min(times * self.eps, self.whole)
        return partial(
            pgd, eps=eps, norm=self.norm, steps=steps, step=eps / min(steps, 4), random_start=False, loss=loss
        )

    def generator(self) -> Generator:
        """Always the same."""
        return Generator().manual_seed(self.seed)


def draw(model: nn.Module, data: Images, images: int, *, eps: float, norm: str, batch_size: int, seed: int) -> ProbeSet:
    """Images drawn from the data until there are enough that are right."""
    order = torch.randperm(len(data), generator=Generator().manual_seed(seed))
    device, found, count = device_of(model, data), [order[:0]], 0
    for rows in order.split(batch_size):
        x, y = data.float(rows).to(device), data.y[rows.to(data.y.device)].to(device)
        with attacked(model, x, y) as (victim, x, y):
            right = ~fooled(victim.verdict(x), y).cpu()
        found.append(rows[right])
        count += int(right.sum())
        if count >= images:
            break
    rows = torch.cat(found)[:images]
    x, y = data.float(rows).to(device), data.y[rows.to(data.y.device)].to(device)
    return ProbeSet(model, x, y, eps, norm, batch_size, seed)


def check_surrogate(surrogate: nn.Module, model: nn.Module, data: Images) -> None:
    """Shows the surrogate one image.

    Raises InputError: it is on another device than the network, or has other classes than the data.
    """
    check_network(surrogate)
    device, other = device_of(model, data), device_of(surrogate, data)
    if device != other:
        raise InputError(f"the surrogate is on {other}, the network on {device}: move one to the other")
    with attacked(surrogate, data.float([0]).to(device), torch.zeros_like(data.y[:1])) as (victim, x, _):
        classes = victim.logits(x).shape[1]
    if classes != len(data.classes):
        raise InputError(f"the surrogate has {classes} classes, the data {len(data.classes)}: take one for the same")


def _gradients(probes: ProbeSet) -> Flag:
    radius = probes.eps / probes.whole

    def measure(x: Tensor, y: Tensor) -> Tensor:
        """Of each image: is the gradient useless, and which part of the change that is seen does it account for?"""
        with attacked(probes.model, x, y) as (victim, x, y):
            g = ascent(victim, x, y, loss=margin)[0]
            keys, predicted, seen = image_keys(x, probes.generator()), torch.zeros(()), torch.zeros(())
            for direction in range(DIRECTIONS):
                u = radius * signs(keys, tuple(x.shape[1:]), draw=direction).to(x.dtype)
                up, down = (x + u).clamp(0, 1), (x - u).clamp(0, 1)
                predicted = predicted + (g * (up - down)).flatten(1).sum(1).square()
                seen = seen + (margin(victim.logits(up), y) - margin(victim.logits(down), y)).square()
        none = (g == 0).flatten(1).all(1) | ~g.isfinite().flatten(1).all(1)
        return torch.stack([none, (predicted / seen).sqrt()], 1)

    none, part = probes.each(measure).unbind(1)
    return Flag(
        "zero gradients",
        _often((none > 0) | (part < ASTRAY)),
        {"images": len(probes), "gradient zero or NaN": _mean(none), "part of the change accounted for": _median(part)},
        "The gradient of the margin (largest wrong logit less the right one) is zero, or explains less than 1 % of the "
        "change that random steps of eps make: gradient attacks stand still. Attack without gradients (square, nes), "
        "or replace the layer that has none on the way back (BPDA).",
    )


def _saturation(probes: ProbeSet, plain: Mask, scaled: Mask) -> Flag:
    def measure(x: Tensor, y: Tensor) -> Tensor:
        """Of each image: is the gradient of the cross-entropy zero where that of the margin is not? And its loss."""
        with attacked(probes.model, x, y) as (victim, x, y):
            ce, loss, _ = ascent(victim, x, y, loss=cross_entropy)
            other = ascent(victim, x, y, loss=margin)[0]
        lost = (ce == 0).flatten(1).all(1) & (other != 0).flatten(1).any(1)
        return torch.stack([lost, loss], 1)

    lost, loss = probes.each(measure).unbind(1)
    return Flag(
        "loss saturation",
        _often(lost > 0) or _beats(scaled, plain),
        {
            "images": len(probes),
            "gradient zero": _mean(lost),
            "loss exactly 0": _mean(loss == 0),
            "right under PGD": _mean(~plain),
            "right under PGD, logits scaled": _mean(~scaled),
        },
        "Logits so far apart that in float32 the cross-entropy is flat: its gradient is zero, or PGD fools clearly "
        "more images once the logits are scaled to a range of 10. Use a loss without scale (dlr, margin).",
    )


def _with_cross_entropy(probes: ProbeSet) -> tuple[Mask, Mask]:
    """Which images PGD fools with the cross-entropy, and which with that of scaled logits.

    For an image whose logits stay within the range both are one, and the walk is not walked again.
    """
    beyond: list[Tensor] = []  # a step at a time, batch by batch

    def watched(logits: Logits, y: Int64[Tensor, " n"]) -> PerImage:
        beyond.append(~(logits.amax(1) - logits.amin(1) <= RANGE).cpu())  # those that are not finite too
        return cross_entropy(logits, y)

    plain = probes.fooled_by(probes.walk(loss=watched))
    steps = [torch.stack(beyond[k : k + STEPS]).any(0) for k in range(0, len(beyond), STEPS)]
    again, scaled = torch.cat(steps).nonzero().squeeze(1), plain.clone()
    scaled[again] = probes.rows(again).fooled_by(probes.walk(loss=scaled_cross_entropy))
    return plain, scaled


def scaled_cross_entropy(logits: Logits, y: Int64[Tensor, " n"]) -> PerImage:
    """Cross-entropy of logits whose range is brought down to 10 where it is larger."""
    spread = (logits.amax(1) - logits.amin(1)).detach()
    return cross_entropy(logits / (spread / RANGE).clamp(min=1)[:, None], y)


def _randomized(probes: ProbeSet) -> Flag:
    def measure(x: Tensor, y: Tensor) -> Tensor:
        """Of each image: the largest difference of its logits, of their range; and does its class change?"""
        with attacked(probes.model, x, y) as (victim, x, _):
            every = torch.stack([victim.verdict(x).nan_to_num() for _ in range(REPEATS)])
        first = every[0]
        away = (every - first).abs().amax((0, 2)) / (first.amax(1) - first.amin(1))
        return torch.stack([away, (every.argmax(2) != first.argmax(1)).any(0)], 1)

    away, changed = probes.each(measure).unbind(1)
    return Flag(
        "randomized output",
        _often(away > NOISE),
        {"images": len(probes), "difference of logits": _median(away), "class changes": _mean(changed)},
        "The same image gives other logits when shown again, so a gradient is that of one draw. Average gradients "
        "over many draws in each step (EOT), and judge examples by many draws.",
    )


def _black_box(probes: ProbeSet, white: Mask, surrogate: nn.Module | None) -> Flag:
    left = (~white).nonzero().squeeze(1)
    rest = probes.rows(left)
    found = rest.fooled_by(partial(square, eps=probes.eps, norm=probes.norm, queries=QUERIES))
    evidence: dict[str, float | None] = {
        "images": len(probes),
        "right under PGD, all losses": _mean(~white),
        "of these, Square fools": _mean(found),
    }
    if surrogate is not None:
        moved = rest.fooled_by(partial(mifgsm, eps=probes.eps, norm=probes.norm), through=surrogate)
        evidence["of these, transfer fools"] = _mean(moved)
        found = found | moved
    return Flag(
        "black-box stronger",
        _often(torch.zeros_like(white).index_put((left,), found)),
        evidence,
        f"An attack that knows less ({QUERIES} queries of Square{'' if surrogate is None else ', or another network'}) "
        "fools what PGD does not with any loss (ce, margin, and ce on scaled logits): something stops the gradient. "
        "White-box figures are then no bound; report the black-box ones too.",
    )


def _unbounded(probes: ProbeSet) -> Flag:
    attack = partial(pgd, eps=probes.whole, norm=probes.norm, steps=STEPS, random_start=False)
    left = ~probes.fooled_by(attack)
    return Flag(
        "robust without bound",
        _often(left),
        {"images": len(probes), "right under PGD": _mean(left)},
        "Where every pixel may take any value each image can be turned into one of another class, so an attack that "
        "works leaves nothing right. This one does not work.",
    )


def _effort(probes: ProbeSet, plain: Mask) -> Flag:
    few, more = [probes.fooled_by(probes.walk(steps=steps)) for steps in (1, 5)]
    wide, wider = [probes.fooled_by(probes.walk(steps=10, times=times)) for times in (2, 4)]
    pairs = [(few, more), (few, plain), (more, plain), (plain, wide), (plain, wider), (wide, wider)]
    named = {"1 step": few, "5 steps": more, "20 steps": plain, "2 eps": wide, "4 eps": wider}
    return Flag(
        "more effort hurts",
        any(_beats(first, second) for first, second in pairs),
        {"images": len(probes)} | {f"right, {name}": _mean(~hit) for name, hit in named.items()},
        "More steps or a larger eps fool fewer images, though all that the weaker attack reaches is within reach of "
        "the stronger: the gradient leads astray. Use restarts, smaller steps, other losses, and attacks without it.",
    )


def _often(signs: Mask) -> bool:
    """Whether more images show it than a few that chance could have put there."""
    return wilson(int(signs.sum()), len(signs))[0] > SHARE


def _beats(first: Mask, second: Mask) -> bool:
    """Whether the first fools clearly more images than the second."""
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    return gained - lost >= GAIN * len(first) and sign_test(gained, lost) < SURE


def _mean(values: Tensor) -> float:
    return round(values.double().mean().item(), 4) if len(values) else 0.0


def _median(values: Tensor) -> float | None:
    """Of those that are finite; a change of nothing is no part of nothing."""
    finite = values[values.isfinite()].double()
    return float(f"{finite.median().item():.3g}") if len(finite) else None
