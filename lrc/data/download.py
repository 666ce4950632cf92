"""The download of last resort: torchvision's archive of a data set."""

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 10.0  # seconds without an answer after which one counts as offline


def download(name: str, folder: str, target: Path) -> None:
    """Fetches the archive of the class `name` of torchvision, checks it, and puts its `folder` into `target`.

    Raises OSError (offline, not writable) or RuntimeError (wrong checksum). Prints to standard error alone.
    """
    from torchvision import datasets

    known = getattr(datasets, name)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".") as temporary:
        with _patience(), contextlib.redirect_stdout(sys.stderr):
            datasets.utils.download_and_extract_archive(
                known.url, temporary, filename=known.filename, md5=known.tgz_md5
            )
        try:
            os.replace(Path(temporary) / folder, target / folder)
        except OSError:
            if not (target / folder).is_dir():  # else another process was faster
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
