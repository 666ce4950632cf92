"""Superposition: whether a network is the affine function that it is said to be, and where it stops being one."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from lrc.errors import InputError

__all__ = ["TOLERANCE", "superposition_error", "verified"]

TOLERANCE = 1e-8
"""Largest relative error in float64 that passes for rounding."""


def superposition_error(network: nn.Module, input_shape: Sequence[int], *, seed: int = 0) -> float:
    """How far a network is from affine: ``max |f((x + y) / 2) - (f(x) + f(y)) / 2|``, relative to the largest value.

    Args:
        network: run as it is, on one image at a time, in the type of its parameters.
        input_shape: of one image.
        seed: of the two random images, whose pixels are standard normal.

    >>> superposition_error(nn.AvgPool2d(2), (3, 8, 8)) < 1e-12
    True
    >>> superposition_error(nn.MaxPool2d(2), (3, 8, 8)) > 0.01
    True
    """
    with torch.no_grad():
        return _error([network(x) for x in _points(network, input_shape, seed)])


def verified(linear: fx.GraphModule, input_shape: Sequence[int], places: Mapping[str, str]) -> None:
    """Checks superposition on a copy in float64.

    Args:
        linear: what is to be checked.
        input_shape: of one image.
        places: the nodes whose values depend on the image, by name: how to call them in a message.

    Raises:
        InputError: it does not hold; the message has the first node that breaks it. Or the network does not run.
    """
    twin = copy.deepcopy(linear).double()
    points = _points(twin, input_shape, seed=0)
    try:
        with torch.no_grad():
            error = _error([twin(x) for x in points])
    except RuntimeError as failure:
        reason = str(failure).strip().splitlines()[0]
        raise InputError(f"verify: no image of shape {tuple(input_shape)} runs in float64: {reason}") from failure
    if not error <= TOLERANCE:
        name, error = _first_break(twin, points, places) or ("the output", error)
        raise InputError(
            f"verify: {name} is not affine, superposition fails there by {error:.1e} of the largest value: its rule, "
            "or its replacement, keeps something that is not linear, draws at random, or rounds to another type"
        )


def _points(network: nn.Module, shape: Sequence[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point())
    like = next(tensors, torch.empty((), dtype=torch.float64))
    pair = torch.randn(2, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x, y = pair.to(like)
    return x, y, (x + y) / 2


def _error(values: Sequence[Any]) -> float:
    """Of the values at two points and half way, each a tensor or a collection of such."""
    a, b, middle = values
    if isinstance(a, tuple | list):
        return max((_error(v) for v in zip(a, b, middle, strict=True)), default=0.0)
    if not isinstance(a, Tensor) or not a.is_floating_point() or not a.numel():
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
            run.run(x)
    for node in network.graph.nodes:
        if node.name in places and not (error := _error([run.env[node] for run in runs])) <= TOLERANCE:
            return places[node.name], error
    return None
