"""Damage to files, of the kinds that disks, copies and editors do."""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lrc.utils.errors import InputError

MUTATIONS = int(os.environ.get("LRC_MUTATIONS", 12))
"""How many a kind of file; LRC_MUTATIONS=300 makes that many."""


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Some damage: a byte of another value or gone or put in, a cut, two blocks exchanged or doubled, zeros, noise.

    One in four is near the file's digest: what it leaves must not pass for a file that never had one.
    """
    near = range(len(content))
    if rng.random() < 0.25 and (at := content.rfind(b'"digest"')) >= 0:
        near = range(max(0, at - 150), min(len(content), at + 150))
    i, j, cut = sorted(rng.sample(near, 3))
    return rng.choice(
        [
            content[:i] + bytes([content[i] ^ 1 << rng.randrange(8)]) + content[i + 1 :],
            content[:i] + content[i + 1 :],
            content[:i] + bytes([rng.randrange(256)]) + content[i:],
            content[:cut],
            content[:i] + content[j:cut] + content[i:j] + content[cut:],
            content[:i] + bytes(j - i) + content[j:],
            content[:j] + content[i:],
            content[:i] + rng.randbytes(min(16, j - i)) + content[min(i + 16, j) :],
        ]
    )


def mutations(path: Path, seed: str) -> Iterator[int]:
    """Damages the file in many ways, one after the other; in the end it is whole again. Yields their numbers."""
    whole, rng = path.read_bytes(), random.Random(seed)
    for i in range(MUTATIONS):
        if (content := damaged(whole, rng)) != whole:
            path.write_bytes(content)
            yield i
    path.write_bytes(whole)


def outcomes(path: Path, read: Callable[[], Any], seed: str) -> Counter[str]:
    """What reading says of damage to the file: "right", what it says of the whole one, or "refused", in one line."""
    whole, counts = read(), Counter[str]()
    for _ in mutations(path, seed):
        try:
            assert read() == whole
            counts["right"] += 1
        except InputError as error:
            assert str(error) and "\n" not in str(error)
            counts["refused"] += 1
    assert read() == whole
    print(seed, dict(counts))
    return counts
