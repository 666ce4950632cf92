"""Running a user's network: on loan, in eval mode, and left as it was."""

import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeGuard, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from lrc.utils.errors import InputError
from lrc.utils.tensors import Pixels

OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has."""

REGISTRIES = tuple(name for name, value in vars(nn.Module()).items() if isinstance(value, dict))
"""Those of them that hold parameters, buffers, submodules and hooks."""


@contextmanager
def untouched(model: nn.Module, *, eager: bool = False) -> Iterator[nn.Module]:
    """The model in eval mode with frozen parameters, and on leaving everything as it was: see `preserved`.

    Eval mode because examples are made so (Bai et al. 2021, section 4) and because batch statistics would tie an
    image's answer to its neighbours. Frozen because a backward pass to the input alone costs a quarter less. On the CPU
    norms are differentiated by their formulas where PyTorch's own derivative is wrong: see `_Norms`.

    Args:
        model: any network without lazy layers.
        eager: what of it is under `torch.compile` runs as written: compiled code has no derivatives in batches.
    """
    with preserved(model), ExitStack() as stack:
        own = modules(model)
        stack.enter_context(_lent(own, {id(p): p.detach() for m in own for p in _tensors(m._parameters)}))
        model.eval()
        for module in set(own).difference(model.modules()):
            module.eval()
        if eager and "torch._dynamo" in sys.modules:  # slow to import, and nothing can be compiled without
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if (eager or not any(map(compiled, own))) and _needs_formulas(own):
            stack.enter_context(_Norms())
        yield model


@contextmanager
def preserved(model: nn.Module) -> Iterator[nn.Module]:
    """The model on copies of its buffers; on leaving it is as it was, whatever ran it meanwhile.

    Parameters, buffers, submodules and hooks are the same objects with the same values, modules are in the mode they
    were in, and tensors that a forward pass stored as attributes are gone. Lists and dictionaries that a network keeps
    of its own accord are its own: what it adds to them stays.

    Raises InputError: a lazy layer, whose weights the first batch would make.
    """
    own = modules(model)
    _refuse_lazy(own)
    modes = [(m, m.training) for m in own]
    attributes = [(vars(m), vars(m).copy()) for m in own]
    registries = [(held, held.copy()) for m in own for name in REGISTRIES if _plain(held := vars(m).get(name))]
    try:
        with _lent(own, {id(b): b.clone() for m in own for b in _tensors(m._buffers)}):
            yield model
    finally:
        for held, before in registries:
            if held.keys() != before.keys() or any(held[key] is not value for key, value in before.items()):
                held.clear()
                held.update(before)
        for now, before in attributes:
            _put_back(now, before)
        for module, mode in modes:
            module.training = mode


@contextmanager
def replaced(model: nn.Module, new: Mapping[int, Tensor]) -> Iterator[nn.Module]:
    """The model with other tensors in the place of some of its own, wherever it holds them: shared ones stay shared.

    Unlike `torch.func.functional_call` it goes by the `id` of a tensor, not by its names, of which it may have several.
    """
    with _lent(modules(model), new) as lent:
        if lent < new.keys():
            raise InputError("the weights of TorchScript cannot be exchanged: give the network as Python code")
        yield model


def modules(model: nn.Module) -> list[nn.Module]:
    """All modules of a network, each once: also those that it holds in plain lists, tuples, sets and dictionaries."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    waiting: list[Any] = [model]
    while waiting:
        value = waiting.pop()
        if isinstance(value, nn.Module):
            if id(value) not in found:
                found[id(value)] = value
                waiting += [*value.children(), *_added(value)]
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value
    return list(found.values())


@contextmanager
def _lent(own: Sequence[nn.Module], new: Mapping[int, Tensor]) -> Iterator[set[int]]:
    """Yields which of `new` have found a place."""
    holders = [held for m in own for held in (m._parameters, m._buffers, vars(m), *_added(m)) if _plain(held)]
    places = [(held, key, t) for held in holders for key, t in held.items() if id(t) in new and isinstance(t, Tensor)]
    try:
        for held, key, t in places:
            held[key] = new[id(t)]
        yield {id(t) for *_, t in places}
    finally:
        for held, key, t in places:
            held[key] = t


def _added(module: nn.Module) -> list[Any]:
    """What the class of a module keeps in it beyond what every module has."""
    return [value for name, value in vars(module).items() if name not in OWN]


LAYOUT = re.compile("view size|stride|contiguous|memory.format")
"""In what PyTorch says where code does not go with the memory format."""


class Asked:
    """A network as a function of images, in their memory format or, where it fails on that, contiguous.

    Convolutions are fastest on channels-last images, and code such as `x.view(n, -1)` fails on them.
    """

    def __init__(self, model: Callable[[Tensor], Any]) -> None:
        self.model, self.layout = model, torch.preserve_format

    def __call__(self, x: Tensor) -> Any:
        """What the network gives for a copy of the images, as it may write into what it is given."""
        try:
            return self.model(x.clone(memory_format=self.layout))
        except RuntimeError as error:
            if self.layout is torch.contiguous_format or x.is_contiguous() or not LAYOUT.search(str(error)):
                raise
        self.layout = torch.contiguous_format
        return self(x)


