"""Why a network may be right on few clean images: what is usually wrong, each tried on the data."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Generator, Tensor, nn

from lrc.data import Images
from lrc.evaluation import Rate
from lrc.evaluation.accuracy import device_of, predictions
from lrc.evaluation.report import sign_test
from lrc.models import Normalize
from lrc.utils.networks import Asked, untouched

__all__ = ["IMAGENET", "Tried", "likely_cause", "tried"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
USUAL = {
    "ImageNet": IMAGENET,
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "[-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
CAFFE = ((103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255, 1 / 255, 1 / 255))
SURE = 1e-3  # p value of the sign test: some ten causes are tried
GAIN = 0.05  # of the images


@dataclass(frozen=True)
class Tried:
    """One usual cause, and how often the network would be right were it mended.

    Attributes:
        what: the cause.
        mend: what to do about it.
        accuracy: on some of the images, mended.
        before: on the same images, as they are.
        p_value: of the sign test of both.
        chance: what guessing would give.
    """

    what: str
    mend: str
    accuracy: Rate
    before: Rate
    p_value: float
    chance: float

    @property
    def sure(self) -> bool:
        """Whether mending it helps clearly, and makes it more than a guess."""
        better = self.accuracy.value > self.before.value + GAIN and self.p_value < SURE
        return better and self.accuracy.interval[0] > 1.5 * self.chance

    def __str__(self) -> str:
        return f"{self.what}: mended, {self.accuracy.value:.1%} of {self.accuracy.count} images are right ({self.mend})"


def tried(model: nn.Module, data: Images, predicted: Int64[Tensor, " n"], *, images: int = 200) -> tuple[Tried, ...]:
    """The usual causes, tried one by one: normalization, the order of channels, 0..255, the order of classes.

    The order of the classes is fitted on half of the images, drawn at random, and judged on the rest: so it cannot
    help by chance.

    Args:
        model: images in [0, 1] to logits. Where it begins with `lrc.models.Normalize`, others are tried in its place.
        data: labelled images.
        predicted: what it says of them, as they are.
        images: on which each is tried; for the order of classes all are used.
    """
    own, inner = None, model
    if isinstance(model, nn.Sequential) and len(model) == 2 and isinstance(model[0], Normalize):
        own, inner = copy.deepcopy(model[0]).cpu(), model[1]
    asked = Asked(inner)
    x, y = data.float(range(min(images, len(data)))), data.y[:images].cpu()
    before = predicted.cpu()[:images] == y
    found = []
    with untouched(model), torch.no_grad():
        for what, mend, change in _changes(x, own):
            try:
                after = torch.cat([predictions(asked(change(some).to(device_of(model, data)))) for some in x.split(50)])
            except Exception:  # a network may refuse such values
                continue
            found.append(_judged(what, mend, after.cpu() == y, before, len(data.classes)))
    return (*found, *_permuted(predicted.cpu(), data.y.cpu(), data.classes))


def likely_cause(every: Sequence[Tried]) -> Tried | None:
    """The one that helps most, if one does clearly."""
    return max((t for t in every if t.sure), key=lambda t: t.accuracy.value, default=None)


def _judged(what: str, mend: str, after: Tensor, before: Tensor, classes: int) -> Tried:
    only = int((after & ~before).sum()), int((before & ~after).sum())
    now, then = (Rate(int(right.sum()), len(right)) for right in (after, before))
    return Tried(what, mend, now, then, sign_test(*only), 1 / classes)


Change = Callable[[Tensor], Tensor]


def _changes(x: Tensor, own: nn.Module | None) -> list[tuple[str, str, Change]]:
    """What to try in the place of the network's own normalization, if it has one: cause, mend, and images to images."""
    as_is: Change = own if own is not None else nn.Identity()
    colours = x.shape[1] == 3
    found: list[tuple[str, str, Change]] = []
    if own is not None:
        found.append(("images are normalized twice", "leave out --mean and --std", nn.Identity()))
    if colours:
        bgr: Change = lambda x: as_is(x.flip(1))  # noqa: E731
        found.append(("it takes channels in the order blue, green, red", "turn them inside, with x.flip(1)", bgr))
    mend = f"--mean {_row([0] * x.shape[1])} --std {_row([1 / 255] * x.shape[1])}"
    found.append(("it takes images in 0..255", mend, lambda x: 255 * x))
    some = USUAL if colours else {"[-1, 1]": ((0.5,), (0.5,))}
    mine = (x.mean((0, 2, 3)).tolist(), x.std((0, 2, 3)).clamp(min=1e-3).tolist())
    for name, (mean, std) in {**some, "these images": mine}.items():
        what = "normalization is missing" if own is None else "normalization is another"
        found.append((f"{what}, that of {name}", f"--mean {_row(mean)} --std {_row(std)}", Normalize(mean, std)))
    if colours:
        caffe, what = Normalize(*CAFFE), "it takes blue, green, red in 0..255 less their mean, as those of Caffe"
        found.append((what, "do so inside", lambda x: caffe(x.flip(1))))
    return found


def _row(values: Sequence[float]) -> str:
    return ",".join(f"{v:.4g}" for v in values)


def _permuted(predicted: Int64[Tensor, " n"], y: Int64[Tensor, " n"], classes: tuple[str, ...]) -> list[Tried]:
    """Whether the network has the classes in another order: the best one for half of the images, tried on the rest."""
    from scipy.optimize import linear_sum_assignment

    k, half = len(classes), torch.randperm(len(y), generator=Generator().manual_seed(0)) % 2 == 0
    if len(y) < 4 * k:
        return []
    counted = half & (predicted >= 0)
    counts = (predicted[counted] * k + y[counted]).bincount(minlength=k * k).view(k, k)
    order = torch.from_numpy(linear_sum_assignment(counts.numpy(), maximize=True)[1])
    rest, moved = ~half, [i for i in range(k) if int(order[i]) != i]
    if not moved or not rest.any():
        return []
    after = torch.where(predicted >= 0, order[predicted.clamp(min=0)], -1)
    said = ", ".join(f"its {i} is {classes[int(order[i])]!r}" for i in moved[:3]) + ", ..." * (len(moved) > 3)
    return [_judged("classes are in another order", said, (after == y)[rest], (predicted == y)[rest], k)]
