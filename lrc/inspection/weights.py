"""Files of weights as people have them, read without running code in them, and fitted to a network."""

import pickle
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors.torch import load_file
from torch import Tensor, nn

from lrc.models import BUILDERS
from lrc.utils.errors import InputError

__all__ = ["fit", "read_weights"]

PLACES = (
    "state_dict", "model_state_dict", "model", "model_state", "net", "network", "state", "weights", "params",
    "ema", "state_dict_ema", "model_ema", "ema_state_dict",
)  # fmt: skip
SCALARS = [Namespace, PosixPath, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType]
"""What checkpoints hold beside weights that runs no code: options of a script, a best accuracy of NumPy's."""
PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.", "backbone.")
State = dict[str, Tensor]


def read_weights(path: Path) -> tuple[State, list[str]]:
    """Weights by name, and in which place of the file they were, if it has several.

    Raises:
        InputError: no such file, one that holds code or no weights, or a damaged one.
    """
    if not path.is_file():
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=3)
        raise InputError(f"there is no file {path}" + f"; the nearest: {', '.join(near)}" * bool(near))
    try:
        held = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path} is no file of weights, or a damaged one: {' '.join(str(error).split())[:200]}"
        ) from error
    return _state(held, path)


def _unpickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([*SCALARS, scalar, (scalar, "numpy.core.multiarray.scalar")]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than weights, and reading it could run code: "
            "save the weights alone, torch.save(model.state_dict(), ...)"
        ) from error


def _state(held: Any, path: Path) -> tuple[State, list[str]]:
    if not isinstance(held, Mapping):
        raise InputError(
            f"{path} holds a {type(held).__name__}, no weights by name: torch.save(model.state_dict(), ...)"
        )
    places = [place for place in PLACES if isinstance(held.get(place), Mapping)]
    for place in places:
        if state := {str(k): v for k, v in held[place].items() if isinstance(v, Tensor)}:
            others = f", not {', '.join(map(repr, rest))}" if (rest := [p for p in places if p != place]) else ""
            return state, [f"of the file the weights under {place!r} are taken{others}"]
    if state := {str(k): v for k, v in held.items() if isinstance(v, Tensor)}:  # a best accuracy may be a tensor too
        return state, []
    raise InputError(f"{path} has no weights: there are {', '.join(map(str, list(held)[:8])) or 'no entries'}")


def fit(
    model: nn.Module,
    state: State,
    *,
    make: Callable[[int | None], nn.Module] | None,
    where: Path,
    spec: str,
    notes: list[str],
) -> nn.Module:
    """The network with these weights, built anew for their number of classes where that is all that does not fit.

    Args:
        model: the network as it is built.
        state: weights by name; prefixes that containers add are taken off.
        make: builds the network for a number of classes; None: it has the right one.
        where, spec: for messages.
        notes: gets what was done.

    Raises:
        InputError: they do not fit; the line names what is missing, unexpected or of another shape.
    """
    own, state = model.state_dict(), _renamed(state, model, notes)
    if unfit := next((k for k in state if k in own and state[k].isnan().any()), None):
        count = int(state[unfit].isnan().sum())
        raise InputError(
            f"{where} holds weights that are NaN, {count} of {state[unfit].numel()} in {unfit}: take an earlier file, "
            "of before the training diverged"
        )
    misshapen = [k for k in state if k in own and state[k].shape != own[k].shape]
    if make is not None and misshapen and _differ_in_classes(state, own, misshapen):
        count = len(state[misshapen[-1]])
        rebuilt = make(count)
        if all(v.shape == rebuilt.state_dict()[k].shape for k, v in state.items() if k in own):
            notes.append(f"it is built for {count} classes, as its weights are")
            return fit(rebuilt, state, make=None, where=where, spec=spec, notes=notes)
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    if missing or unexpected or misshapen:
        raise InputError(f"{where} does not fit {spec}: {_misfit(state, own, missing=missing, unexpected=unexpected)}")
    model.load_state_dict(state, strict=False)
    return model