def check_independent(model: nn.Module, x: Pixels) -> None:
    """Refuses a network whose answer to an image depends on the other images of the batch.

    Such are batch norm without running statistics, and norms over the batch: no image then has an answer, a local map
    or an adversarial example of its own. The network is run twice on two images: the first of x, and another beside it.

    Args:
        model: images to one tensor, in the mode it is in; see `untouched`.
        x: one image or more.

    Raises:
        InputError: the answers differ by more than a hundredth. Not where they are random, or not finite.

    Warns:
        RuntimeWarning: they differ by less, as those of a network do that quantizes its activations by their range.
    """
    g = torch.Generator().manual_seed(0)
    others = torch.rand(2, *x.shape[1:], generator=g, dtype=torch.float64).to(x) * x[:1].abs().amax().clamp(min=1)

    def answer(other: Tensor) -> Any:
        with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(0)  # dropout and the like draw the same for both
            z = model(torch.stack([x[0].detach(), other]).contiguous())
        return z[0] if isinstance(z, Tensor) and z.dim() else torch.zeros(())

    one, two = answer(others[0]), answer(others[1])
    size = one.abs().max() if one.numel() else one.new_zeros(())
    apart = (one - two).abs().max() if one.numel() else size
    tolerance = max(1e-4, 8 * torch.finfo(one.dtype).eps) if one.is_floating_point() else 0.0
    if apart > tolerance * size and torch.equal(one, answer(others[0])):
        part = float(apart / size)
        said = f"the network's answer to an image depends on the others in its batch (by {part:.1%})"
        if part > 0.01:
            raise InputError(f"{said}: give its norms running statistics (track_running_stats=True)")
        warnings.warn(f"{said}: figures depend a little on the batch size", RuntimeWarning, stacklevel=3)


class _Norms(TorchFunctionMode):
    """Batch and instance norm by their formulas where PyTorch's derivative on the CPU is wrong.

    It is, as of PyTorch 2.15, where the gradient that comes in is channels-last and the input counts as contiguous: of
    one image, of one row or column of pixels, and of instance norm always, for which PyTorch makes one image of all.
    """

    @no_type_check  # called for each operation: checks of annotations in tests would take longer than it does
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        written = FORMULAS.get(func)
        return (written if written and torch.is_grad_enabled() else func)(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    layouts_differ = x.dim() > 3 and 1 in (len(x), *x.shape[2:]) and x.device.type == "cpu"
    if training or running_mean is None or running_var is None or not layouts_differ:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return _affine(x, running_mean, running_var, weight, bias, eps)


def _instance_norm(
    x: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    fresh = use_input_stats and running_mean is None and x[0, :1].numel() > 1
    if x.dim() < 4 or x.device.type != "cpu" or not (fresh or not use_input_stats):
        return F.instance_norm(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    if fresh:
        running_var, running_mean = torch.var_mean(x, tuple(range(2, x.dim())), correction=0, keepdim=True)
    assert running_mean is not None and running_var is not None
    return _affine(x, running_mean, running_var, weight, bias, eps)


def _affine(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Float[Tensor, "n c *shape"]:
    """(x - mean) weight / sqrt(var + eps) + bias, with the statistics of each channel, or of each in each image."""
    place = (-1, x.shape[1], *[1] * (x.dim() - 2))
    mean, scale = mean.view(place), torch.rsqrt(var + eps).view(place)
    scale = scale if weight is None else scale * weight.view(place)
    shift = -mean * scale if bias is None else bias.view(place) - mean * scale
    return torch.addcmul(shift, x, scale).to(x.dtype)


FORMULAS: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
}


def _refuse_lazy(own: Sequence[nn.Module]) -> None:
    lazy = [m for m in own if any(map(is_lazy, (*_tensors(m._parameters), *_tensors(m._buffers))))]
    if lazy:
        raise InputError(
            f"{type(lazy[0]).__name__} has no weights yet, its first batch makes them: run the network on one"
        )


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Attributes that are or were tensors, as they were."""
    for name in now.keys() | before.keys():
        old, new = before.get(name), now.get(name)
        if old is not new and (isinstance(old, Tensor) or isinstance(new, Tensor)):
            now.pop(name, None)
            now.update({name: old} if name in before else {})


def _plain(value: object) -> TypeGuard[dict[str, Any]]:
    return type(value) in (dict, OrderedDict)


def _tensors(held: Any) -> list[Tensor]:  # a dictionary, or what TorchScript has in its place
    return [t for t in held.values() if t is not None]


def _needs_formulas(own: Sequence[nn.Module]) -> bool:
    """Whether `_Norms` is of use. It costs a little, and nn.MultiheadAttention the fused kernel that it has."""
    if not all(t.device.type == "cpu" for m in own for t in (*_tensors(m._parameters), *_tensors(m._buffers))):
        return False
    return any(isinstance(m, _NormBase) for m in own) or not any(isinstance(m, nn.MultiheadAttention) for m in own)


def compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
