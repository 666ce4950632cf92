"""`lrc study`: the trainings of a table, what is missing of them."""

from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrc.utils.errors import InputError

if TYPE_CHECKING:
    from lrc.experiments.studies import Row


def study(
    names: Annotated[list[str], typer.Argument(help="Studies, or single rows, STUDY/ROW where two studies have one.")],
    work: Annotated[Path, typer.Option(help="Folder for checkpoints: what was broken off goes on from there.")] = Path(
        "_build/studies"
    ),
    jobs: Annotated[int, typer.Option(min=0, help="Rows at a time; 0 for one a core, or one on an accelerator.")] = 0,
    show: Annotated[bool, typer.Option("--list", help="Say which rows there are, and train nothing.")] = False,
) -> None:
    """Train what is not recorded yet of a study, and record it.

    A row that is named is measured and recorded anew; it is trained anew where --work holds no weights of it.
    """
    import torch

    from lrc.experiments import studies, zoo
    from lrc.utils.devices import device

    wanted = list(dict.fromkeys(row for name in names for row in _rows(name, all_of_them=show)))
    if show:
        there = {study: studies.recorded(study) for study in {row.study for row in wanted}}
        for row in wanted:
            print(row.name if row.name in there[row.study] else f"{row.name} (not recorded)")
        return
    if not wanted:
        print("all of it is recorded: name a single row to measure it anew")
    at_once = jobs or (zoo.cores() if device().type == "cpu" else 1)
    if at_once == 1 or len(wanted) < 2:
        for row in wanted:
            _make(row, work)
        return
    try:
        with ProcessPoolExecutor(min(at_once, len(wanted)), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            try:
                for made in as_completed([pool.submit(_make, row, work) for row in wanted]):
                    made.result()
            except InputError:
                pool.shutdown(wait=False, cancel_futures=True)  # what is under way ends, nothing more begins
                raise
    except BrokenProcessPool as error:
        raise InputError("a process was killed, for want of memory perhaps: the same command goes on") from error


def _rows(name: str, *, all_of_them: bool) -> "list[Row]":
    """The rows to make: those of a study that are missing, or the one of that name."""
    from lrc.experiments import studies

    if name in studies.names():
        missing = studies.left(name)
        return [row for row in studies.rows(name) if all_of_them or row.name in missing]
    return [studies.row(name)]


def _make(row: "Row", work: Path) -> None:
    from lrc.experiments import studies

    studies.make(row, work=work)
    print(f"{row.name}: recorded", flush=True)
