"""What networks, functions and tensors are, in words that are the same in every process."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Generator, Tensor, nn

__all__ = ["described", "digest", "fingerprint"]

PLAIN = (bool, int, float, str)


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
    return str(getattr(value, "__qualname__", None) or _without_addresses(repr(value)))


def fingerprint(model: nn.Module) -> str:
    """Hexadecimal SHA-256 of what makes a network's answers: weights, all buffers, layers, and their plain attributes.

    Plain attributes are numbers, texts, tuples of these, tensors and functions (by name) that a layer holds under a
    public name. Neither device nor layout in memory matters, nor whether the network is in training mode.
    """
    sha = hashlib.sha256(_without_addresses(repr(model)).encode())
    for name, module in model.named_modules():
        kept = {k: v for k, v in sorted(vars(module).items()) if not k.startswith("_") and k != "training"}
        plain = {
            k: v for k, v in kept.items() if isinstance(v, Tensor | FunctionType | BuiltinFunctionType) or _flat(v)
        }
        sha.update(f"{name} {type(module).__qualname__} {described(plain)}\n".encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest([tensor])}\n".encode())
    return sha.hexdigest()


def digest(tensors: Iterable[Tensor]) -> str:
    """Hexadecimal SHA-256 of the bytes of the tensors, wherever and however they lie in memory."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _flat(value: Any) -> bool:
    return all(map(_flat, value)) if isinstance(value, tuple) else isinstance(value, PLAIN)


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)
