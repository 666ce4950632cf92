"""Labelled images kept whole in memory."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped, UInt8
from torch import Tensor

from lrc.hierarchy import Hierarchy, check_names
from lrc.utils.checks import check_tensor, check_whole
from lrc.utils.errors import InputError
from lrc.utils.hashes import digest

Indices = Sequence[int] | Int[Tensor, " m"] | Int[np.ndarray, " m"] | Bool[Tensor, " n"]


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
        if not isinstance(self.x, Tensor) or self.x.dtype != torch.uint8 or self.x.ndim != 4:
            raise InputError(
                f"x is {_kind(self.x)}, expected uint8 (n, channels, height, width): "
                "use Images.from_arrays for other arrays"
            )
        if not isinstance(self.y, Tensor) or self.y.dtype != torch.int64 or self.y.shape != self.x.shape[:1]:
            raise InputError(f"y is {_kind(self.y)}, expected int64 ({len(self.x)},): give one label an image")
        check_tensor("y", self.y)
        check_names("class", self.classes)
        _check_labels(self.y, len(self.classes))
        if not isinstance(self.hierarchy, Hierarchy | None):
            raise InputError(f"hierarchy must be an lrc.hierarchy.Hierarchy, not {type(self.hierarchy).__name__}")
        if self.hierarchy is not None and self.hierarchy.classes != self.classes:
            raise InputError("the hierarchy groups other classes than `classes`: give the same names in the same order")

    @classmethod
    def from_arrays(
        cls, x: Any, y: Any, classes: Sequence[str], *, hierarchy: Hierarchy | None = None, channels: int = 3
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
        if isinstance(classes, str) or not isinstance(classes, Sequence):
            raise InputError(f"classes are {classes!r}, expected a list of names")
        return cls(_pixels(x, channels), _labels(y), tuple(classes), hierarchy)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.x.shape[1:]))
        return f"{type(self).__name__}({len(self)} of {shape}, {len(self.classes)} classes)"

    def subset(self, which: int | Indices) -> "Images":
        """The first `which` images (a view), those at the indices `which` (in that order), or in a mask.

        Raises InputError for more images than there are, or indices beyond them.
        """
        if isinstance(which, int | np.integer):
            if not 0 <= which <= len(self):
                raise InputError(f"{which} images asked for, there are {len(self)}")
            return self._take(slice(int(which)))
        return self._take(self._rows(which))

    def _take(self, index: slice | Int64[Tensor, " m"]) -> "Images":
        return replace(self, x=self.x[index], y=self.y[index])

    def joined(self, other: "Images") -> "Images":
        """These images and then those of `other`.

        Raises InputError for images of another size, other classes or another kind.
        """
        if type(other) is not type(self) or other.x.shape[1:] != self.x.shape[1:]:
            raise InputError(f"{self} and {other} differ in kind or size: they cannot be joined")
        check_same_classes(self.classes, other.classes, "two parts that are joined")
        return self._joined(other)

    def _joined(self, other: Any) -> "Images":
        return replace(self, x=torch.cat([self.x, other.x]), y=torch.cat([self.y, other.y]))

    def _rows(self, which: Indices) -> Int64[Tensor, " m"]:
        try:
            index = torch.as_tensor(which, device=self.y.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"indices {which!r}, expected whole numbers or a mask") from error
        mask = index.dtype == torch.bool
        if index.ndim != 1 or (mask and len(index) != len(self)) or (len(index) and index.is_floating_point()):
            raise InputError(f"indices of {_kind(index)}, expected whole numbers, or a mask of the {len(self)} images")
        if mask:
            return index.nonzero()[:, 0]
        index = index.long()
        if ((index < -len(self)) | (index >= len(self))).any():
            raise InputError(f"indices {which} go beyond the {len(self)} images")
        return index

    def select(self, classes: Sequence[str] | Sequence[int]) -> "Images":
        """Images of some classes (names or indices) only, labelled anew 0, 1, ... in the order given.

        Raises InputError for a class that is not there, or twice.
        """
        if not isinstance(classes, Sequence) or isinstance(classes, str):
            raise InputError(f"classes to select: {classes!r}, expected a list of names or indices")
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
        seed, n = check_whole("seed", seed), check_whole("n", n)
        if not n <= len(self):
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
        return to_float(self.x if indices is None else self.x[self._rows(indices)])

    def digest(self) -> str:
        """Hexadecimal SHA-256 of bytes, labels and names of classes: what tells these images from others."""
        return hashlib.sha256(f"{digest([self.x, self.y])} {self.classes}".encode()).hexdigest()

    def read(self, parts: Iterable[slice | Int64[Tensor, " b"]]) -> Iterator[tuple[Tensor, Int64[Tensor, " b"]]]:
        """Bytes (b, channels, height, width) and classes of the images of each part, in their order."""
        for part in parts:
            yield self.x[part], self.y[part]


def check_set(images: object, what: str = "images") -> None:
    """Raises InputError for what are no labelled images; `what` they are to be is said in the message."""
    if not isinstance(images, Images):
        raise InputError(f"{what} must be lrc.Images, not {type(images).__name__}: Images.from_arrays makes them")


def check_same_classes(first: Sequence[str], second: Sequence[str], where: str) -> None:
    """Raises InputError unless both are the same classes in the same order; `where` they meet is said in the message.

    >>> check_same_classes(("cat", "dog"), ("cat", "cow"), "training and validation")
    Traceback (most recent call last):
    lrc.utils.errors.InputError: training and validation: class 1 is 'dog' in one and 'cow' in the other: ...
    """
    if tuple(first) != tuple(second):
        pairs = zip_longest(first, second)
        i, (a, b) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        raise InputError(
            f"{where}: class {i} is {a!r} in one and {b!r} in the other: give the same classes in the same order"
        )


def to_float(x: UInt8[Tensor, "b channels height width"]) -> Float[Tensor, "b channels height width"]:
    """Bytes as float32 in [0, 1], channels-last."""
    return x.to(torch.float32, memory_format=torch.channels_last).div_(255)


def _kind(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if hasattr(value, "shape") else f"a {type(value).__name__}"


def _pixels(x: Any, channels: int) -> UInt8[Tensor, "n {channels} height width"]:
    """One array (n, height, width, channels), or a list of images, as a tensor of bytes; uint8 is not copied."""
    levels = np.require(_levels(_stacked(x, channels)), requirements=["C", "W"])  # else torch refuses or warns
    return torch.from_numpy(levels).permute(0, 3, 1, 2)


def _labels(y: Any) -> Int64[Tensor, " n"]:
    """One integer an image, as int64."""
    found = _array(y, "y")
    if found.ndim != 1 or (found.size and not np.issubdtype(found.dtype, np.integer)):
        raise InputError(f"y is {_kind(found)}, expected one integer an image: 0 for classes[0]")
    return torch.from_numpy(found.astype(np.int64))


def _array(value: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except Exception as error:  # __array__ and __iter__ of anything
        raise InputError(f"{what} is a {type(value).__name__}, expected an array or a list of numbers") from error


def _stacked(x: Any, channels: int) -> Shaped[np.ndarray, "n height width {channels}"]:
    stacked = _array(x, "x") if hasattr(x, "shape") or not isinstance(x, Iterable) else _stack(x)
    if stacked.dtype.kind not in "iuf":
        raise InputError(f"x is {_kind(stacked)}, expected floats in [0, 1] or uint8: convert it")
    wanted = f"expected (n, height, width, {channels})"
    if stacked.ndim == 3 or (stacked.ndim == 4 and stacked.shape[3] == 1 < channels):
        raise InputError(f"x has shape {stacked.shape}, {wanted}: convert greyscale to RGB, give one image as x[None]")
    if stacked.ndim != 4 or stacked.shape[3] != channels:
        raise InputError(f"x has shape {stacked.shape}, {wanted}: move the channels to the end, drop transparency")
    return stacked


def _stack(x: Iterable[Any]) -> np.ndarray:
    images = [_array(image, "an image") for image in x]
    other = next((i for i, image in enumerate(images) if image.shape != images[0].shape), None)
    if other is not None:
        shapes = f"image {other} has shape {images[other].shape}, image 0 {images[0].shape}"
        raise InputError(f"images of mixed size: {shapes}: bring them to one size and to RGB")
    return np.asarray(images)


def _levels(x: np.ndarray) -> UInt8[np.ndarray, "..."]:
    """Values 0..255, or the same over 255."""
    low, high = (x.min(), x.max()) if x.size else (0, 0)
    if np.issubdtype(x.dtype, np.integer) and 0 <= low and high <= 255:
        return x.astype(np.uint8, copy=False)
    if not np.issubdtype(x.dtype, np.floating) or not (0 <= low and high <= 1):
        mend = "divide by 255 or pass uint8" if 0 <= low and 1 < high <= 255 else "undo any normalization"
        raise InputError(f"x is {x.dtype} from {low} to {high}, expected floats in [0, 1] or uint8: {mend}")
    levels = x * np.float32(255)
    whole = np.round(levels)
    if x.size and np.abs(levels - whole).max() > 0.1:  # half precision is off by 0.06
        raise InputError("x has values between the levels k/255 of 8-bit images: pass (255 * x).round() as uint8")
    return whole.astype(np.uint8)


def _check_labels(y: Tensor, classes: int) -> None:
    wrong = (y < 0) | (y >= classes)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise InputError(f"label {int(y[row])} of image {row} is out of range, expected 0..{classes - 1}")
