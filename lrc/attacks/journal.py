"""What a long attack has finished, on disk batch by batch: it can be killed at any time and go on from there."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lrc.attacks.streams import new_seed
from lrc.errors import InputError


@dataclass(frozen=True)
class Batch:
    """What one part of the attack found out about some images.

    Attributes:
        part: number of the part.
        rows: of the images, in the whole set.
        hit: which of these are fooled.
        nonfinite: for which the logits are NaN or infinite.
        x_adv: the images that fool, for those that are hit.
    """

    part: Int[Tensor, ""]
    rows: Int[Tensor, "n"]
    hit: Bool[Tensor, "n"]
    nonfinite: Bool[Tensor, "n"]
    x_adv: Float[Tensor, "hits *shape"]


@dataclass(frozen=True)
class Journal:
    """A folder with `run.json`, which says what run it belongs to, and one numbered file a finished batch.

    Every file is written under another name first and then moved into place, so that none is ever half there.
    """

    folder: Path

    def begin(self, run: dict[str, Any], *, seed: int | None) -> int:
        """Starts the run, or goes on with it if it is the same one; returns its seed.

        Raises:
            InputError: the folder holds another run; the message says what differs.
        """
        path = self.folder / "run.json"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            run = run | {"seed": new_seed() if seed is None else seed}
            _write(path, lambda part: part.write_text(json.dumps(run, indent=1) + "\n"))
            return int(run["seed"])
        before = json.loads(path.read_text())
        now = run | {"seed": before["seed"] if seed is None else seed}
        different = [key for key in now if now[key] != before.get(key)]
        if different:
            raise InputError(f"{self.folder} holds a run with another {', '.join(different)}: choose another folder")
        return int(before["seed"])

    def read(self) -> list[Batch]:
        """The batches finished so far, in order."""
        return [Batch(**load_file(path)) for path in sorted(self.folder.glob("*.safetensors"))]

    def write(self, number: int, batch: Batch) -> None:
        """Adds a finished batch, the `number`-th."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in vars(batch).items()}
        _write(self.folder / f"{number:06d}.safetensors", lambda part: save_file(tensors, part))


def digest(tensors: Iterable[Tensor]) -> str:
    """Hexadecimal SHA-256 of the bytes of the tensors."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def model_digest(model: nn.Module) -> str:
    """Hexadecimal SHA-256 of the parameters and buffers."""
    return digest(value for value in model.state_dict().values() if isinstance(value, Tensor))


def _write(path: Path, save: Callable[[Path], object]) -> None:
    unfinished = path.with_suffix(".part")
    save(unfinished)
    os.replace(unfinished, path)
