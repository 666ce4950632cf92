"""Superposition: whether a network is the affine function that it is said to be, and where it stops being one."""

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from lrc.linearization.operations import DROPOUT
from lrc.linearization.tracing import like, logits
from lrc.utils.checks import check_network, check_whole
from lrc.utils.errors import InputError, first_line
from lrc.utils.networks import modules, preserved, replaced

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
    check_network(network)
    shape = image_shape(input_shape)
    points = _points(network, shape, check_whole("seed", seed))
    return _error(_values(network, points, f"the network does not take images of shape {shape}"))


def read_right(read: fx.GraphModule, model: nn.Module, input_shape: Sequence[int]) -> None:
    """Checks that the graph read from a network gives what the network gives.

    Args:
        read: the graph, with nothing taken out yet.
        model: the network, in eval mode; what running it changes is not to be used again.
        input_shape: of one image.

    Raises:
        InputError: it does not, or the network does not take such an image.
    """
    x, *_ = _points(model, input_shape, seed=0)
    failing = f"the network does not take images of shape {tuple(input_shape)}"
    with _NoDropout():
        expected, got = (_values(network, [x], failing)[0] for network in (model, read))
        again = expected if _agree(got, expected) else _values(model, [x], failing)[0]
    if not _agree(got, expected):
        cause = (
            "it computes what torch.fx does not see: a scripted function, a tensor cached by an earlier call, a number "
            "taken from one"
            if _agree(again, expected)
            else "it gives something else each time: it draws at random or counts its calls"
        )
        raise InputError(f"the network cannot be read: {cause}")


class _NoDropout(TorchFunctionMode):
    """Dropout that the network calls whatever its mode does nothing meanwhile; it is taken out anyway."""

    @no_type_check
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUT:
            return args[0] if args else kwargs["input"]
        if func is torch.nn.functional.scaled_dot_product_attention:
            args, kwargs = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args, {**kwargs}
            kwargs.update({"dropout_p": 0.0} if len(args) <= 4 else {})
        return func(*args, **kwargs)