def _renamed(state: State, model: nn.Module, notes: list[str]) -> State:
    """The weights under the network's own names: without the prefix that a container put there, or with it.

    What a file holds beside them (of the attacker, of the loss) is left. Where the network itself is the container, and
    the weights are those of one part that has all its parameters, they get the names of that part.
    """
    own = model.state_dict()
    heads = {"", _known_prefix(state), *(k.removesuffix(name) for k in state for name in own if k.endswith("." + name))}
    held = {head: {k.removeprefix(head): v for k, v in state.items() if k.startswith(head)} for head in heads}
    fitting = {head: sum(k in own for k in held[head]) for head in sorted(heads)}
    known = _known_prefix(state)
    best = max(fitting, key=lambda head: (fitting[head], head == known))
    if best not in ("", known) and fitting[best] <= len(own) / 2:  # chance: names like 0.weight are everywhere
        best = known
    if not any(k in own for k in held[best]):
        learned = {name for name, _ in model.named_parameters()}
        for part in sorted({name.removesuffix(k) for name in own for k in state if name.endswith("." + k)}):
            if learned <= (inner := {part + k: v for k, v in state.items()}).keys() <= own.keys():
                notes.append(f"its part {part.removesuffix('.')!r} gets the weights, the rest has none to learn")
                return own | inner
    if best:
        others = [k for k in state if not k.startswith(best)]
        left = f"; not taken: {others[0]}" + f" (and {len(others) - 1} more)" * (len(others) > 1) if others else ""
        notes.append(f"the prefix {best!r} of its names of weights was taken off{left}")
    return held[best]


def _known_prefix(state: State) -> str:
    """What containers put before all names."""
    prefix = ""
    while found := next((p for p in PREFIXES if state and all(k.startswith(prefix + p) for k in state)), None):
        prefix += found
    return prefix


def _differ_in_classes(state: State, own: Mapping[str, Tensor], keys: list[str]) -> bool:
    """Whether all these differ in the first length alone, alike: a head for another number of classes."""
    pairs = {(len(state[k]), len(own[k])) for k in keys if state[k].dim() and own[k].dim()}
    return len(pairs) == 1 and all(state[k].shape[1:] == own[k].shape[1:] for k in keys)


def _misfit(state: State, own: Mapping[str, Tensor], *, missing: list[str], unexpected: list[str]) -> str:
    """What does not fit, the first of each kind with its shapes, and a network that it would fit."""
    other = [k for k in state if k in own and state[k].shape != own[k].shape]
    kinds = [
        (missing, lambda k: f"missing {k} {tuple(own[k].shape)}"),
        (unexpected, lambda k: f"unexpected {k} {tuple(state[k].shape)}"),
        (other, lambda k: f"{k} is {tuple(state[k].shape)}, the network's {tuple(own[k].shape)}"),
    ]
    more = [f" (and {len(keys) - 1} more)" if len(keys) > 1 else "" for keys, _ in kinds]
    parts = [say(keys[0]) + rest for (keys, say), rest in zip(kinds, more, strict=True) if keys]
    near = nearest(state) if missing or unexpected else None
    return "; ".join(parts) + (f"; they would fit {near}" if near else "")


def nearest(state: State) -> str | None:
    """A network of this package or of torchvision that has weights of just these names, if there is one."""
    return next((name for name, names in _known().items() if names == _learned(state)), None)


@cache
def _known() -> dict[str, frozenset[str]]:
    """Names of the weights of each network."""
    from torchvision import models

    makers: dict[str, Callable[[], nn.Module]] = {**BUILDERS}
    makers |= {f"torchvision:{n}": partial(models.get_model, n) for n in models.list_models(module=models)}
    return {name: _names_of(make) for name, make in makers.items()}


def _names_of(make: Callable[[], nn.Module]) -> frozenset[str]:
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how some are initialized
            return _learned(make().state_dict())
    except Exception:  # one that needs options, or does not build without memory
        return frozenset()


def _learned(state: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(k for k in state if not k.endswith("num_batches_tracked"))
