"""The verdicts of one attack, in a folder batch by batch, so that a killed evaluation goes on from there."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrc.attacks.journal import Journal, sound
from lrc.evaluation.counting import Cost
from lrc.utils.files import write


@dataclass(frozen=True)
class Judged:
    """What came out for some images.

    Attributes:
        rows: of the images, in the whole set.
        said: the class that the model says of each; -1 where its logits are not finite.
        spent: the four numbers of their `Cost`.
    """

    rows: Int64[Tensor, " n"]
    said: Int64[Tensor, " n"]
    spent: Float64[Tensor, "4"]

    @property
    def cost(self) -> Cost:
        """What the attack spent on them."""
        seconds, *counts = self.spent.tolist()
        return Cost(seconds, *map(int, counts))


@dataclass
class Ledger:
    """The batches finished so far; in a folder of their own, if there is one.

    Args:
        folder: None keeps them in memory alone.
    """

    folder: Path | None
    batches: list[Judged]

    @staticmethod
    def of(out: Path | None, name: str, run: dict[str, Any], *, seed: int) -> "Ledger":
        """That of the attack called `name` below `out`, with what an earlier run of it finished.

        Raises:
            InputError: the folder holds another run, or damaged files.
        """
        if out is None:
            return Ledger(None, [])
        folder = out / re.sub(r"[^\w.+-]+", "_", name)
        Journal(folder).begin(run, seed=seed)
        paths = sorted(folder.glob("*.safetensors"))
        return Ledger(folder, [sound(path, lambda path: Judged(**load_file(path))) for path in paths])

    def left(self, rows: Int64[Tensor, " n"]) -> Int64[Tensor, " m"]:
        """Those of the rows that no batch holds."""
        done = torch.cat([rows[:0], *(batch.rows for batch in self.batches)])
        return rows[~torch.isin(rows, done)]

    def add(self, batch: Judged) -> None:
        """One more finished batch; its file is never half there."""
        self.batches.append(batch)
        if self.folder is not None:
            path = self.folder / f"{len(self.batches):06d}.safetensors"
            write(path, lambda unfinished: save_file(vars(batch), unfinished))
