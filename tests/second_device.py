"""A second device in this process: tensors that compute on the CPU, and refuse to meet those of the CPU as CUDA's do.

PyTorch's Python backend (`_setup_privateuseone_for_python_backend`) gives the device its name, its place among the
accelerators and the guard that autograd asks. Its tensors alone will not do: their data are a Python attribute, which
`detach`, and so every tensor that autograd saves, does not copy. So a tensor here is a subclass that holds one of the
CPU, and each operation on it comes by `__torch_dispatch__`, below autograd. There, what CUDA refuses is refused: two
devices in one operation, save for numbers of no dimension and indices, and generators of the CPU.

Importing this module makes the device the accelerator of the whole process: do so in a process of its own.
"""

from functools import partial
from typing import Any

import torch
from lightning_fabric.accelerators import ACCELERATOR_REGISTRY, CPUAccelerator
from torch import Generator, Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

aten = torch.ops.aten
BETWEEN = {aten._to_copy.default, aten.copy_.default}  # what may read one device and write another
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Module(_DummyBackendModule):
    """What `torch.second` is."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("second", Module())
DEVICE = torch.device("second", 0)


class Second(Tensor):
    """A tensor on the second device, whose numbers are those of `held`, on the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "Second":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return Tensor._make_wrapper_subclass(cls, held.size(), device=DEVICE, **layout)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def tolist(self) -> Any:
        return self.held.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:  # what is loaded is on the CPU, as lrc asks of checkpoints anyway
        return self.held.__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:
        return f"Second({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _check(func, args, kwargs)
        target = kwargs.get("device")
        there = tree_map(lambda t: t.held if isinstance(t, Second) else t, (args, kwargs))
        if target is not None:
            there[1]["device"] = "cpu"
        result = func(*there[0], **there[1])
        if target is None or torch.device(target).type == "second":
            result = tree_map(lambda t: Second(t) if isinstance(t, Tensor) else t, result)
        result = return_and_correct_aliasing(func, args, kwargs, result)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Second)]
        assert all(t.shape == t.held.shape for t in given), f"{func} made another shape of what it was given"
        return result


def _check(func: Any, args: Any, kwargs: Any) -> None:
    """Raises a RuntimeError where CUDA does."""
    leaves = tree_leaves((args, kwargs))
    if any(isinstance(g, Generator) for g in leaves):
        raise RuntimeError(f"{func}: expected a generator of the second device, found one of the cpu")
    if func in BETWEEN:
        return
    if func in INDEXING and isinstance(args[0], Second):
        leaves = tree_leaves((args[0], args[2:]))
    strays = [t for t in leaves if isinstance(t, Tensor) and not isinstance(t, Second)]
    if any(t.dim() or not (torch.Tag.pointwise in func.tags or func in INDEXING) for t in strays):
        raise RuntimeError(
            f"{func}: expected all tensors on one device, found one of shape {tuple(strays[0].shape)} on the CPU"
        )


_library = torch.library.Library("aten", "IMPL")  # lives as long as this module


def _empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
    return Second(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format, device="cpu"))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return Second(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _factory(function: Any, *args: Any, **kwargs: Any) -> Tensor:
    """What PyTorch makes elsewhere by resizing an empty tensor, which one that holds another cannot follow."""
    _check(function, args, kwargs)
    return Second(function(*args, **kwargs | {"device": "cpu"}))


def _copy_from(source: Tensor, into: Tensor, non_blocking: bool = False) -> Tensor:
    plain = [t.held if isinstance(t, Second) else t for t in (into, source)]
    plain[0].copy_(plain[1])
    return into


_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
for _name in ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace", "randperm"):
    _library.impl(_name, partial(_factory, getattr(aten, _name.partition(".")[0])), "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")
_everything = torch.library.Library("_", "IMPL")
_everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # no operation runs in half precision


class Accelerator(CPUAccelerator):
    """The device for Fabric."""

    def setup_device(self, device: torch.device) -> None:
        assert device == DEVICE

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [DEVICE]


ACCELERATOR_REGISTRY.register("second", Accelerator)
