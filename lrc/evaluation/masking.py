"""Signs that a network only seems robust, because its gradients lead attacks nowhere: each with its evidence."""

import math
import warnings
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor, nn

from lrc.attacks import mifgsm, pgd, square
from lrc.attacks.common import ascent, attacked
from lrc.attacks.losses import cross_entropy, margin
from lrc.attacks.rng import image_keys, new_seed, signs
from lrc.data import Images
from lrc.evaluation.outcomes import Flag
from lrc.evaluation.rates import sign_test, wilson
from lrc.evaluation.trial import Trial, check_surrogate, draw
from lrc.utils.errors import InputError

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

    It takes 5 to 10 times as long as PGD-20 on these images, and longer for a network that PGD leaves alone. PGD starts
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
    if images < 1:
        raise InputError(f"signs of masking need at least 1 image, not {images}")
    if surrogate is not None and len(data):
        check_surrogate(surrogate, model, data)
    seed = new_seed(generator) % 2**62
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*NaN or infinite logits")  # such an image counts as fooled
        trial = draw(model, data, images, eps=eps, norm=norm, batch_size=batch_size, seed=seed)
        if not len(trial):
            return None
        plain, scaled, other = [
            trial.fooled_by(trial.walk(loss=loss)) for loss in ("ce", scaled_cross_entropy, "margin")
        ]
        return (
            _gradients(trial),
            _saturation(trial, plain, scaled),
            _randomized(trial),
            _black_box(trial, plain | scaled | other, surrogate),
            _unbounded(trial),
            _effort(trial, plain),
        )


def _gradients(trial: Trial) -> Flag:
    radius = trial.eps if trial.norm == "linf" else trial.eps / math.sqrt(trial.x[:1].numel() or 1)

    def measure(x: Tensor, y: Tensor) -> Tensor:
        """Of each image: is the gradient useless, and which part of the change that is seen does it account for?"""
        with attacked(trial.model, x, y) as (victim, x, y):
            g = ascent(victim, x, y, loss=margin)[0]
            keys, predicted, seen = image_keys(x, trial.generator()), torch.zeros(()), torch.zeros(())
            for direction in range(DIRECTIONS):
                u = radius * signs(keys, tuple(x.shape[1:]), draw=direction).to(x.dtype)
                up, down = (x + u).clamp(0, 1), (x - u).clamp(0, 1)
                predicted = predicted + (g * (up - down)).flatten(1).sum(1).square()
                seen = seen + (margin(victim.logits(up), y) - margin(victim.logits(down), y)).square()
        none = (g == 0).flatten(1).all(1) | ~g.isfinite().flatten(1).all(1)
        return torch.stack([none, (predicted / seen).sqrt()], 1)

    none, part = trial.each(measure).unbind(1)
    return Flag(
        "zero gradients",
        _often((none > 0) | (part < ASTRAY)),
        {"images": len(trial), "gradient zero or NaN": _mean(none), "part of the change accounted for": _median(part)},
        "The gradient of the margin (largest wrong logit less the right one) is zero, or explains less than 1 % of the "
        "change that random steps of eps make: gradient attacks stand still. Attack without gradients (square, nes), "
        "or replace the layer that has none on the way back (BPDA).",
    )


def _saturation(trial: Trial, plain: Bool[Tensor, " n"], scaled: Bool[Tensor, " n"]) -> Flag:
    def measure(x: Tensor, y: Tensor) -> Tensor:
        """Of each image: is the gradient of the cross-entropy zero where that of the margin is not? And its loss."""
        with attacked(trial.model, x, y) as (victim, x, y):
            ce, loss, _ = ascent(victim, x, y, loss=cross_entropy)
            other = ascent(victim, x, y, loss=margin)[0]
        lost = (ce == 0).flatten(1).all(1) & (other != 0).flatten(1).any(1)
        return torch.stack([lost, loss], 1)

    lost, loss = trial.each(measure).unbind(1)
    return Flag(
        "loss saturation",
        _often(lost > 0) or _beats(scaled, plain),
        {
            "images": len(trial),
            "gradient zero": _mean(lost),
            "loss exactly 0": _mean(loss == 0),
            "right under PGD": _mean(~plain),
            "right under PGD, logits scaled": _mean(~scaled),
        },
        "Logits so far apart that in float32 the cross-entropy is flat: its gradient is zero, or PGD fools clearly "
        "more images once the logits are scaled to a range of 10. Use a loss without scale (dlr, margin).",
    )


