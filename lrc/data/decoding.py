"""Image files decoded by Pillow into 8-bit colour; what cannot be, or is not what it should be, is one line."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from lrc.utils.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
RANGELESS = {"I": "32-bit integers", "F": "floating-point numbers"}
GREY = ("1", "L", "LA", *DEEP, *RANGELESS)


@contextmanager
def opened(file: str | BytesIO, what: str) -> Iterator["Image"]:
    """An image, of which only the header is read as yet. A file of far too many pixels counts as damaged.

    Raises InputError: it cannot be opened, or what is done with it meanwhile fails.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                yield image
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly anything for damaged files
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{what} cannot be decoded ({reason}): replace or remove it") from error


def upright(image: Any) -> Any:
    """The image turned as its EXIF data say, which is how every viewer shows it."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def colour(image: Any, what: str) -> Any:
    """The image in RGB: greyscale in three equal channels, 16 bits brought to 8, transparency left away.

    Raises InputError: 32-bit or floating-point pixels, whose range no file tells.
    """
    from PIL import Image

    if image.mode in RANGELESS:
        raise InputError(f"{what} holds {RANGELESS[image.mode]}, whose range is unknown: convert it to 8 or 16 bits")
    if image.mode in DEEP:
        levels = (np.asarray(image).astype(np.uint32) + 128) // 257  # the nearest: 65535 is 255
        image = Image.fromarray(levels.astype(np.uint8))
    return image.convert("RGB")
