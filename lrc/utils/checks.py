"""Checks of what a user gives: networks, their outputs, images, labels, numbers.

Each raises `InputError`: one line that says what is wrong, where, and how to mend it. The public functions of all rooms
call these, so that the same mistake gets the same answer everywhere.
"""

import inspect
import itertools
import math
import numbers
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.parameter import is_lazy

from lrc.utils.errors import InputError

FLOATS = (torch.float32, torch.float64)
MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
CLOSE = 1e-3  # outside [0, 1] by less than this: rounding; by more: other units
SUM = 1e-4  # what rounding may add to probabilities that sum to one


def check_number(name: str, value: object, interval: str = "[0, inf)") -> float:
    """The number as a float; refuses what is no real number in the interval, which is written as in mathematics.

    >>> check_number("share", 1.5, "(0, 1]")
    Traceback (most recent call last):
    lrc.utils.errors.InputError: share must be in (0, 1], not 1.5
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    v = _real(value)
    ends = (v == low and interval[0] == "[") or (v == high and interval[-1] == "]")
    if not (low < v < high or ends):
        sign = ">=" if interval[0] == "[" else ">"
        wanted = f"{sign} {low:g} and finite" if high == math.inf else f"in {interval}"
        raise InputError(f"{name} must be {wanted}, not {named(value)}")
    return v


def check_whole(name: str, value: object, least: int = 0) -> int:
    """The number as an int; refuses what is no whole number, or less than `least`."""
    if not isinstance(value, numbers.Integral) or not _real(value) >= least:
        raise InputError(f"{name} must be a whole number >= {least}, not {named(value)}")
    return int(value)


def check_flag(name: str, value: object) -> None:
    """Refuses what is neither True nor False."""
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, not {named(value)}")


def check_choice(kind: str, value: object, known: Collection[str]) -> None:
    """Refuses a name that is not among those known; `kind` says what it would name ("norm")."""
    if not isinstance(value, str) or value not in known:
        raise InputError(f"no {kind} is called {named(value)}; there are {', '.join(known)}")


def check_function(name: str, function: Any, *arguments: str, **options: None) -> None:
    """Refuses what cannot be called with these arguments, which are named for the message, and options."""
    if not callable(function):
        raise InputError(f"{name} must be a function, not {named(function)}")
    try:
        inspect.signature(function).bind(*arguments, **options)
    except TypeError as error:
        wanted = ", ".join([*arguments, *(f"{option}=..." for option in options)])
        raise InputError(f"{name} must take ({wanted}): {error}") from error
    except ValueError:  # a builtin, which does not say what it takes
        pass


def check_generator(generator: object) -> None:
    """Refuses what is neither None nor a `torch.Generator`."""
    if generator is not None and not isinstance(generator, Generator):
        raise InputError(
            f"generator must be a torch.Generator, not {named(generator)}: torch.Generator().manual_seed(0), say"
        )


def check_network(model: object) -> None:
    """Refuses what is no `torch.nn.Module`, or one whose parameters have no shape or no values yet."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the network must be a torch.nn.Module, not {named(model)}")
    tensors = [*model.parameters(), *model.buffers()]
    if any(map(is_lazy, tensors)):
        raise InputError("the network has lazy layers that have seen no image: run it on one first")
    if any(t.is_meta for t in tensors):
        raise InputError("the network is on device meta, where weights have no values: load them first")


def check_tensor(name: str, value: object) -> None:
    """Refuses what is no ordinary tensor: dense, with its values in memory."""
    if not isinstance(value, Tensor):
        raise InputError(f"{name} must be a torch.Tensor, not {named(value)}: torch.as_tensor makes one of an array")
    if value.layout is not torch.strided or value.is_meta or value.is_nested or value.is_quantized:
        raise InputError(f"{name} must be an ordinary dense tensor, not sparse, nested, quantized or on device meta")


def check_rows(name: str, value: Any) -> None:
    """Refuses what is no tensor of real numbers with one row or more, none of them empty: (n, ...)."""
    check_tensor(name, value)
    if not value.is_floating_point():
        raise InputError(f"{name} must be floating-point numbers, not {value.dtype}: {name}.float() makes them of it")
    if value.dim() < 2 or not value.numel():
        raise InputError(f"{name} must be rows (n, ...) of one number or more, not {tuple(value.shape)}")


def check_matrix(name: str, value: Any) -> None:
    """Refuses what is no square matrix of real, finite numbers."""
    check_tensor(name, value)
    if value.is_complex():
        raise InputError(f"{name} must be real numbers, not {value.dtype}")
    if value.dim() != 2 or len(value) != value.shape[1] or not len(value):
        raise InputError(f"{name} must be a matrix (classes, classes), not {tuple(value.shape)}")
    if not value.isfinite().all():
        raise InputError(f"{name} holds values that are not finite: see where they come from")


def check_images(x: Any, *, dims: int | None = None) -> None:
    """Refuses images that are not float32 or float64 (n, ...) in [0, 1]; of `dims` dimensions, else of 2 or more."""
    check_tensor("images", x)
    if x.dtype not in FLOATS:
        half = x.dtype in (torch.float16, torch.bfloat16)
        mend = "for half precision run under torch.autocast" if half else "x.float() / 255 makes them of bytes"
        raise InputError(f"images must be float32 or float64, not {x.dtype}: {mend}")
    if x.dim() < 2 or (dims is not None and x.dim() != dims):
        shape = "(n, c, h, w)" if dims == 4 else "(n, ...)"
        raise InputError(f"images must be {shape}, not {tuple(x.shape)}: put one image into a batch with x[None]")
    if not x[:1].numel() and len(x):
        raise InputError(f"images {tuple(x.shape)} have no pixels: give at least one")
    if len(x):
        low, high = x.amin().item(), x.amax().item()
        if not (low >= 0 and high <= 1):
            mend = "divide by 255, and put normalization inside the model (lrc.models.Normalize)"
            if -CLOSE <= low and high <= 1 + CLOSE:
                mend = "x.clamp(0, 1) cuts off what rounding added"
            raise InputError(f"images must lie in [0, 1], these in [{low:.9g}, {high:.9g}]: {mend}")


