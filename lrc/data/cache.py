"""Where data sets lie: LRC_DATA, the cache of downloaded and of decoded ones, and the download of last resort."""

import contextlib
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import platformdirs
from torch import Tensor

from lrc.utils.errors import InputError
from lrc.utils.files import load_tensors, save_tensors, tensor_metadata

FORMAT = "2"  # raise it when what is stored changes: older files are then decoded again
PATIENCE = 10.0  # seconds without an answer after which a server counts as offline
Tensors = dict[str, Tensor]


def folder() -> Path:
    """Where decoded and downloaded data lie: LRC_CACHE, or else the user's cache folder for `lrc`."""
    return Path(os.environ.get("LRC_CACHE") or platformdirs.user_cache_dir("lrc"))


def base_folder(root: str | Path | None) -> Path | None:
    """Where to look first: `root`, or else LRC_DATA, or else nowhere. Raises InputError for one that is no folder."""
    named = root if root is not None else os.environ.get("LRC_DATA")
    if named and not Path(named).is_dir():
        origin = "LRC_DATA" if root is None else "root"
        raise InputError(f"{origin} is {named}, which is no folder: let it name the folder that holds the data")
    return Path(named) if named else None


def folders_of(base: Path, name: str) -> list[Path]:
    """The places of the folder `name` in another: itself, in it, or one below."""
    return [*([base] if base.name == name else []), base / name, *sorted(base.glob(f"*/{name}"))]


def load(name: str, **facts: str) -> Tensors | None:
    """The tensors kept as `name`, mapped, if they are whole and were kept with these facts; else None."""
    path = folder() / f"{name}.safetensors"
    with contextlib.suppress(InputError):  # not there, of other data, or damaged: to be decoded again
        tensors = load_tensors(path, facts=facts | {"format": FORMAT})
        return tensors if tensor_metadata(path).get("rows") == _rows(tensors) else None
    return None


def store(name: str, tensors: Tensors, **facts: str) -> None:
    """Keeps tensors, which have as many rows, and facts as `name`; or warns that it cannot."""
    from safetensors import SafetensorError

    try:
        facts |= {"format": FORMAT, "rows": _rows(tensors)}
        save_tensors(folder() / f"{name}.safetensors", tensors, facts)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        warnings.warn(f"{name} is not cached in {folder()} ({reason}): set LRC_CACHE", stacklevel=2)


def _rows(tensors: Tensors) -> str:
    return " ".join(f"{name}:{len(tensor)}" for name, tensor in sorted(tensors.items()))


def download(known: str, into: str, *, what: str, layouts: str) -> None:
    """Fetches an archive, checks it, and puts the folder `into` that is in it into the cache. Prints to stderr alone.

    The class of torchvision called `known` knows address and checksum. Raises InputError where it cannot be had; the
    message says what the data set is, and which files would do.
    """
    try:
        _download(known, into, folder())
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{what} is neither in LRC_DATA ({os.environ.get('LRC_DATA') or 'not set'}) nor in the cache ({folder()}), "
            f"and the download failed ({reason}): set LRC_DATA to a folder that holds {layouts}, or connect to the "
            "internet"
        ) from error


def _download(name: str, into: str, target: Path) -> None:
    from torchvision import datasets

    known = getattr(datasets, name)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".") as temporary:
        with _patience(), contextlib.redirect_stdout(sys.stderr):
            datasets.utils.download_and_extract_archive(
                known.url, temporary, filename=known.filename, md5=known.tgz_md5
            )
        try:
            os.replace(Path(temporary) / into, target / into)
        except OSError:
            if not (target / into).is_dir():  # else another process was faster
                raise


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """torchvision's downloads set no time limit, so the default of new sockets is lowered meanwhile."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
