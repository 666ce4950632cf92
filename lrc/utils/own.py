"""Functions and classes of a user's own, named on the command line: FILE.py:NAME, or PACKAGE.MODULE:NAME."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lrc.utils.errors import InputError

COUNT = ("num_classes", "classes", "n_classes", "num_labels")  # what functions call the number of classes


def network(spec: str, arguments: Mapping[str, Any], *, classes: int | None = None) -> Any:
    """The network that the user's function or class builds; with a number of classes where it takes one.

    Raises InputError: nothing of that name, an error in the user's code, or something that is no network.
    """
    from torch import nn

    module, _, name = spec.rpartition(":")

    def made() -> Any:
        function = _attribute(module, name)
        if not callable(function):
            raise InputError(f"{spec} is a {type(function).__name__}: expected a function or class that builds it")
        takes = inspect.signature(function).parameters
        count = next((n for n in COUNT if n in takes), None)
        given = {count: classes} if classes is not None and count is not None else {}
        return function if isinstance(function, nn.Module) else function(**given | dict(arguments))

    if not isinstance(found := guarded(spec, made), nn.Module):
        raise InputError(f"{spec} gave a {type(found).__name__}, not a torch.nn.Module")
    return found


def guarded(what: str, make: Callable[[], Any]) -> Any:
    """What is made, with errors of somebody else's code as one line."""
    try:
        return make()
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"cannot build {what}: {type(error).__name__}: {reason}") from error


def _attribute(module: str, name: str) -> Any:
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise InputError(f"there is no file {module}: give FILE.py:FUNCTION, or PACKAGE.MODULE:FUNCTION")
        if (folder := str(Path(module).parent.absolute())) not in sys.path:
            sys.path.insert(0, folder)  # what lies beside it can be imported, as by python FILE.py
        spec = importlib.util.spec_from_file_location(Path(module).stem, module)
        assert spec is not None and spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = found
        spec.loader.exec_module(found)
    else:
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, here)  # a module beside the user
        found = importlib.import_module(module)
    if not hasattr(found, name):
        near = get_close_matches(name, [n for n in vars(found) if not n.startswith("_")], n=3)
        hint = f"; the nearest: {', '.join(near)}" if near else ""
        raise InputError(f"cannot build {module}:{name}: there is no {name!r}{hint}")
    return getattr(found, name)