def check_labels(y: Any, count: int, *, name: str = "labels", classes: int | None = None) -> None:
    """Refuses labels that are not one whole number >= 0 for each of `count` images, below `classes` if given."""
    check_tensor(name, y)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise InputError(f"{name} must be whole numbers, not {y.dtype}: y.long() if they are numbers of classes")
    if y.dim() != 1:
        mend = "y.squeeze(1) makes them of a column, y.argmax(1) of one-hot rows"
        raise InputError(f"{name} must be (n,), one for each image, not {tuple(y.shape)}: {mend}")
    if len(y) != count:
        raise InputError(f"{count} images with {len(y)} {name}: give one for each image")
    if len(y):
        y = y.long()
        low, high = int(y.amin()), int(y.amax())
        if low < 0:
            raise InputError(f"{name} must be >= 0, not {low}: number the classes from 0")
        if classes is not None and high >= classes:
            raise InputError(f"label {high} among the {name}, where the network has classes 0..{classes - 1}")


def check_radius(eps: Any, norm: object, x: Tensor) -> None:
    """Refuses a norm that is not "linf" or "l2", and a radius below 0 or larger than any distance of images like x."""
    check_choice("norm", norm, ("linf", "l2"))
    check_number("eps", eps)
    most = 1.0 if norm == "linf" else math.sqrt(x.shape[1:].numel())
    if eps > most * (1 + 1e-9):
        raise InputError(
            f"eps = {eps:g} is too large: images in [0, 1] lie within {most:g} of each other ({norm}); "
            f"did you mean {eps:g}/255?"
        )


def check_logits(z: object, count: int, *, classes: int | None = None, values: bool = True) -> Tensor:
    """The outputs of a network for `count` images, if they are logits (n, classes), of two classes or more.

    With `values` their numbers are looked at too, for which a GPU has to be waited for.

    Warns:
        RuntimeWarning: all are >= 0 and sum to one for each of several images: probabilities, whose gradient fades.
    """
    wanted = f"of {classes} classes" if classes is not None else "of two classes or more"
    if not isinstance(z, Tensor):
        mend = "return the .logits of it" if hasattr(z, "logits") else "return one tensor"
        raise InputError(f"the network must give logits (n, classes) {wanted}, not {named(z)}: {mend}")
    if z.dim() != 2 or len(z) != count or z.shape[1] < 2 or classes not in (None, z.shape[1]):
        mend = ": flatten(1) makes them of it" if z.dim() > 2 and z.shape[2:].numel() == 1 else ""
        raise InputError(f"the network must give logits ({count}, classes) {wanted}, not {tuple(z.shape)}{mend}")
    if z.is_complex() or z.dtype == torch.bool:
        raise InputError(f"the network must give real logits, not {z.dtype}")
    if values and _probabilities(z.detach()):
        warnings.warn(
            "the outputs are >= 0 and sum to one: probabilities, it seems, whose gradients fade: leave out the softmax",
            RuntimeWarning,
            stacklevel=2,
        )
    return z


@contextmanager
def explained(model: nn.Module, x: Tensor) -> Iterator[None]:
    """While the network runs on x: an error of its own code becomes one line that says what it was given.

    Raises InputError: from the error; running out of memory is left as it is.
    """
    try:
        yield
    except MISTAKES as error:
        if isinstance(error, InputError) or out_of_memory(error):
            raise
        raise InputError(_why(model, x, error)) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on a CPU PyTorch says so by a `RuntimeError` like any other."""
    said = isinstance(error, RuntimeError) and re.search("(allocate|out of|not enough) memory", str(error))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(said)


def _why(model: nn.Module, x: Tensor, error: Exception) -> str:
    tensors = [t for t in itertools.chain(model.parameters(), model.buffers()) if t.is_floating_point()]
    dtypes, devices = {t.dtype for t in tensors}, {t.device for t in tensors}
    if dtypes and x.dtype not in dtypes:
        return f"the network is {_listed(dtypes)}, the images {x.dtype}: model.to({x.dtype}) brings it to their type"
    if devices and x.device not in devices:
        return f"the network is on {_listed(devices)}, the images on {x.device}: model.to({str(x.device)!r}) moves it"
    return f"the network fails on images {tuple(x.shape)} of {x.dtype}: {first_line(error)}"


def first_line(error: Exception) -> str:
    """What an error says, in one line: its first, of TorchScript the last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if "TorchScript" in lines[0] else 0][:300]


def _listed(things: Collection[object]) -> str:
    return " and ".join(sorted(map(str, things)))


def _probabilities(z: Tensor) -> bool:
    """Rows of numbers >= 0 that sum to one; zeros and ones alone, or a single row, may be so by chance."""
    if len(z) < 2 or not z.is_floating_point():
        return False
    return bool((z >= 0).all() & ((z.sum(1) - 1).abs() < SUM).all() & (z != z.round()).any())


def _real(value: Any) -> float:
    """A real number as a float; NaN for all else."""
    try:
        return math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    except OverflowError:
        return math.inf


def named(value: object) -> str:
    """Numbers, strings and None as they are written; of anything else the type."""
    if value is None or isinstance(value, str | numbers.Number):
        return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
