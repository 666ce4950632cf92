"""Atomic file writes, with a digest in each file that is verified when it is read.

A file holds its own SHA-256: that of its bytes with zeros in the place of the 64 digits. One rule serves JSON, where it
is the last entry of the last object, safetensors, where it is an entry of the metadata, and any other bytes, which a
line of JSON follows. So the digest travels with its file, other programs still read it, and damage of any byte shows.
"""

import hashlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from lrc.utils.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # imported by those who have tensors: it takes seconds

T = TypeVar("T")

PACKAGE = Path(__file__).parents[1]
LOCK = ".lock"
_held: dict[Path, tuple[int, int, object]] = {}  # folders locked, by process (a fork inherits this), thread, call

UNSEALED = {"digest": "sha256:" + 64 * "0"}
"""The entry that `seal` completes."""

ENTRY = rb'"digest": ?"sha256:([0-9a-f]{64})"'
RESTS = rb'"digest": ?"sha|sha256:'  # of an entry: what damage may leave of it
TAIL = 200  # bytes in which the entry lies at the end of a file
BLOCK = 2**20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields another name in the same folder to write the file under; on leaving it is on the disk and in its place.

    The folder is made if need be. After an exception the file that was there before still is, and nothing else. Two
    processes that write the same file do not disturb each other: the later one stays. No symbolic link is followed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o666))
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())  # a rename must not overtake what it renames
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """The folder, made if need be, for this thread alone, which may lock it again, until the context ends.

    The lock goes with the process. Where the system has none (Windows, some network drives) nothing is locked.
    Raises InputError where another process or thread has it, unless it is to `wait`, or the folder cannot be written.
    """
    place, own = (folder / LOCK).resolve(), (os.getpid(), threading.get_ident(), object())
    holder = _held.setdefault(place, own)
    if holder[:2] == own[:2] and holder is not own:
        yield
        return
    while wait and holder is not own and holder[0] == os.getpid():
        time.sleep(0.1)
        holder = _held.setdefault(place, own)
    refusal = InputError(f"another process is at work in {folder}: wait until it ends, or name another folder")
    if holder is not own and holder[0] == os.getpid():
        raise refusal
    _held[place] = own  # what a fork inherits is no lock
    try:
        with _opened(place) as file:
            if fcntl is not None:
                try:  # not flock, which a child that outlives this process would hold
                    fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except (BlockingIOError, PermissionError):
                    raise refusal from None
                except OSError:  # no locks there
                    pass
            yield
    finally:
        del _held[place]


def _opened(lock: Path) -> BinaryIO:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return lock.open("ab")
    except OSError as error:
        reason = f"{lock.parent} cannot be written ({error.strerror})"
        raise InputError(f"{reason}: name another folder, or set LRC_CACHE where it is in the cache") from error


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Lets `save` write the file under the name that it is given: see `replacing`. It gets no digest."""
    with replacing(path) as unfinished:
        save(unfinished)


def write_text(path: Path, text: str) -> None:
    """The same for a text that is not read back, in UTF-8. It gets no digest."""
    write(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """An object of JSON; its last entry, `digest`, is ours."""
    text = json.dumps(_unsealed(value), indent=1) + "\n"
    _write_sealed(path, text.encode())


def read_json(path: Path, *, unsealed: bool = False) -> dict[str, Any]:
    """The object that `write_json` wrote, without the digest; `unsealed` ones, as people write them, need have none.

    Raises InputError: the file is missing, damaged, or of another format.
    """
    return _read(path, lambda content: _objects([content])[0], unsealed=unsealed)


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines, an object each; the last holds the digest of all."""
    rows = [*rows[:-1], _unsealed(rows[-1] if rows else {})]
    _write_sealed(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def read_lines(path: Path, *, unsealed: bool = False) -> list[dict[str, Any]]:
    """The objects that `write_lines` wrote, without the digest. Args, Raises: as `read_json`."""
    return _read(path, lambda content: [row for row in _objects(content.splitlines()) if row], unsealed=unsealed)


def write_bytes(path: Path, content: bytes) -> None:
    """Any bytes, and after them a line with the digest."""
    _write_sealed(path, content + json.dumps(UNSEALED).encode() + b"\n")


def read_bytes(path: Path) -> bytes:
    """The bytes that `write_bytes` wrote. Raises InputError as `read_json` does."""
    return _read(path, lambda content: content[: content.rindex(b"{")])


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Tensors as a safetensors file, with texts beside them."""
    from safetensors.torch import save_file

    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    whose = {tensor.untyped_storage().data_ptr(): name for name, tensor in kept.items()}
    tied = kept.keys() - whose.values()  # the format knows no tensors that share memory
    with replacing(path) as unfinished:
        save_file(kept | {name: kept[name].clone() for name in tied}, unfinished, metadata=_unsealed(metadata or {}))
        seal(unfinished, tensors=True)


def load_tensors(path: Path, *, unsealed: bool = False, facts: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU, mapped from it; `unsealed` as in `read_json`.

    Raises InputError: as `read_json`, or other texts are beside the tensors than the `facts`.
    """
    from safetensors import safe_open

    with _damage(path), path.open("rb") as sealed, safe_open(path, framework="pt") as file:
        if not (facts or {}).items() <= (file.metadata() or {}).items():
            raise ValueError("it was made of something else")
        _verify(sealed, tensors=True, unsealed=unsealed)
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)


