"""Decoded images on disk: one safetensors file a set, written atomically, loaded memory-mapped."""

import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import platformdirs
import safetensors
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "1"  # raise it when what is stored changes: older files are then decoded again
Tensors = dict[str, Tensor]


def folder() -> Path:
    """Where decoded and downloaded data lie: LRC_CACHE, or else the user's cache folder for `lrc`."""
    return Path(os.environ.get("LRC_CACHE") or platformdirs.user_cache_dir("lrc"))


def signature(files: Sequence[Path]) -> str:
    """What tells whether the files changed: name, size and time of change of each."""
    states = [(file.name, file.stat()) for file in files]
    return " ".join(f"{name}:{s.st_size}:{s.st_mtime_ns}" for name, s in states)


def load(name: str, **expected: str) -> Tensors | None:
    """The tensors kept as `name`, mapped, where the facts kept with them are as expected; else None."""
    try:
        with safetensors.safe_open(folder() / f"{name}.safetensors", framework="pt") as file:
            if (expected | {"format": FORMAT}).items() <= (file.metadata() or {}).items():
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, safetensors.SafetensorError):  # not there, or damaged: to be decoded again
        pass
    return None


def store(name: str, tensors: Tensors, **facts: str) -> None:
    """Keeps tensors and facts as `name`, or warns that it cannot.

    Writes beside the target and renames: a reader sees the old file or the new one, never half of one.
    """
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder(), prefix=".", ignore_cleanup_errors=True) as temporary:
            file = Path(temporary) / name
            save_file(tensors, file, metadata=facts | {"format": FORMAT})
            os.replace(file, folder() / f"{name}.safetensors")
    except (OSError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())
        warnings.warn(f"{name} is not cached in {folder()} ({reason}): set LRC_CACHE", stacklevel=2)
