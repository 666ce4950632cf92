"""Functions that refuse arguments of other types than their signature names: the one check that needs no line."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import wraps
from types import UnionType
from typing import Any, ParamSpec, TypeVar, get_args, get_origin

from torch import Generator, Tensor, nn

from lrc.utils.checks import (
    check_flag,
    check_function,
    check_generator,
    check_network,
    check_number,
    check_tensor,
    check_whole,
    named,
)
from lrc.utils.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

CHECKS: dict[Any, Callable[[str, Any], object]] = {
    bool: check_flag,
    int: check_whole,
    float: check_number,
    Tensor: check_tensor,
    Generator: lambda _, value: check_generator(value),
    nn.Module: lambda _, value: check_network(value),
}
MANY = (Sequence, Collection, Iterable, tuple)


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which raises `InputError` for an argument that is not what the signature says.

    Numbers must be finite and >= 0. Of several things (`Sequence[int]`) each is checked; of a mapping nothing within.
    What the signature leaves open (`Any`, no annotation, further options) is left to the function.

    >>> @typed
    ... def scaled(values: Sequence[float], *, factor: float = 1.0) -> list[float]:
    ...     return [factor * v for v in values]
    >>> scaled([1.0, 2.0], factor="two")
    Traceback (most recent call last):
    lrc.utils.errors.InputError: factor must be >= 0 and finite, not 'two'
    """
    signature = inspect.signature(function)
    kinds = {
        n: p.annotation for n, p in signature.parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }

    @wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **options).arguments
        except TypeError:  # Python says which argument there is not
            return function(*args, **options)
        for name in given.keys() & kinds.keys():
            _check(name, given[name], kinds[name])
        return function(*args, **options)

    return checked


def _check(name: str, value: Any, kind: Any) -> None:
    """Refuses a value that is of none of the kinds; the message is that of the first."""
    refusals = []
    for each in get_args(kind) if isinstance(kind, UnionType) else (kind,):
        try:
            return _check_one(name, value, each)
        except InputError as error:
            refusals.append(error)
    raise refusals[0]


def _check_one(name: str, value: Any, kind: Any) -> None:
    of = get_origin(kind) or (Tensor if hasattr(kind, "array_type") else kind)
    if of in CHECKS:
        CHECKS[of](name, value)
    elif of in MANY:
        named_things = isinstance(value, Mapping) and of in (Sequence, tuple)  # to go through one is to take its keys
        if isinstance(value, str) or named_things or not _iterable(value):
            raise InputError(f"{name} must be a list, not {named(value)}")
        for each in value if isinstance(value, Collection) else ():
            _check(f"each of {name}", each, (get_args(kind) or (Any,))[0])
    elif of is Callable:
        takes = get_args(kind)[0]
        check_function(name, value, *(["..."] * len(takes) if isinstance(takes, list) else ()))
    elif isinstance(of, type) and of not in (Any, inspect.Parameter.empty) and not isinstance(value, of):
        what = {str: "a text", Mapping: "a mapping", type(None): "None"}.get(of, of.__name__)
        raise InputError(f"{name} must be {what}, not {named(value)}")


def _iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:
        return False
    return True
