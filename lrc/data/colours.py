"""The same images with less in their colours: controls that part what classes mean from how they are coloured."""

from collections.abc import Callable
from functools import partial
from itertools import permutations

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lrc.data.images import Images, check_set
from lrc.utils.checks import check_choice
from lrc.utils.errors import InputError

COLOURS = ("grey", "centred", "scrambled", "equalised")
LUMA = (299, 587, 114)  # thousandths of red, green and blue in the brightness that the eye sees: ITU-R BT.601
CHUNK = 2000  # images at a time, which bounds the memory

Pixels = UInt8[Tensor, "n 3 h w"]
Labels = Int64[Tensor, " n"]
Change = Callable[[Pixels, Labels], Pixels]


def class_means(images: Images) -> Float[Tensor, "classes channels height width"]:
    """The mean image of each class, in [0, 1]: what a class has without any network.

    Raises:
        InputError: a class without images.

    >>> x = torch.tensor([0, 51, 102], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 1, 1)
    >>> class_means(Images(x, torch.tensor([0, 0, 1]), ("dark", "light")))[:, 0, 0, 0]
    tensor([0.1000, 0.4000])
    """
    check_set(images)
    y = images.y.cpu()
    counts = y.bincount(minlength=len(images.classes))
    if not counts.all():
        raise InputError(f"class {images.classes[int(counts.argmin())]!r} has no images, so no mean: take more of them")
    total = torch.zeros(len(counts), *images.x.shape[1:], dtype=torch.float64)
    for rows in torch.arange(len(y)).split(CHUNK):
        total.index_add_(0, y[rows], images.float(rows).cpu().double())
    return (total / counts[:, None, None, None]).float()


def recoloured(images: Images, colour: str, *, like: Images | None = None) -> Images:
    """The images with other colours; classes, order and number stay.

    Args:
        images: in memory, of three channels.
        colour: "grey", the brightness in all channels (BT.601); "centred", the mean colour of each image moved to
            middle grey; "scrambled", for each image the channels in an order of its own, each inverted or not, as its
            bytes decide: one image is always scrambled alike, and class means say next to nothing; "equalised", each
            class moved, pixel by pixel, so that its mean is that of all classes, which takes the label to do. What
            leaves 0..255 is clipped.
        like: images whose class means "equalised" equalises, such as those of the training; by default `images`.

    Raises:
        InputError: another colour, images in files, or not of three channels.

    >>> x = torch.tensor([[200, 100, 0]], dtype=torch.uint8)[:, :, None, None]
    >>> recoloured(Images(x, torch.tensor([0]), ("orange",)), "grey").x.flatten().tolist()
    [119, 119, 119]
    """
    check_choice("colour", colour, COLOURS)
    for some in (images, *([] if like is None else [like])):
        check_set(some)
    if images.x.is_meta or images.x.shape[1] != 3:
        raise InputError(f"{images} cannot be recoloured: that takes images of three channels, in memory")
    changes: dict[str, Callable[[Pixels, Labels], Pixels]] = {
        "grey": _grey,
        "centred": _centred,
        "scrambled": _scrambled,
    }
    change = changes.get(colour) or partial(_moved, _shifts(like or images).to(images.x.device))
    parts = zip(images.x.split(CHUNK), images.y.split(CHUNK), strict=True)
    x = torch.cat([change(x, y).contiguous(memory_format=torch.channels_last) for x, y in parts])
    return Images(x, images.y, images.classes, images.hierarchy)


def _bytes(values: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
    return values.round().clamp(0, 255).to(torch.uint8)


def _grey(x: Pixels, _: Labels) -> Pixels:
    red, green, blue = (x[:, i : i + 1].int() * LUMA[i] for i in range(3))
    return ((red + green + blue + 500) // 1000).to(torch.uint8).expand_as(x)


def _centred(x: Pixels, _: Labels) -> Pixels:
    return _bytes(x.float() - x.float().mean((2, 3), keepdim=True) + 127.5)


def _scrambled(x: Pixels, _: Labels) -> Pixels:
    chance = _chance(x)
    orders = torch.tensor([*permutations(range(3))], device=x.device)[chance % 6]
    inverted = (chance[:, None] // 6 >> torch.arange(3, device=x.device)) % 2 * 255
    moved = x.gather(1, orders[:, :, None, None].expand_as(x))
    return moved ^ inverted.to(torch.uint8)[:, :, None, None]  # 255 - x, where 255


def _chance(x: Pixels) -> Int64[Tensor, " n"]:
    """A number from 0 to 47 of each image that its bytes decide, at random for all that one can tell."""
    weights = torch.randint(2**24, x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x.device)
    return (x.flatten(1).double() @ weights.flatten().double()).long() % 48  # whole numbers below 2^53: exact


def _shifts(images: Images) -> Float[Tensor, "classes 3 h w"]:
    means = class_means(images) * 255
    return means.mean(0) - means


def _moved(shifts: Float[Tensor, "classes 3 h w"], x: Pixels, y: Labels) -> Pixels:
    return _bytes(x.float() + shifts[y])
