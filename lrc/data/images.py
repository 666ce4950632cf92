"""Labelled images kept whole in memory, and batches of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor

from lrc.data import arrays
from lrc.hierarchy import Hierarchy
from lrc.utils.errors import InputError
from lrc.utils.hashes import digest

Indices = Sequence[int] | Int[Tensor, " m"] | Int[np.ndarray, " m"] | Bool[Tensor, " n"]
PADDING = 4  # pixels of zeros around an image before it is cropped: the usual recipe for CIFAR


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """Labelled images: bytes `x` (n, channels, height, width), classes `y` (n,).

    `x` may have any strides, or be memory-mapped. It is given out by `float` and `batches` as float32 in [0, 1],
    channels-last. Raises InputError where shapes, types or labels do not fit.

    >>> x = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    >>> images = Images(x, torch.tensor([0, 1, 1, 0]), ("cat", "dog"))
    >>> images
    Images(4 of 3x8x8, 2 classes)
    >>> images.select(["dog"]).y
    tensor([0, 0])
    """

    x: Tensor  # uint8 (n, channels, height, width): checked below, for users to read an InputError
    y: Tensor  # int64 (n,)
    classes: tuple[str, ...]
    hierarchy: Hierarchy | None = None

    def __post_init__(self) -> None:
        if self.x.dtype != torch.uint8 or self.x.ndim != 4:
            raise InputError(
                f"x is {self.x.dtype} of shape {tuple(self.x.shape)}, expected uint8 "
                "(n, channels, height, width): use Images.from_arrays for other arrays"
            )
        if self.y.dtype != torch.int64 or self.y.shape != self.x.shape[:1]:
            raise InputError(
                f"y is {self.y.dtype} of shape {tuple(self.y.shape)}, expected int64 ({len(self.x)},): "
                "give one label an image"
            )
        _check_labels(self.y, len(self.classes))
        if self.hierarchy is not None and self.hierarchy.classes != self.classes:
            raise InputError("the hierarchy groups other classes than `classes`: give the same names in the same order")

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        classes: Sequence[str],
        *,
        hierarchy: Hierarchy | None = None,
        channels: int = 3,
    ) -> "Images":
        """Images from arrays laid out (n, height, width, channels), as Pillow and NumPy have them.

        `x` is one array or a list of images, `y` holds the n labels. Integers are taken as 0..255; floats
        must be in [0, 1] and on the 256 levels k/255 of 8-bit images, so that nothing is lost unseen. Tensors
        of uint8 laid out (n, channels, height, width) go to `Images(x, y, classes)` directly.

        Raises InputError for images of mixed size, another number of channels, values or labels out of
        range.

        >>> Images.from_arrays(np.full((2, 8, 8, 3), 0.2), [0, 1], ["cat", "dog"]).x.unique()
        tensor([51], dtype=torch.uint8)
        """
        return cls(arrays.pixels(x, channels), arrays.labels(y), tuple(classes), hierarchy)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.x.shape[1:]))
        return f"{type(self).__name__}({len(self)} of {shape}, {len(self.classes)} classes)"

    def subset(self, which: int | Indices) -> "Images":
        """The first `which` images (a view), those at the indices `which` (in that order), or in a mask.

        Raises InputError for more images than there are, or indices beyond them.
        """
        if isinstance(which, int):
            if not 0 <= which <= len(self):
                raise InputError(f"{which} images asked for, there are {len(self)}")
            return self._take(slice(which))
        return self._take(self._rows(which))

    def _take(self, index: slice | Int64[Tensor, " m"]) -> "Images":
        return replace(self, x=self.x[index], y=self.y[index])

    def joined(self, other: "Images") -> "Images":
        """These images and then those of `other`.

        Raises InputError for images of another size, other classes or another kind.
        """
        if type(other) is not type(self) or other.classes != self.classes or other.x.shape[1:] != self.x.shape[1:]:
            raise InputError(f"{self} and {other} differ in kind, size or classes: they cannot be joined")
        return self._joined(other)

    def _joined(self, other: Any) -> "Images":
        return replace(self, x=torch.cat([self.x, other.x]), y=torch.cat([self.y, other.y]))

    def _rows(self, which: Indices) -> Int64[Tensor, " m"]:
        index = torch.as_tensor(which, device=self.y.device)
        if index.dtype == torch.bool and len(index) == len(self):
            return index.nonzero()[:, 0]
        index = index.long()
        if ((index < -len(self)) | (index >= len(self))).any():
            raise InputError(f"indices {which} go beyond the {len(self)} images")
        return index

    def select(self, classes: Sequence[str] | Sequence[int]) -> "Images":
        """Images of some classes (names or indices) only, labelled anew 0, 1, ... in the order given.

        Raises InputError for a class that is not there, or twice.
        """
        kept = [self._index(c) for c in classes]
        if len(set(kept)) < len(kept) or not kept:
            raise InputError(f"classes to select: {list(classes)}, expected at least one, each once")
        new = torch.full((len(self.classes),), -1, device=self.y.device)
        new[kept] = torch.arange(len(kept), device=self.y.device)
        mask = new[self.y] >= 0
        hierarchy = self.hierarchy and self.hierarchy.select(kept)
        names = tuple(self.classes[i] for i in kept)
        return replace(self.subset(mask), y=new[self.y[mask]], classes=names, hierarchy=hierarchy)

    def _index(self, name: str | int) -> int:
        if isinstance(name, str) and name in self.classes:
            return self.classes.index(name)
        if isinstance(name, int) and 0 <= name < len(self.classes):
            return name
        raise InputError(f"no class {name!r}: there are {', '.join(self.classes)}")

    def split(self, n: int, seed: int = 0) -> tuple["Images", "Images"]:
        """(rest, held out): `n` images drawn by `seed`, of each class in proportion; the order is kept.

        Raises InputError for more images than there are.
        """
        if not 0 <= n <= len(self):
            raise InputError(f"{n} images to hold out, there are {len(self)}")
        y = self.y.cpu()
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        by_class = order[y[order].argsort(stable=True)]  # class by class, at random within each
        size = y.bincount(minlength=len(self.classes))
        rank = torch.arange(len(y)) - (size.cumsum(0) - size)[y[by_class]]
        share = (rank + 0.5) / size[y[by_class]]  # the first images by share are those of a proportional draw
        held = torch.zeros(len(y), dtype=torch.bool)
        held[by_class[share.argsort(stable=True)[:n]]] = True
        return self.subset(~held), self.subset(held)

    def to(self, device: torch.device | str) -> "Images":
        """The same images on `device`."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def float(self, indices: Indices | None = None) -> Float[Tensor, "m channels height width"]:
        """All images, or those at `indices`, as float32 in [0, 1], channels-last."""
        return _to_float(self.x if indices is None else self.x[self._rows(indices)])

    def digest(self) -> str:
        """Hexadecimal SHA-256 of bytes and labels: what tells these images from others."""
        return digest([self.x, self.y])

    def read(self, parts: Iterable[slice | Int64[Tensor, " b"]]) -> Iterator[tuple[Tensor, Int64[Tensor, " b"]]]:
        """Bytes (b, channels, height, width) and classes of the images of each part, in their order."""
        for part in parts:
            yield self.x[part], self.y[part]


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
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}, expected at least 1")
    n, device = len(images), images.y.device
    source = torch.device("cpu") if generator is None else generator.device
    order = torch.randperm(n, generator=generator, device=source).to(device) if shuffle else None
    moves = _moves(n, generator, source).to(device) if augment else None
    starts = range(skip * batch_size, n - batch_size + 1 if drop_last else n, batch_size)
    parts = [slice(start + share[0], start + batch_size, share[1]) for start in starts]
    return _batches(images, parts, order, moves)


def _batches(
    images: Images,
    parts: list[slice],
    order: Int64[Tensor, " n"] | None,
    moves: Int64[Tensor, "3 n"] | None,
) -> Iterator[Batch]:
    read = images.read(part if order is None else order[part] for part in parts)
    for part, (x, y) in zip(parts, read, strict=True):
        if moves is not None:
            top, left, flip = moves[:, part]
            x = crop_flip(x, top=top, left=left, flip=flip.bool())
        yield _to_float(x), y


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


def _to_float(x: UInt8[Tensor, "b channels height width"]) -> Float[Tensor, "b channels height width"]:
    return x.to(torch.float32, memory_format=torch.channels_last).div_(255)


def _check_labels(y: Tensor, classes: int) -> None:
    wrong = (y < 0) | (y >= classes)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise InputError(f"label {int(y[row])} of image {row} is out of range, expected 0..{classes - 1}")
