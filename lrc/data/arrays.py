"""Other people's arrays of images, checked and brought to uint8 without losing anything unseen."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from lrc.utils.errors import InputError


def pixels(x: Any, channels: int) -> UInt8[Tensor, "n {channels} height width"]:
    """One array (n, height, width, channels), or a list of images, as a tensor of bytes; uint8 is not copied.

    Raises InputError for images of mixed size, another number of channels, values that are no 8-bit images.
    """
    levels = np.require(_levels(_stacked(x, channels)), requirements=["C", "W"])  # else torch refuses or warns
    return torch.from_numpy(levels).permute(0, 3, 1, 2)


def labels(y: Any) -> Int64[Tensor, " n"]:
    """One integer an image, as int64. Raises InputError for anything else."""
    found = np.asarray(y)
    if found.ndim != 1 or (found.size and not np.issubdtype(found.dtype, np.integer)):
        raise InputError(f"y is {found.dtype} of shape {found.shape}, expected one integer an image: 0 for classes[0]")
    return torch.from_numpy(found.astype(np.int64))


def _stacked(x: Any, channels: int) -> Shaped[np.ndarray, "n height width {channels}"]:
    stacked = np.asarray(x) if hasattr(x, "shape") else _stack([np.asarray(image) for image in x])
    wanted = f"expected (n, height, width, {channels})"
    if stacked.ndim == 3 or (stacked.ndim == 4 and stacked.shape[3] == 1 < channels):
        raise InputError(f"x has shape {stacked.shape}, {wanted}: convert greyscale to RGB, give one image as x[None]")
    if stacked.ndim != 4 or stacked.shape[3] != channels:
        raise InputError(f"x has shape {stacked.shape}, {wanted}: move the channels to the end, drop transparency")
    return stacked


def _stack(images: list[np.ndarray]) -> np.ndarray:
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
