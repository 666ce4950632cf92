"""Images in folders, one a class, decoded while they are used: for what does not fit into memory."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from lrc.data.decoding import colour, opened, upright
from lrc.data.images import Images, Indices
from lrc.hierarchy import Hierarchy
from lrc.utils.checks import check_whole
from lrc.utils.errors import InputError
from lrc.utils.files import sha256
from lrc.utils.hashes import digest

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
TESTS = ("test", "val", "valid", "validation")  # the first that there is
PARTS = ("train", *TESTS)


def folder(
    path: str | Path, *, size: int | None = None, hierarchy: Hierarchy | None = None, workers: int | None = None
) -> "Folder":
    """The images of a folder that has one folder for each class, `path/cat/1.jpg` and so on.

    They come in an order drawn once for all, not class by class, so that the first n are a fair sample. Images are
    turned as their EXIF data say, greyscale becomes three equal channels, 16 bits become 8, transparency is left away.
    What is hidden (`.ipynb_checkpoints`, `._1.jpg`) is neither a class nor an image.

    Args:
        path: of the one part, training or test; the classes are the names of its folders in alphabetical order.
        size: side in pixels: the shorter side of an image is brought to it, then its middle is cut out. Absent, it is
            that of the images, which then have to be square and of one size.
        hierarchy: groups of these classes.
        workers: processes that decode beside this one, by default one a core, 8 at most; with 0 this one decodes.

    Raises:
        InputError: no such folder, no images in it, a hierarchy of other classes, or no size for images that differ.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"path must be that of a folder, not {type(path).__name__}")
    if size is not None:
        check_side(size)
    if workers is not None:
        check_whole("workers", workers)
    classes = classes_in(Path(path))
    samples = samples_in(Path(path), {name: i for i, name in enumerate(classes)})
    size = common_side([file for file, _ in samples]) if size is None else size
    return of_files(samples, classes, size=size, hierarchy=hierarchy, workers=workers)


def part_of(place: Path, split: str, *, size: int | None = None, **options: Any) -> "Folder":
    """One part of a folder with the parts `train` and `test` (or `val`), which have to be of the same classes.

    Raises InputError: as `folder`; or the parts differ in their classes or, without `size`, in the side of the images.
    """
    named = next((name for name in TESTS if (place / name).exists()), split)
    part = place / (named if split == "test" else split)
    classes, others = classes_in(part), [place / name for name in PARTS if (place / name).is_dir()]
    for other in others:
        if differ := sorted({*classes} ^ {*classes_in(other)}):
            where = part if differ[0] in classes else other
            raise InputError(
                f"{part} and {other} are not of the same classes: {differ[0]!r} is only in {where}: give each part a "
                "folder for each class"
            )
    numbers = {name: i for i, name in enumerate(classes)}
    if size is None:
        size = common_side([file for each in others for file, _ in samples_in(each, numbers)])
    return folder(part, size=size, **options)


def classes_in(path: Path) -> tuple[str, ...]:
    """Names of the folders in a folder, in alphabetical order. Raises InputError where there are none."""
    try:
        found = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{path} holds no images in one folder for each class: {error.strerror}") from error
    if not found:
        raise InputError(f"{path} holds no images in one folder for each class: there is no folder in it")
    return tuple(found)


def samples_in(path: Path, classes: Mapping[str, int]) -> list[tuple[str, int]]:
    """File and class of each image in some folders, given with the numbers of their classes.

    Raises InputError for a folder without images.
    """
    samples: list[tuple[str, int]] = []
    for name in sorted(classes):
        there = len(samples)
        for base, _, files in sorted(os.walk(path / name, followlinks=True)):
            if not any(step.startswith(".") for step in Path(base).relative_to(path).parts):
                named = sorted(file for file in files if file.lower().endswith(ENDINGS) and not file.startswith("."))
                samples += [(os.path.join(base, file), classes[name]) for file in named]
        if len(samples) == there:
            raise InputError(f"{path} holds no images of {name!r}: put some there ({', '.join(ENDINGS)}), or remove it")
    return samples


def common_side(files: Sequence[str]) -> int:
    """The side of images that are all square and of one size. Raises InputError for others."""
    sizes: dict[tuple[int, int], str] = {}  # and the first image of each
    for file in files:
        with opened(file, file) as image:
            sizes.setdefault(image.size, file)
        if len(sizes) > 1 or image.width != image.height:
            found = ", ".join(f"{file} is {width}x{height}" for (width, height), file in sizes.items())
            raise InputError(f"images are not square and of one size ({found}): give the size they are brought to")
    return next(iter(sizes))[0]


