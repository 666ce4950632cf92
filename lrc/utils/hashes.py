"""Stable descriptions and hashes of networks, functions and tensors: the same in every process."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.parameter import is_lazy

from lrc.utils.networks import OWN

PLAIN = (bool, int, float, complex, str, bytes, np.generic, torch.dtype, type(None))
PROBES = 4  # images that a network is asked about to tell it from others
TOLERANCE = 2e-3  # of the range of the answers: what another device or number of threads may change


def described(value: Any) -> str:
    """A function with the options fixed in it, a network with its weights, or a plain value, without any address.

    Random generators among the options are left out. Functions go by their names: lambdas, and closures over other
    values, look alike where their names do.

    >>> from lrc.attacks import pgd
    >>> described(partial(pgd, steps=20, loss="margin"))
    "pgd(loss='margin', steps=20)"
    >>> described([nn.Linear, (1, 2.5), None])
    '[Linear, [1, 2.5], None]'
    """
    if isinstance(value, partial):
        options = [f"{k}={described(v)}" for k, v in sorted(value.keywords.items()) if not isinstance(v, Generator)]
        return f"{described(value.func)}({', '.join([*map(described, value.args), *options])})"
    if isinstance(value, nn.Module):
        return f"{type(value).__name__}({fingerprint(value)[:12]})"
    if isinstance(value, Tensor):
        return f"Tensor({tuple(value.shape)}, {digest([value])[:12]})"
    if isinstance(value, MethodType):
        return f"{described(value.__self__)}.{value.__name__}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(described, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {described(v)}" for k, v in value.items()) + "}"
    return str(getattr(value, "__qualname__", None) or re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value)))


def fingerprint(model: nn.Module) -> str:
    """Hexadecimal SHA-256 of what makes a network's answers, as far as it can be found.

    That is every parameter, buffer and packed weight, the layers, and what their attributes hold: plain values,
    tensors, functions (by name, with what they enclose), other networks, and tuples, lists and dictionaries of these.
    Neither device nor layout in memory matters, nor whether the network is in training mode. Other objects count by
    their type alone: `probe_answers` tells apart what only they make different.
    """
    sha = hashlib.sha256()
    for piece in _pieces(model, {}):
        sha.update(f"{piece}\n".encode())
    return sha.hexdigest()


def probe_answers(model: nn.Module, shape: Iterable[int], *, device: torch.device | str = "cpu") -> list[float] | None:
    """What a network answers to a few fixed images in [0, 1]: tells networks apart whatever they are made of.

    Args:
        model: images to one tensor; asked in the mode in which it is.
        shape: of one image.
        device: where the model expects images.

    Returns:
        The answers, to be kept and compared by `same_answers`; None of a network whose answers are random. PyTorch's
        global generators are left as they were.
    """
    x = _probe(tuple(shape)).to(device)
    with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        first, second = (model(x).double().cpu().flatten().tolist() for _ in range(2))
    return first if same_answers(first, second) else None


def same_answers(one: list[float] | None, other: list[float] | None) -> bool:
    """Whether these may be answers of one network, computed on two devices, say; NaN equals NaN.

    >>> same_answers([0.0, 1.0], [0.0, 1.0001]), same_answers([0.0, 1.0], [0.0, 1.1]), same_answers([0.0], None)
    (True, False, False)
    """
    if one is None or other is None or len(one) != len(other):
        return one is other
    a, b = torch.tensor([one, other], dtype=torch.float64)
    finite = a[a.isfinite()]
    spread = float(finite.max() - finite.min()) if len(finite) else 0.0
    return torch.allclose(a, b, rtol=1e-6, atol=TOLERANCE * spread, equal_nan=True)


def digest(tensors: Iterable[Tensor]) -> str:
    """Hexadecimal SHA-256 of the bytes of the tensors, wherever and however they lie in memory."""
    sha = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().dequantize() if tensor.is_quantized else tensor.detach().to_dense()
        sha.update(plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _probe(shape: tuple[int, ...]) -> Float[Tensor, "probes *shape"]:
    """Noise, each image of another brightness."""
    generator = torch.Generator().manual_seed(0)
    brightness = torch.linspace(0.4, 1, PROBES).view(-1, *[1] * len(shape))
    return brightness * torch.rand(PROBES, *shape, generator=generator)


def _pieces(value: Any, met: dict[int, int]) -> Iterator[str]:
    """All that can be found in a value, piece by piece; a network met before, or what holds itself, by its number."""
    if isinstance(value, PLAIN):
        yield repr(value)
    elif isinstance(value, Tensor):
        yield "to be shaped" if is_lazy(value) else f"{value.dtype} {tuple(value.shape)} {digest([value])}"
    elif id(value) in met:
        yield f"number {met[id(value)]} again"
    else:
        met[id(value)] = len(met)
        yield _kind(value)
        for name, part in _parts(value):
            yield f"{name}:"
            yield from _pieces(part, met)
        if not isinstance(value, nn.Module):  # whether equal values are one object is up to Python
            del met[id(value)]


def _kind(value: Any) -> str:
    name = str(getattr(value, "__qualname__", type(value).__qualname__))
    return f"{name}({value.extra_repr()})" if isinstance(value, nn.Module) else name


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    """What a network, container or function holds, by name."""
    if isinstance(value, nn.Module):
        parts = {k: v for k, v in vars(value).items() if k not in OWN}
        parts |= {k: v for k, v in value.state_dict().items() if "." not in k}  # also packed weights, extra state
        for registered in (value._parameters, value._buffers, value._modules):
            parts |= dict(registered.items())
        return sorted(parts.items())
    if isinstance(value, partial):
        return [("function", value.func), ("arguments", value.args), ("options", value.keywords)]
    if isinstance(value, MethodType):
        return [("function", value.__func__), ("of", value.__self__)]
    if isinstance(value, FunctionType) and not value.__module__.startswith("torch."):
        return [("encloses", list(_enclosed(value))), ("defaults", [value.__defaults__, value.__kwdefaults__])]
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return [(f"{value.dtype} {value.shape}", hashlib.sha256(value.tobytes()).digest())]
    if isinstance(value, set | frozenset):
        return [("holds", sorted(repr(v) for v in value if isinstance(v, PLAIN)))]
    if isinstance(value, Mapping):
        return [(repr(k), v) for k, v in value.items() if isinstance(k, PLAIN)]
    return [(str(i), v) for i, v in enumerate(value)] if isinstance(value, tuple | list) else []


def _enclosed(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty one
            yield cell.cell_contents
