"""`lrc study`: the trainings of a table, what is missing of them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrc.utils.errors import InputError, first_line

if TYPE_CHECKING:
    from lrc.experiments.studies import Row


def study(
    names: Annotated[list[str], typer.Argument(help="Studies, or single rows, STUDY/ROW where two studies have one.")],
    work: Annotated[Path, typer.Option(help="Folder for checkpoints: what was broken off goes on from there.")] = Path(
        "_build/studies"
    ),
    jobs: Annotated[int, typer.Option(min=0, help="Rows at a time; 0 for one a core, or one on an accelerator.")] = 0,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Let the workers of a Dask cluster make the rows: tcp://HOST:8786. Each has --work."),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Say which rows there are, and train nothing.")] = False,
) -> None:
    """Train what is not recorded yet of a study, and record it.

    A row that is named is measured and recorded anew; it is trained anew where --work holds no weights of it.
    """
    from lrc.experiments import studies

    wanted = list(dict.fromkeys(row for name in names for row in _rows(name, all_of_them=show)))
    if show:
        there = {study: studies.recorded(study) for study in {row.study for row in wanted}}
        for row in wanted:
            print(row.name if row.name in there[row.study] else f"{row.name} (not recorded)")
        return
    if not wanted:
        print("all of it is recorded: name a single row to measure it anew")
        return
    failed = 0
    for row, error in studies.make_all(wanted, work=work, jobs=jobs, scheduler=scheduler):
        if error is None:
            print(f"{row.name}: recorded", flush=True)
        elif len(wanted) == 1:
            raise error
        else:
            failed += 1
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            print(f"lrc: {row.name}: {kind}{first_line(error)}", file=sys.stderr, flush=True)
    if failed:
        raise InputError(f"{failed} of {len(wanted)} rows could not be made: the same command goes on with them")


def _rows(name: str, *, all_of_them: bool) -> "list[Row]":
    """The rows to make: those of a study that are missing, or the one of that name."""
    from lrc.experiments import studies

    if name in studies.names():
        missing = studies.left(name)
        return [row for row in studies.rows(name) if all_of_them or row.name in missing]
    return [studies.row(name)]