def _agree(a: Any, b: Any) -> bool:
    """Up to rounding of the type; where b is not finite, whatever a is. What is no tensor agrees."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and b.is_floating_point() and b.numel()):
        return True
    if a.shape != b.shape:
        return False
    difference, size = (a - b).abs(), b.abs().nan_to_num(0, 0, 0).max()
    return bool((~b.isfinite() | (difference <= torch.finfo(b.dtype).eps ** 0.5 * size)).all())


def verified(
    linear: fx.GraphModule, input_shape: Sequence[int], places: Mapping[str, str], model: Callable[[], nn.Module]
) -> None:
    """Checks superposition, in float64 where it is in doubt, and that a logit depends on the image if it did before.

    Args:
        linear: what is to be checked.
        input_shape: of one image.
        places: the nodes whose values depend on the image, by name: how to call them in a message.
        model: gives the network that it was made from.

    Raises:
        InputError: it does not hold; the message has the first node that breaks it. Or the network does not run.
    """
    shape = image_shape(input_shape)
    with torch.no_grad(), preserved(linear):
        if _affine_in_parts(linear, _points(linear, shape, seed=0), places):
            return
        doubles = {id(t): t.detach().double() for t in _floating(linear)}
        with replaced(linear, doubles):
            points = _points(linear, shape, seed=0)
            values = _values(linear, points, f"verify: no image of shape {shape} runs in float64")
            error = _error(values)
            if not error <= TOLERANCE:
                name, error = _first_break(linear, points, places) or ("the output", error)
                raise InputError(f"verify: {name} is not {_what_is_wrong(error)}")
    if silent := _silent(values):
        network = model()
        before = _silent(_values(network, _points(network, shape, seed=0), "verify"))
        if new := [k for k in silent if k not in before]:
            raise InputError(
                f"verify: {len(new)} logits do not depend on the image any more, logit {new[0]} for one: what they "
                "depended on cancels once the non-linear parts are taken out, or was taken for a gate"
            )


@dataclass(frozen=True)
class _Pair:
    """A value at two images."""

    a: Any
    b: Any

    @staticmethod
    def middle(a: Any, b: Any) -> Any:
        """Half way between the numbers in two values; other things are those of the first."""
        if isinstance(a, Tensor):
            return (a + b) / 2 if a.is_floating_point() else a
        if isinstance(a, tuple | list):
            return type(a)(map(_Pair.middle, a, b)) if type(a) in (tuple, list) else tuple(map(_Pair.middle, a, b))
        return {key: _Pair.middle(a[key], b[key]) for key in a} if isinstance(a, Mapping) else a


class _Parts(fx.Interpreter):
    """Runs each operation at two images, and half way between its own arguments there.

    Attributes:
        affine: whether all of them gave what lies half way between, up to rounding.
    """

    affine = True
    places: Collection[str] = ()  # the nodes whose values depend on the image, and not only through its shape

    def run_node(self, n: fx.Node) -> Any:
        arguments = self.fetch_args_kwargs_from_env(n)
        found: list[_Pair] = []
        map_aggregate(arguments, lambda v: found.append(v) if isinstance(v, _Pair) else None)
        if not found:
            return super().run_node(n)

        a, b = self._run_half(n, arguments, lambda v: v.a), self._run_half(n, arguments, lambda v: v.b)
        if n.name in self.places and n.op != "output":
            middle = self._run_half(n, arguments, lambda v: _Pair.middle(v.a, v.b))
            self.affine = self.affine and _near(a, b, middle)
        return _Pair(a, b)

    def _run_half(self, n: fx.Node, arguments: Any, half: Callable[["_Pair"], Any]) -> Any:
        args, kwargs = map_aggregate(arguments, lambda v: half(v) if isinstance(v, _Pair) else v)
        return getattr(self, n.op)(n.target, args, kwargs)


def _near(a: Any, b: Any, middle: Any) -> bool:
    """Whether the third value lies half way between the others, up to rounding of their type."""
    if isinstance(a, Tensor):
        tolerance = 2e-5 if a.dtype is torch.float32 else TOLERANCE
        return not a.numel() or bool(
            (middle - (a + b) / 2).abs().max() <= tolerance * torch.maximum(a.abs().max(), b.abs().max())
        )
    return isinstance(a, tuple | list) and all(map(_near, a, b, middle))


def _affine_in_parts(linear: fx.GraphModule, points: Sequence[Tensor], places: Collection[str]) -> bool:
    """Whether each operation is affine, in the type of the network, and each logit different at two images.

    It takes three forward passes in that type, a third of what they take in float64, which decides where this fails.
    """
    run = _Parts(linear)
    run.places = places
    try:
        z = run.run(_Pair(*points[:2]))
    except Exception:  # the network's own code runs: anything may be raised
        return False
    return run.affine and isinstance(z, _Pair) and not _silent((z.a, z.b), 1e-5)


def _floating(network: nn.Module) -> list[Tensor]:
    """The tensors of a network, also those that are mere attributes: weights that hooks set, for one."""
    held = ((*m._parameters.values(), *m._buffers.values(), *vars(m).values()) for m in modules(network))
    return [t for values in held for t in values if isinstance(t, Tensor) and t.is_floating_point()]


def _silent(values: Sequence[Any], tolerance: float = 1e-13) -> list[int]:
    """The logits that are the same at the first two points, up to rounding."""
    a, b = values[:2]
    if not isinstance(a, Tensor) or a.dim() != 2:
        return []
    return ((a - b).abs() <= tolerance * torch.maximum(a.abs(), b.abs()).amax()).all(0).nonzero()[:, 0].tolist()


class Quiet(nn.Module):
    """The same network, of whose output it takes the logits; an fx.GraphModule without the traceback that it prints."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        graph = isinstance(self.network, fx.GraphModule)
        return logits(nn.Module.__call__(self.network, x) if graph else self.network(x))


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


def _what_is_wrong(error: float) -> str:
    if math.isnan(error):
        return "finite at random images: it overflows or divides by zero there"
    return (
        f"affine, superposition fails there by {error:.1e} of the largest value: its rule, or its replacement, keeps "
        "something that is not linear, draws at random, or rounds to another type"
    )


def _points(network: nn.Module, shape: Sequence[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    pair = torch.randn(2, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x, y = pair.to(like(network, pair))
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
