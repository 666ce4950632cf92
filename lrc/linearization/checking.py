"""Superposition: whether a network is the affine function that it is said to be, and where it stops being one."""

import copy
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from lrc.utils.errors import InputError

__all__ = ["TOLERANCE", "Quiet", "first_line", "image_shape", "superposition_error", "verified"]

TOLERANCE = 1e-8
"""Largest relative error in float64 that passes for rounding."""


def superposition_error(network: nn.Module, input_shape: Sequence[int], *, seed: int = 0) -> float:
    """How far a network is from affine: ``max |f((x + y) / 2) - (f(x) + f(y)) / 2|``, relative to the largest value.

    Args:
        network: run as it is, on one image at a time, in the type of its parameters.
        input_shape: of one image.
        seed: of the two random images, whose pixels are standard normal.

    Returns:
        The worst of all that the network gives: tensors and numbers, and tuples, lists and mappings of such. It is nan
        where one of these is not finite.

    Raises:
        InputError: no shape of an image, one that the network does not take, or an output of another type.

    >>> superposition_error(nn.AvgPool2d(2), (3, 8, 8)) < 1e-12
    True
    >>> superposition_error(nn.MaxPool2d(2), (3, 8, 8)) > 0.01
    True
    """
    shape = image_shape(input_shape)
    points = _points(network, shape, seed)
    return _error(_values(network, points, f"the network does not take images of shape {shape}"))


def verified(linear: fx.GraphModule, input_shape: Sequence[int], places: Mapping[str, str]) -> None:
    """Checks superposition on a copy in float64.

    Args:
        linear: what is to be checked.
        input_shape: of one image.
        places: the nodes whose values depend on the image, by name: how to call them in a message.

    Raises:
        InputError: it does not hold; the message has the first node that breaks it. Or the network does not run.
    """
    shape = image_shape(input_shape)
    try:
        twin = _in_float64(linear)
    except Exception as failure:  # whatever the network's modules hold is copied: anything may be raised
        raise InputError(f"verify: the network cannot be copied: {first_line(failure)}") from failure
    points = _points(twin, shape, seed=0)
    error = _error(_values(twin, points, f"verify: no image of shape {shape} runs in float64"))
    if not error <= TOLERANCE:
        name, error = _first_break(twin, points, places) or ("the output", error)
        raise InputError(f"verify: {name} is not {_what_is_wrong(error)}")


class Quiet(nn.Module):
    """The same network; should it be an fx.GraphModule, then without the traceback that such a one prints."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        graph = isinstance(self.network, fx.GraphModule)
        return nn.Module.__call__(self.network, x) if graph else self.network(x)


def image_shape(shape: Any) -> tuple[int, ...]:
    """The shape of one image, if that is what it is.

    Raises:
        InputError: it is not a sequence of integers, all at least 1.
    """
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = (0,)
    if min(sizes, default=1) < 1:
        raise InputError(f"the shape of one image is a few positive integers, as in (3, 32, 32), not {shape!r}")
    return sizes


def first_line(error: Exception) -> str:
    """Of what it says; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _what_is_wrong(error: float) -> str:
    if math.isnan(error):
        return "finite at random images: it overflows or divides by zero there"
    return (
        f"affine, superposition fails there by {error:.1e} of the largest value: its rule, or its replacement, keeps "
        "something that is not linear, draws at random, or rounds to another type"
    )


def _in_float64(network: fx.GraphModule) -> fx.GraphModule:
    """A copy in float64, also of tensors that are mere attributes: weights that hooks set, which deepcopy refuses."""
    plain = (t for m in network.modules() for t in (*vars(m).values(), *m._buffers.values()) if isinstance(t, Tensor))
    copies = {id(t): t.detach().clone().to(torch.float64 if t.is_floating_point() else t.dtype) for t in plain}
    return copy.deepcopy(network, copies).double()


def _points(network: nn.Module, shape: Sequence[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point())
    like = next(tensors, torch.empty((), dtype=torch.float64))
    pair = torch.randn(2, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x, y = pair.to(like)
    return x, y, (x + y) / 2


def _values(network: nn.Module, points: Sequence[Tensor], failing: str) -> list[Any]:
    """What the network gives at each point; `failing` begins the message if it does not run."""
    try:
        with torch.no_grad():
            return [Quiet(network)(x.clone()) for x in points]
    except Exception as failure:  # the network's own code runs: anything may be raised
        raise InputError(f"{failing}: {first_line(failure)}") from failure


def _error(values: Sequence[Any]) -> float:
    """Of the values at two points and half way, each a tensor, a number or a collection of such; nan prevails."""
    a, b, middle = values
    if isinstance(a, Mapping):
        return _error([[value[key] for key in a] for value in values])
    if isinstance(a, tuple | list):
        errors = [_error(parts) for parts in zip(*values, strict=True)]
        return float(torch.tensor([0.0, *errors], dtype=torch.float64).max())  # unlike Python's max, nan if one is
    if a is None:
        return 0.0
    if not isinstance(a, Tensor | int | float):
        raise InputError(f"superposition of a {type(a).__name__} cannot be checked: give tensors, or collections")
    a, b, middle = (torch.as_tensor(v).to(torch.promote_types(torch.as_tensor(v).dtype, torch.float64)) for v in values)
    if not a.numel():
        return 0.0
    size = float(torch.stack([v.abs().max() for v in (a, b, middle)]).max())
    error = float((middle - (a + b) / 2).abs().max())
    return error / size if size else error


def _first_break(
    network: fx.GraphModule, points: Sequence[Tensor], places: Mapping[str, str]
) -> tuple[str, float] | None:
    runs = [fx.Interpreter(network, garbage_collect_values=False) for _ in points]
    with torch.no_grad():
        for run, x in zip(runs, points, strict=True):
            run.run(x.clone())
    for node in network.graph.nodes:
        if node.name in places and not (error := _error([run.env[node] for run in runs])) <= TOLERANCE:
            return places[node.name], error
    return None
