"""Images in folders, one a class, decoded while they are used: for what does not fit into memory."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image, ImageOps
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from lrc.data.images import Images, Indices
from lrc.hierarchy import Hierarchy
from lrc.utils.errors import InputError
from lrc.utils.hashes import digest

__all__ = ["Folder", "folder"]


def folder(path: str | Path, *, size: int, hierarchy: Hierarchy | None = None, workers: int | None = None) -> "Folder":
    """The images of a folder that has one folder for each class, `path/cat/1.jpg` and so on.

    They come in an order drawn once for all, not class by class, so that the first n are a fair sample.

    Args:
        path: of the one part, training or test; the classes are the names of its folders in alphabetical order.
        size: side in pixels: the shorter side of an image is brought to it, then its middle is cut out.
        hierarchy: groups of these classes.
        workers: processes that decode beside this one, by default one a core, 8 at most; with 0 this one decodes.

    Raises:
        InputError: no such folder, no images in it, or a hierarchy of other classes.
    """
    check_side(size)
    try:
        found = ImageFolder(path)
    except OSError as error:  # no folder, no class in it, or a class without images
        reason = " ".join(str(error).split())
        raise InputError(f"{path} holds no images in one folder for each class: {reason}") from error
    return of_files(found.samples, tuple(found.classes), size=size, hierarchy=hierarchy, workers=workers)


def check_side(size: int) -> None:
    """Raises InputError unless images can have that side, in pixels."""
    if size < 1:
        raise InputError(f"images of side {size}, expected at least 1 pixel")


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
        workers = min(8, cpu_count() or 1)
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
        """Hexadecimal SHA-256 of the images' files (class folder, name, size, time of change), side and labels.

        The files are not read. Raises InputError for one that is gone.
        """
        sha = hashlib.sha256(f"{tuple(self.x.shape)} {digest([self.y])}\n".encode())
        for row in self.rows.tolist():
            path = Path(self.files[row])
            try:
                facts = path.stat()
            except OSError as error:
                raise InputError(f"{path} cannot be read ({error.strerror}): open the folder anew") from error
            sha.update(f"{path.parent.name}/{path.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
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
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR))
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for files that are missing or damaged
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be decoded ({reason}): replace or remove it") from error


def _as_it_is(batch: Any) -> Any:
    return batch