def tensor_metadata(path: Path) -> dict[str, str]:
    """The texts beside the tensors, not verified: `load_tensors` does that. Raises InputError as `read_json` does."""
    from safetensors import safe_open

    with _damage(path), safe_open(path, framework="pt") as file:
        return {key: value for key, value in (file.metadata() or {}).items() if key not in UNSEALED}


def sha256(*paths: Path) -> str:
    """Hexadecimal SHA-256 of the contents of files, one after the other."""
    sha = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                sha.update(block)
    return sha.hexdigest()


def seal(path: Path, *, tensors: bool = False) -> None:
    """Enters the digest into a file that has `UNSEALED` in its place: the header of safetensors, or the end."""
    with path.open("rb+") as file:
        if (found := _entry(file, tensors)) is None:
            raise ValueError(f"{path} has no place for a digest")
        digest = _sha256(file, found[0])
        file.seek(found[0])
        file.write(digest)


def _unsealed(value: Mapping[str, Any]) -> dict[str, Any]:
    if value.keys() & UNSEALED.keys():
        raise ValueError("the entry `digest` is that of the file: call yours otherwise")
    return {**value, **UNSEALED}


def _write_sealed(path: Path, content: bytes) -> None:
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
        seal(unfinished)


def _read(path: Path, parse: Callable[[bytes], T], *, unsealed: bool = False) -> T:
    with _damage(path), path.open("rb") as file:
        _verify(file, tensors=False, unsealed=unsealed)
        file.seek(0)
        return parse(file.read())


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What reading a file may raise, as one line."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # damage leads to anything, in the parsers of several formats
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120] or type(error).__name__
        mend = "install the package again" if PACKAGE in path.parents else "remove it to begin anew"
        raise InputError(f"{path} is damaged or cannot be read ({reason}): {mend}") from error


def _objects(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """The objects of the lines, the last without its digest."""
    rows = [json.loads(line) for line in lines]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("an object of JSON was expected")
    if isinstance(rows[-1].get("digest"), str) and rows[-1]["digest"].startswith("sha256:"):
        del rows[-1]["digest"]
    return rows


def _entry(file: BinaryIO, tensors: bool) -> tuple[int, bytes] | None:
    """Where in the file the digits of its digest begin, and which they are; None where nothing is left of one."""
    size = file.seek(0, os.SEEK_END)
    start = 8 if tensors else max(0, size - TAIL)
    file.seek(0)
    length = min(size, int.from_bytes(file.read(8), "little")) if tensors else TAIL
    file.seek(start)
    found = re.search(ENTRY if tensors else ENTRY + rb"\s*\}\s*\Z", content := file.read(length))
    if found is None and re.search(RESTS, content):
        raise ValueError("its digest is damaged")
    return (start + found.start(1), found[1]) if found else None


def _verify(file: BinaryIO, *, tensors: bool, unsealed: bool) -> None:
    found = _entry(file, tensors)
    if found is None and not unsealed:
        raise ValueError("it has no digest")
    if found is not None and _sha256(file, found[0]) != found[1]:
        raise ValueError("its digest is another")


def _sha256(file: BinaryIO, place: int) -> bytes:
    """Digits of the SHA-256 of the file, with zeros for the 64 at `place`."""
    sha, end = hashlib.sha256(), place + 64
    file.seek(0)
    at = 0
    while block := file.read(BLOCK):
        first, last = max(place - at, 0), max(end - at, 0)
        sha.update(block[:first] + b"0" * (len(block[first:last])) + block[last:] if first < len(block) else block)
        at += len(block)
    return sha.hexdigest().encode()
