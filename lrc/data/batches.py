"""Batches of images, shuffled and augmented as the generator says."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from lrc.data.images import Images, check_set, to_float
from lrc.utils.checks import check_generator, check_whole
from lrc.utils.errors import InputError

PADDING = 4  # pixels of zeros around an image before it is cropped: the usual recipe for CIFAR

Batch = tuple[Float[Tensor, "b channels height width"], Int64[Tensor, " b"]]


def batches(
    images: Images,
    batch_size: int,
    *,
    shuffle: bool = False,
    augment: bool = False,
    generator: torch.Generator | None = None,
    drop_last: bool = False,
    skip: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """One epoch of batches (x, y) on the device of the images: x float32 in [0, 1], channels-last.

    `augment` crops each image at random out of itself with 4 pixels of zeros around it, and mirrors half of
    them. All random numbers of the epoch are drawn at the call, from `generator` (or torch's own), so that
    they depend neither on the device of the images nor on the batch size; a CPU generator serves any device.

    The first `skip` batches are left out, as if they had been taken already. With `share` (i, n) there are only every
    n-th image of each batch, from the i-th on: the share of the i-th of n processes.

    Raises InputError for a batch size below 1.
    """
    check_set(images)
    check_whole("batch_size", batch_size, 1)
    check_whole("skip", skip)
    check_generator(generator)
    if not isinstance(share, tuple) or len(share) != 2 or not 0 <= share[0] < share[1]:
        raise InputError(f"share must be (i, n), the i-th of n processes counted from 0, not {share!r}")
    n, device = len(images), images.y.device
    source = torch.device("cpu") if generator is None else generator.device
    order = torch.randperm(n, generator=generator, device=source).to(device) if shuffle else None
    moves = _moves(n, generator, source).to(device) if augment else None
    starts = range(skip * batch_size, n - batch_size + 1 if drop_last else n, batch_size)
    parts = [slice(start + share[0], start + batch_size, share[1]) for start in starts]
    return _batches(images, parts, order, moves)


def _batches(
    images: Images, parts: list[slice], order: Int64[Tensor, " n"] | None, moves: Int64[Tensor, "3 n"] | None
) -> Iterator[Batch]:
    read = images.read(part if order is None else order[part] for part in parts)
    for part, (x, y) in zip(parts, read, strict=True):
        if moves is not None:
            top, left, flip = moves[:, part]
            x = crop_flip(x, top=top, left=left, flip=flip.bool())
        yield to_float(x), y


def _moves(n: int, generator: torch.Generator | None, device: torch.device) -> Int64[Tensor, "3 n"]:
    """Top, left and flip of each image of an epoch."""
    corner = torch.randint(2 * PADDING + 1, (2, n), generator=generator, device=device)
    return torch.cat([corner, torch.randint(2, (1, n), generator=generator, device=device)])


def crop_flip(
    x: UInt8[Tensor, "b channels height width"],
    *,
    top: Int64[Tensor, " b"],
    left: Int64[Tensor, " b"],
    flip: Bool[Tensor, " b"],
    padding: int = PADDING,
) -> UInt8[Tensor, "b channels height width"]:
    """Images cut out of themselves padded with zeros, at (top, left), then mirrored where `flip`.

    Offsets run from 0 to 2 `padding`; `top = left = padding` gives back the image.
    """
    b, c, h, w = x.shape
    width = w + 2 * padding
    padded = torch.nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    column = torch.arange(w, device=x.device)
    columns = left[:, None] + torch.where(flip[:, None], w - 1 - column, column)
    rows = torch.arange(b, device=x.device)[:, None] * (h + 2 * padding) + top[:, None]
    rows = rows + torch.arange(h, device=x.device)
    pixels = rows[:, :, None] * width + columns[:, None, :]
    return padded.reshape(-1, c)[pixels.flatten()].view(b, h, w, c).permute(0, 3, 1, 2)
