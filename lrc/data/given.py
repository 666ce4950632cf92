"""Labelled images as people have them: arrays, loaders, datasets of torchvision, and data sets of the hub on disk."""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrc.data.decoding import colour, opened, upright
from lrc.data.folders import check_side, common_side, of_files
from lrc.data.images import Images
from lrc.utils.errors import InputError

IMAGE, LABEL = ("image", "img", "x", "images", "pixel_values"), ("label", "labels", "y", "fine_label", "target")
Count = Callable[[Images], int]


def as_images(data: Any, *, count: Count | None = None) -> Images:
    """The labelled images in whatever holds them; images themselves stay as they are.

    Args:
        data: `Images`, or the name of a data set or folder; (x, y), arrays or tensors (n, channels, height, width),
            (n, height, width, channels) or (n, height, width), as `Images.from_arrays` takes their values; a DataLoader
            of such batches; an `ImageFolder` or any other dataset of (image, label), Pillow images included; a dataset
            of the hub.
        count: number of classes of those images, where nothing names them: by default one more than the largest label.

    Raises:
        InputError: something else, or images that are not on the 256 levels of [0, 1], such as normalized ones.
    """
    if isinstance(data, Images):
        return data
    if isinstance(data, str | Path):
        from lrc.data.sources import named  # which reads with this module

        return named(str(data), "test")
    names = _names(data)
    if isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[0], tuple | list):
        return _arrays(data[0], data[1], names, count)
    if getattr(data, "samples", None) and names and getattr(data, "transform", None) is None:
        side = common_side([file for file, _ in data.samples])
        return of_files(data.samples, names, size=side, hierarchy=None, workers=None)
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise InputError(
            f"the images must be lrc.Images, not {type(data).__name__}; or (x, y), a DataLoader, a dataset, a name"
        )
    x, y = zip(*_pairs(data), strict=True)
    if isinstance(x[0], Tensor) and x[0].dim() == 4:  # batches
        return _arrays(torch.cat(x), torch.cat([torch.as_tensor(some) for some in y]), names, count)
    return _arrays(_one_size(x), list(map(int, y)), names, count)


def _pairs(data: Any) -> Iterator[tuple[Any, Any]]:
    """Images and labels, batch by batch or one by one."""
    each: Iterable[Any] = data if hasattr(data, "__iter__") else (data[i] for i in range(len(data)))
    found = 0
    for found, item in enumerate(each, start=1):  # noqa: B007
        if isinstance(item, Mapping):
            item = [item[_key(item, keys)] for keys in (IMAGE, LABEL)]
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise InputError(f"the images must be lrc.Images, not {type(data).__name__}, or pairs of image and label")
        yield item[0], item[1]
    if not found:
        raise InputError("there are no images to classify: give at least one")


def _key(columns: Iterable[str], wanted: Sequence[str], split: str = "") -> str:
    """The first name of those wanted, as that of a part (x_test, test_images) before as it is."""
    of_part = [name for key in wanted for name in (f"{key}_{split}", f"{split}_{key}")] if split else []
    if found := next((key for key in (*of_part, *wanted) if key in columns), None):
        return found
    raise InputError(f"the data have {', '.join(columns)}: expected one of {', '.join(wanted)}")


def _names(data: Any) -> tuple[str, ...] | None:
    """Names of the classes, where a dataset, or that of a loader, says them."""
    while not (found := getattr(data, "classes", None)) and hasattr(data, "dataset"):
        data = data.dataset
    for feature in (getattr(data, "features", None) or {}).values():
        found = found or getattr(feature, "names", None)
    return tuple(map(str, found)) if found else None


def _one_size(images: Sequence[Any]) -> Any:
    """Images of one size, as one array."""
    arrays = [np.asarray(colour(upright(x), "an image") if hasattr(x, "getexif") else x) for x in images]
    if len({a.shape for a in arrays}) > 1:
        raise InputError("images differ in size: give the dataset a transform that brings them to one")
    return np.stack(arrays)


def _arrays(x: Any, y: Any, names: tuple[str, ...] | None, count: Count | None) -> Images:
    """Images of arrays; their classes are numbers where they have no names."""
    x = np.asarray(x.detach().cpu()) if isinstance(x, Tensor) else np.asarray(x)
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] not in (1, 3):
        x = x.transpose(0, 2, 3, 1)
    channels = x.shape[3] if x.ndim == 4 and x.shape[3] in (1, 3) else 3
    y = np.asarray(y.detach().cpu()) if isinstance(y, Tensor) else np.asarray(y)
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.size and not (np.issubdtype(y.dtype, np.integer) and y.min() >= 0):
        raise InputError(
            f"labels are {y.dtype} of shape {y.shape}: expected one integer an image, 0 for the first class"
        )
    least = int(y.max()) + 1 if y.size else 1
    numbers = tuple(map(str, range(least)))
    found = Images.from_arrays(x, y, names if names and len(names) >= least else numbers, channels=channels)
    if count is not None and found.classes == numbers and (more := count(found)) > least:
        return Images(found.x, found.y, tuple(map(str, range(more))))
    return found


