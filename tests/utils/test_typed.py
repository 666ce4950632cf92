"""What a signature names is what is taken; everything else is one line."""

import inspect
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from lrc.training.objectives import trades_attack
from lrc.utils.errors import InputError
from lrc.utils.typed import typed

NET, X = nn.Linear(2, 2), torch.ones(2)
KINDS = [  # the kind, what is of it, what is not, and how it is called
    (float, (0, 0.5, np.float32(2), 3), (-1, "1", None, True, float("nan"), 1j, X, [1.0]), ">= 0 and finite"),
    (int, (0, 3, np.int64(2)), (-1, 0.5, "1", None, True, X), "a whole number >= 0"),
    (bool, (True, False), (1, 0, None, "yes", np.bool_(True)), "True or False"),
    (str, ("", "a"), (None, 1, b"a", ["a"]), "a text"),
    (float | None, (None, 1.0), ("a", -1), ">= 0 and finite"),
    (int | Mapping[str, int], (2, {"a": 2}), ("a", None, [2]), "a whole number"),
    (Tensor, (X,), ([1.0], X.numpy(), None), "a torch.Tensor"),
    (Float[Tensor, " n"], (X,), ([1.0], None), "a torch.Tensor"),
    (nn.Module, (NET,), (None, torch.relu, "resnet8"), "a torch.nn.Module"),
    (Generator | None, (None, Generator()), (0, np.random.default_rng(0)), "a torch.Generator"),
    (Sequence[int], ([], [1, 2], (1,), range(3), np.array([1, 2])), (1, "12", None, {1: 2}, [0.5], ["1"]), "must be"),
    (Sequence[Sequence[int]], ([[0], [1, 2]], ((0,),), np.eye(2, dtype=int)), ([0, 1], [["a"]], [[0.5]]), "must be"),
    (Iterable[str], (["a"], ("a", "b"), {"a": 1}, {"a": 1}.keys()), ("ab", 3, [3]), "must be"),
    (Mapping[str, int], ({}, {"a": 1}), ([("a", 1)], None), "a mapping"),
    (Callable[[int], int], (abs, lambda x: x, len), (1, None, lambda: 0, lambda x, y: x), "must (be a function|take)"),
    (Any, (None, 1, "a"), (), ""),
]


@pytest.mark.parametrize(("kind", "right", "wrong", "called"), KINDS, ids=[str(k[0]) for k in KINDS])
def test_what_is_of_a_kind(kind, right, wrong, called):
    def function(value, *more, **options):
        return value

    function.__annotations__ = {"value": kind}
    checked = typed(function)
    for value in right:
        assert checked(value, 1, "more", further=None) is value
    for value in wrong:
        with pytest.raises(InputError, match=called) as error:
            checked(value)
        assert "value" in str(error.value) or kind in (nn.Module, Generator | None)
        assert "\n" not in str(error.value)


def test_a_checked_function_looks_as_before():
    assert list(inspect.signature(trades_attack).parameters)[:4] == ["model", "x", "y", "eps"]
    assert (
        trades_attack.__doc__.startswith("PGD examples") and pickle.loads(pickle.dumps(trades_attack)) is trades_attack
    )


def test_an_argument_that_there_is_not_is_told_by_python():
    with pytest.raises(TypeError, match="unexpected keyword argument 'strength'"):
        trades_attack(NET, X, X, strength=1)


def test_what_can_be_read_once_is_not_read():
    @typed
    def listed(values: Iterable[int]) -> list[int]:
        return list(values)

    assert listed(i for i in range(3)) == [0, 1, 2]
