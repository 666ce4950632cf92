"""Files of weights as people have them, read without running code in them, and fitted to a network."""

import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lrc.models import BUILDERS
from lrc.utils.errors import InputError

__all__ = ["fit", "read_weights"]

PLACES = ("state_dict", "model_state_dict", "model", "net", "network", "ema", "state_dict_ema", "model_ema")
PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.", "backbone.")
State = dict[str, Tensor]


def read_weights(path: Path) -> tuple[State, list[str]]:
    """Weights by name, and in which place of the file they were, if it has several.

    Raises:
        InputError: no such file, one that holds code or no weights, or a damaged one.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
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
    if state := {str(k): v for k, v in held.items() if isinstance(v, Tensor)}:
        return state, []
    places = [place for place in PLACES if isinstance(held.get(place), Mapping)]
    for place in places:
        if state := {str(k): v for k, v in held[place].items() if isinstance(v, Tensor)}:
            others = f", not {', '.join(map(repr, rest))}" if (rest := [p for p in places if p != place]) else ""
            return state, [f"of the file the weights under {place!r} are taken{others}"]
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
    own = model.state_dict()
    state, taken = _unprefixed(state, own)
    if taken:
        notes.append(f"the prefix {taken!r} of its names of weights was taken off")
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


def _unprefixed(state: State, own: Mapping[str, Tensor]) -> tuple[State, str]:
    """The weights under the names that most of the network's own are among, and the prefix that was taken off."""
    best, taken, prefix = state, "", ""
    while found := next((p for p in PREFIXES if state and all(k.startswith(p) for k in state)), None):
        state, prefix = {k.removeprefix(found): v for k, v in state.items()}, prefix + found
        if sum(k in own for k in state) > sum(k in own for k in best):
            best, taken = state, prefix
    return best, taken


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
    from torchvision import models

    names = _learned(state)
    known: dict[str, Callable[[], nn.Module]] = {**BUILDERS}
    known |= {f"torchvision:{n}": partial(models.get_model, n) for n in models.list_models(module=models)}
    return next((name for name, make in known.items() if _names_of(make) == names), None)


def _names_of(make: Callable[[], nn.Module]) -> frozenset[str]:
    try:
        with torch.device("meta"):
            return _learned(make().state_dict())
    except Exception:  # one that needs options, or does not build without memory
        return frozenset()


def _learned(state: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(k for k in state if not k.endswith("num_batches_tracked"))