def grey(images: Images) -> Images:
    """The same in one channel: the luminance of each pixel (ITU-R 601), to the nearest of 256 levels."""
    if images.x.shape[1] == 1:
        return images
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    parts = [slice(start, start + 500) for start in range(0, len(images), 500)]
    x = [(some.float() * weights).sum(1, keepdim=True).round().byte() for some, _ in images.read(parts)]
    return Images(torch.cat(x), images.y, images.classes, images.hierarchy)


def is_stored(place: Path) -> bool:
    """Whether a file or folder holds arrays (.npz, .npy) or a data set of the hub, which `stored` reads."""
    return place.suffix == ".npz" if place.is_file() else bool([*place.glob("*.npy")] or _tables(place, ""))


def stored(place: Path, split: str, *, size: int | None = None) -> Images:
    """Images in an .npz file with `x`, `y` and perhaps `classes`, or in a folder that `datasets` wrote or the hub has.

    Arrays may also be named for the part, as x_test and y_test or test_images and test_labels, or be .npy files of a
    folder.

    Raises:
        InputError: none of these, or images of several sizes and no `size`.
    """
    if place.is_file() or any(place.glob("*.npy")):
        x, y, names = _arrays_in(place, (IMAGE, LABEL), split)
        return _arrays(x, y, None if names is None else tuple(map(str, names)), None)
    files = _tables(place, split) or (_tables(place, "validation") if split == "test" else [])
    files = files or _tables(place, "val" if split == "test" else split)
    if not files:
        raise InputError(f"{place} holds a data set without {split!r}: give the folder of one of its parts")
    return _hub(files, size)


def _arrays_in(place: Path, wanted: Sequence[Sequence[str]], split: str) -> list[np.ndarray | None]:
    """Of the arrays in an .npz file or in the .npy files of a folder those wanted, and the names of classes."""
    try:
        if place.is_dir():
            found: Any = {file.stem: np.load(file, mmap_mode="r") for file in place.glob("*.npy")}
            return [*(found[_key(found, keys, split)] for keys in wanted), found.get("classes")]
        with np.load(place) as file:
            return [*(file[_key(file, keys, split)] for keys in wanted), file.get("classes")]
    except InputError:
        raise
    except Exception as error:  # a damaged file, or one with Python objects
        raise InputError(f"{place} cannot be read: {' '.join(str(error).split())[:120]}") from error


def _tables(place: Path, split: str) -> list[Path]:
    """Files of Arrow or Parquet of a part: in a folder of its name, or with it in theirs; in all if it is empty."""
    found = [*place.glob("*.arrow"), *place.glob("*/*.arrow"), *place.glob("*.parquet"), *place.glob("*/*.parquet")]
    if len({file.parent for file in found}) == 1 and all(file.name.startswith("data-") for file in found):
        return sorted(found) if found[0].parent in (place, place / split) or not split else []
    return sorted(f for f in found if not split or f.parent.name == split or f.name.startswith(split))


def _hub(files: list[Path], size: int | None) -> Images:
    from PIL import Image, ImageOps

    table, features = _read(files)
    image, label = (_key(table.column_names, keys) for keys in (IMAGE, LABEL))
    pictures = []
    for row, cell in enumerate(table.column(image).to_pylist()):
        what = f"image {row} of {files[0].parent}"
        file = io.BytesIO(cell["bytes"]) if cell.get("bytes") else str(cell.get("path"))
        with opened(file, what) as picture:
            shown = colour(upright(picture), what)
            pictures.append(ImageOps.fit(shown, (size, size), Image.Resampling.BILINEAR) if size else shown)
    if size is not None:
        check_side(size)
    if len({picture.size for picture in pictures}) > 1:
        raise InputError(f"images of {files[0].parent} differ in size: give the size they are brought to")
    names = features.get(label, {}).get("names") or features.get(label, {}).get("feature", {}).get("names")
    return _arrays(
        np.stack([np.asarray(p) for p in pictures]), table.column(label).to_numpy(), names and tuple(names), None
    )


def _read(files: list[Path]) -> tuple[Any, dict[str, Any]]:
    """The rows of the files, and what is said of their columns, in the files or beside them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for file in files:
        try:
            if file.suffix == ".parquet":
                tables.append(pq.read_table(file))
            else:
                with pa.memory_map(str(file)) as source:
                    tables.append(pa.ipc.open_stream(source).read_all())
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file} cannot be read: {' '.join(str(error).split())[:120]}") from error
    table = pa.concat_tables(tables)
    beside = files[0].parent / "dataset_info.json"
    if beside.is_file():
        return table, json.loads(beside.read_text()).get("features") or {}
    said = (table.schema.metadata or {}).get(b"huggingface")
    return table, json.loads(said)["info"]["features"] if said else {}