def scaled_cross_entropy(logits: Float[Tensor, "n classes"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy of logits whose range is brought down to 10 where it is larger."""
    spread = (logits.amax(1) - logits.amin(1)).detach()
    return cross_entropy(logits / (spread / RANGE).clamp(min=1)[:, None], y)


def _randomized(trial: Trial) -> Flag:
    def measure(x: Tensor, y: Tensor) -> Tensor:
        """Of each image: the largest difference of its logits, of their range; and does its class change?"""
        with attacked(trial.model, x, y) as (victim, x, _):
            every = torch.stack([victim.logits(x).nan_to_num() for _ in range(REPEATS)])
        first = every[0]
        away = (every - first).abs().amax((0, 2)) / (first.amax(1) - first.amin(1))
        return torch.stack([away, (every.argmax(2) != first.argmax(1)).any(0)], 1)

    away, changed = trial.each(measure).unbind(1)
    return Flag(
        "randomized output",
        _often(away > NOISE),
        {"images": len(trial), "difference of logits": _median(away), "class changes": _mean(changed)},
        "The same image gives other logits when shown again, so a gradient is that of one draw. Average gradients "
        "over many draws in each step (EOT), and judge examples by many draws.",
    )


def _black_box(trial: Trial, white: Bool[Tensor, " n"], surrogate: nn.Module | None) -> Flag:
    left = (~white).nonzero().squeeze(1)
    rest = trial.rows(left)
    found = rest.fooled_by(partial(square, eps=trial.eps, norm=trial.norm, queries=QUERIES))
    evidence: dict[str, float | None] = {
        "images": len(trial),
        "right under PGD, all losses": _mean(~white),
        "of these, Square fools": _mean(found),
    }
    if surrogate is not None:
        moved = rest.fooled_by(partial(mifgsm, eps=trial.eps, norm=trial.norm), through=surrogate)
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


def _unbounded(trial: Trial) -> Flag:
    whole = 1.0 if trial.norm == "linf" else math.sqrt(trial.x[:1].numel() or 1)
    attack = partial(pgd, eps=whole, norm=trial.norm, steps=STEPS, random_start=False)
    left = ~trial.fooled_by(attack)
    return Flag(
        "robust without bound",
        _often(left),
        {"images": len(trial), "right under PGD": _mean(left)},
        "Where every pixel may take any value each image can be turned into one of another class, so an attack that "
        "works leaves nothing right. This one does not work.",
    )


def _effort(trial: Trial, plain: Bool[Tensor, " n"]) -> Flag:
    few, more = [trial.fooled_by(trial.walk(steps=steps)) for steps in (1, 5)]
    wide, wider = [trial.fooled_by(trial.walk(steps=10, times=times)) for times in (2, 4)]
    pairs = [(few, more), (few, plain), (more, plain), (plain, wide), (plain, wider), (wide, wider)]
    named = {"1 step": few, "5 steps": more, "20 steps": plain, "2 eps": wide, "4 eps": wider}
    return Flag(
        "more effort hurts",
        any(_beats(first, second) for first, second in pairs),
        {"images": len(trial)} | {f"right, {name}": _mean(~hit) for name, hit in named.items()},
        "More steps or a larger eps fool fewer images, though all that the weaker attack reaches is within reach of "
        "the stronger: the gradient leads astray. Use restarts, smaller steps, other losses, and attacks without it.",
    )


def _often(signs: Bool[Tensor, " n"]) -> bool:
    """Whether more images show it than a few that chance could have put there."""
    return wilson(int(signs.sum()), len(signs))[0] > SHARE


def _beats(first: Bool[Tensor, " n"], second: Bool[Tensor, " n"]) -> bool:
    """Whether the first fools clearly more images than the second."""
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    return gained - lost >= GAIN * len(first) and sign_test(gained, lost) < SURE


def _mean(values: Tensor) -> float:
    return round(values.double().mean().item(), 4) if len(values) else 0.0


def _median(values: Tensor) -> float | None:
    """Of those that are finite; a change of nothing is no part of nothing."""
    finite = values[values.isfinite()].double()
    return float(f"{finite.median().item():.3g}") if len(finite) else None