def check_side(size: int) -> None:
    """Raises InputError unless images can have that side, in pixels."""
    check_whole("the side of images, in pixels,", size, 1)


def of_files(
    samples: Sequence[tuple[str, int]],
    classes: tuple[str, ...],
    *,
    size: int,
    hierarchy: Hierarchy | None,
    workers: int | None,
) -> "Folder":
    """Images given by file and class, the rest as in `folder`."""
    files, y = zip(*samples, strict=True)
    x = torch.empty((len(y), 3, size, size), dtype=torch.uint8, device="meta")
    if workers is None:
        workers = min(8, os.cpu_count() or 1)
    rows = torch.randperm(len(y), generator=Generator().manual_seed(0))
    return Folder(x, torch.tensor(y)[rows], classes, hierarchy, files=files, rows=rows, workers=workers)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Folder(Images):
    """Labelled images in files; made by `folder`, used like any `Images`.

    `x` has their shape and type but no pixels (a tensor of the device "meta", whose values PyTorch refuses to give):
    these come from `float` and `batches`, which decode.
    """

    files: tuple[str, ...]
    rows: Int64[Tensor, " n"]  # of `files`, one for each image
    workers: int

    def _take(self, index: slice | Int64[Tensor, " m"]) -> "Folder":
        kept = self.rows[index.cpu() if isinstance(index, Tensor) else index]
        return replace(self, x=self.x[index], y=self.y[index], rows=kept)

    def _joined(self, other: "Folder") -> "Folder":
        files, rows = (*self.files, *other.files), torch.cat([self.rows, other.rows + len(self.files)])
        x, y = torch.cat([self.x, other.x]), torch.cat([self.y, other.y])
        return replace(self, x=x, y=y, rows=rows, files=files)

    def to(self, device: torch.device | str) -> "Folder":
        """The same images, to be given out on `device`."""
        return replace(self, y=self.y.to(device))

    def float(self, indices: Indices | None = None) -> Float[Tensor, "m channels height width"]:
        """All images, or those at `indices`, as float32 in [0, 1], channels-last."""
        index = slice(None) if indices is None else self._rows(indices)
        x, _ = next(self.read([index]))
        return x.to(torch.float32, memory_format=torch.channels_last).div_(255)

    def digest(self) -> str:
        """Hexadecimal SHA-256 of the bytes of the images' files, side, labels and names of classes.

        Every file is read, but not decoded. Raises InputError for one that is gone.
        """
        sha = hashlib.sha256(f"{tuple(self.x.shape)} {digest([self.y])} {self.classes}\n".encode())
        with ThreadPoolExecutor() as pool:
            for row in pool.map(_contents, [self.files[row] for row in self.rows.tolist()]):
                sha.update(f"{row}\n".encode())
        return sha.hexdigest()

    def read(self, parts: Iterable[slice | Int64[Tensor, " b"]]) -> Iterator[tuple[Tensor, Int64[Tensor, " b"]]]:
        """Bytes (b, channels, height, width) and classes of the images of each part, in their order.

        Raises InputError for a file that is no image.
        """
        indices, device = list(parts), self.y.device
        wanted = [self._take(index).rows.tolist() for index in indices]
        loader = DataLoader(
            _Decoded(self.files, self.x.shape[-1]), batch_sampler=wanted, collate_fn=_as_it_is,
            num_workers=min(self.workers, len(wanted)), pin_memory=device.type == "cuda", generator=Generator(),
        )  # fmt: skip
        for index, x in zip(indices, loader, strict=True):
            if isinstance(x, str):
                raise InputError(x)
            yield x.to(device, non_blocking=True), self.y[index]


def _contents(path: str) -> str:
    try:
        return sha256(Path(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): open the folder anew") from error


@dataclass(frozen=True)
class _Decoded(Dataset[Tensor | str]):
    """The bytes of files, a batch at a time; or what is wrong, as an error in a worker process would be many lines."""

    files: tuple[str, ...]
    size: int

    def __getitems__(self, rows: list[int]) -> Tensor | str:
        pixels = np.empty((len(rows), self.size, self.size, 3), dtype=np.uint8)
        try:
            for place, row in enumerate(rows):
                pixels[place] = _decoded(self.files[row], self.size)
        except InputError as error:
            return str(error)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _decoded(path: str, size: int) -> UInt8[np.ndarray, "size size 3"]:
    from PIL import Image, ImageOps

    with opened(path, path) as image:
        return np.asarray(ImageOps.fit(colour(upright(image), path), (size, size), Image.Resampling.BILINEAR))


def _as_it_is(batch: Any) -> Any:
    return batch
