"""Files that are never half there."""

import os
from collections.abc import Callable
from pathlib import Path


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Lets `save` write the file under another name, in a folder that is made if need be, and moves it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save(unfinished)
    os.replace(unfinished, path)


def write_text(path: Path, text: str) -> None:
    """The same for a text."""
    write(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
