"""What a long attack has finished, on disk batch by batch: it can be killed at any time and go on from there."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrc.attacks.rng import new_seed
from lrc.utils.errors import InputError
from lrc.utils.files import write, write_text

T = TypeVar("T")


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

    No file is ever half there (`lrc.utils.files`).
    """

    folder: Path

    def begin(self, run: dict[str, Any], *, seed: int | None) -> int:
        """Starts the run, or goes on with it if it is the same one; returns its seed.

        Raises:
            InputError: the folder holds another run, and the message says what differs; it cannot be a folder; or its
                `run.json` is damaged.
        """
        path = self.folder / "run.json"
        if not path.exists():
            run = run | {"seed": new_seed() if seed is None else seed}
            try:
                write_text(path, json.dumps(run, indent=1) + "\n")
            except OSError as error:
                reason = f"{self.folder} cannot be a folder for verdicts ({error.strerror})"
                raise InputError(f"{reason}: name another") from error
            return int(run["seed"])
        before = sound(path, _record)
        now = run | {"seed": before["seed"] if seed is None else seed}
        different = [key for key in now if now[key] != before.get(key)]
        if different:
            raise InputError(f"{self.folder} holds a run with another {', '.join(different)}: choose another folder")
        return int(before["seed"])

    def read(self) -> list[Batch]:
        """The batches finished so far, in order.

        Raises:
            InputError: a file is damaged.
        """
        paths = sorted(self.folder.glob("*.safetensors"))
        return [sound(path, lambda path: Batch(**load_file(path))) for path in paths]

    def write(self, number: int, batch: Batch) -> None:
        """Adds a finished batch, the `number`-th."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in vars(batch).items()}
        write(self.folder / f"{number:06d}.safetensors", lambda part: save_file(tensors, part))


def _record(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record | {"seed": int(record["seed"])}


def sound(path: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of a file that an earlier run left.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return read(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path} is damaged or cannot be read ({reason}): choose another folder, or remove this one to begin again"
        ) from error
