"""The store of verdicts: what an evaluation has finished, batch by batch, so that a killed one goes on from there."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lrc.attacks.rng import new_seed
from lrc.evaluation.report import Cost, Flag, numbers, words
from lrc.utils.files import read_json, write_json
from lrc.utils.hashes import same_answers
from lrc.utils.runs import same_run

ANSWERS = "answers of the model"


@dataclass(frozen=True)
class Batch:
    """What one part of an attack found out about some images.

    Attributes:
        part: name of the part.
        rows: of the images, in the whole set.
        predictions: the class that the model says of each; -1 where its logits are not finite.
        cost: of the attack on them.
    """

    part: str
    rows: tuple[int, ...]
    predictions: tuple[int, ...]
    cost: Cost


@dataclass(frozen=True)
class Store:
    """A folder with `run.json`, which says what run it belongs to, and a folder of verdicts for each attack.

    No file is ever half there, each has a digest, and each says to which run it belongs (`lrc.utils.files`).

    Attributes:
        folder: None keeps nothing.
        seed: of the run's random choices.
        run: in short what makes this run the one that it is.
    """

    folder: Path | None
    seed: int
    run: str = ""

    @classmethod
    def of(cls, folder: Path | None, run: dict[str, Any], *, seed: int | None) -> "Store":
        """The store of a run, new or begun before; with no seed, its seed is that of the run, or a random one.

        `run` is what makes the run the one that it is, in types of JSON; `ANSWERS` among it go by `same_answers`.
        Raises InputError where the folder holds another run (the message says what differs), or a damaged `run.json`.
        """
        if folder is None:
            return cls(None, new_seed() if seed is None else seed)
        path = folder / "run.json"
        before = read_json(path) if path.exists() else None
        if seed is None:
            seed = before["seed"] if before and isinstance(before.get("seed"), int) else new_seed()
        now = run | {"seed": seed}
        if before is not None:
            if same_answers(now[ANSWERS], before.get(ANSWERS)):
                now[ANSWERS] = before.get(ANSWERS)
            same_run(before, now, place=folder)
        else:
            write_json(path, now)
        exact = json.dumps({key: value for key, value in now.items() if key != ANSWERS}, sort_keys=True)
        return cls(folder, seed, hashlib.sha256(exact.encode()).hexdigest())

    def read(self, name: str, call: str) -> list[Batch]:
        """The finished batches of an attack, given by name and with its options, as text.

        Raises InputError: a file is damaged, or belongs to another attack or run.
        """
        if self.folder is None:
            return []
        return [self._batch(path, name, call) for path in sorted(self._place(name).glob("*.json"))]

    def add(self, name: str, call: str, batch: Batch) -> None:
        """One more finished batch of an attack."""
        if self.folder is None:
            return
        record: dict[str, Any] = {"run": self.run, "name": name, "attack": call, "part": batch.part}
        record |= {"rows": words(batch.rows), "predictions": words(batch.predictions), "cost": asdict(batch.cost)}
        write_json(self._place(name) / f"{_plain(batch.part)}-{batch.rows[0]:06d}.json", record)

    def flags(self, name: str) -> tuple[Flag, ...] | None:
        """The signs of masking kept under a name, if there are any. Raises InputError as `read` does."""
        if self.folder is None or not (path := self.folder / f"{name}.json").exists():
            return None
        record = read_json(path)
        same_run({"run": record.get("run")}, {"run": self.run}, place=path)
        return tuple(Flag(**flag) for flag in record["flags"])

    def keep_flags(self, name: str, flags: tuple[Flag, ...]) -> None:
        """Keeps the signs of masking under a name."""
        if self.folder is not None:
            write_json(self.folder / f"{name}.json", {"run": self.run, "flags": [asdict(flag) for flag in flags]})

    def _place(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / _plain(name)

    def _batch(self, path: Path, name: str, call: str) -> Batch:
        record, now = read_json(path), {"run": self.run, "name": name, "attack": call}
        same_run({key: record.get(key) for key in now}, now, place=path.parent)
        rows, predictions = numbers(record["rows"]), numbers(record["predictions"])
        return Batch(record["part"], rows, predictions, Cost(**record["cost"]))


def _plain(name: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^\w+-]+", "_", name) or "_"
