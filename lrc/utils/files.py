"""Files that are never half there."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing", "write", "write_text"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields another name in the same folder to write the file under; on leaving it is on the disk and in its place.

    The folder is made if need be. After an exception the file that was there before still is, and nothing else. Two
    processes that write the same file do not disturb each other: the later one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())  # a rename must not overtake what it renames
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Lets `save` write the file under the name that it is given: see `replacing`."""
    with replacing(path) as unfinished:
        save(unfinished)


def write_text(path: Path, text: str) -> None:
    """The same for a text, in UTF-8."""
    write(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
