"""Tables of trainings: the same networks for several seeds and held-out classes, compared cell by cell."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrc.clustering import Interval, t_interval
from lrc.experiments import fitting, store, zoo
from lrc.experiments.recipe import recipe
from lrc.experiments.studies.measures import MEASURES, unpacked
from lrc.experiments.studies.plan import Row, row, rows, study_called
from lrc.experiments.studies.records import Figures, asked, check, kept, options, record, recorded
from lrc.utils.devices import device
from lrc.utils.errors import InputError
from lrc.utils.files import locked
from lrc.utils.runs import differences
from lrc.utils.workers import side_by_side

__all__ = ["column", "make", "make_all", "paired", "table"]


def table(study: str, *, limit: int | None = None) -> list[Figures]:
    """All rows of a study that are recorded; or, where nothing is, all rows, trained now and kept in the cache.

    Args:
        limit: for trials, see `lrc.zoo.recipe`; nothing recorded is used then.

    Returns:
        For each row model, seed and choice, and what was measured: see `lrc.experiments.studies.measures`.
    """
    found = {} if limit is not None else recorded(study)
    if found:
        return [_labelled(each, found[each.name]["figures"]) for each in rows(study) if each.name in found]
    wanted = rows(study)
    networks = zoo.obtain_all([(each.recipe, each.change) for each in wanted], limit=limit)
    measures = [partial(_measured, each, network, limit=limit) for each, network in zip(wanted, networks, strict=True)]
    return [_labelled(each, kept(each, measure, limit=limit)) for each, measure in zip(wanted, measures, strict=True)]


def column(found: Sequence[Figures], model: str, figure: str) -> Tensor:
    """One figure of all the rows of a model, in the order of the table.

    Raises:
        InputError: the table has no such model, or no such figure, a number, in all its rows.
    """
    chosen = [each for each in found if each["model"] == model]
    if not chosen or not all(isinstance(each.get(figure), int | float) for each in chosen):
        models = ", ".join(dict.fromkeys(each["model"] for each in found))
        raise InputError(f"the table has no figure {figure!r} of {model!r}; its models are {models}")
    return torch.tensor([each[figure] for each in chosen], dtype=torch.float64)


def paired(found: Sequence[Figures], model: str, other: str, figure: str, *, over: str = "cells") -> Interval:
    """By how much a figure of one model is above that of another: mean of the paired differences, and t interval.

    Args:
        over: "cells", of a seed and a choice of held-out classes each: what such a choice and such networks do. What
            the models have in common in a cell cancels; that the difference itself may depend on the choice does not,
            and the cells of one choice are taken for independent. Or "choices": the mean difference of each choice is
            one value, and the interval is about choices at large. Or "images", for the figure "right" of verdicts image
            by image: the mean difference on each image is one value, and the interval is about images, these networks
            given.

    Raises:
        InputError: as `column`, too few cells, choices or images in common, no verdicts, or another `over`.
    """
    if over not in ("cells", "choices", "images"):
        raise InputError(f"intervals are taken over cells, choices or images, not {over!r}")
    first, second = ({_cell(each): each for each in found if each["model"] == m} for m in (model, other))
    common = [cell for cell in first if cell in second]
    if over == "images" and common:
        differences = [_right(first[cell], figure) - _right(second[cell], figure) for cell in common]
        return t_interval(torch.stack(differences).mean(0))
    if len(common) < 2:
        raise InputError(f"{model!r} and {other!r} have {len(common)} rows in common: a comparison takes at least 2")
    a, b = (column([rows_of[cell] for cell in common], m, figure) for rows_of, m in ((first, model), (second, other)))
    if over == "cells":
        return t_interval(a - b)
    choices = list(dict.fromkeys(choice for choice, _ in common))
    if len(choices) < 2:
        raise InputError(f"{model!r} and {other!r} have one choice in common: a comparison over choices takes 2")
    of = torch.tensor([choices.index(choice) for choice, _ in common])
    return t_interval(torch.stack([(a - b)[of == i].mean() for i in range(len(choices))]))


def make(wanted: Row | str, *, work: str | Path, progress: bool = False) -> Figures:
    """Trains and measures a row, and records it in the package. What was broken off goes on.

    What is shipped is not trained anew.

    Args:
        wanted: the row, or its name as `lrc.studies.row` has it.
        work: folder for checkpoints, weights and verdicts; a second process waits for one that makes the same row.
        progress: show a progress bar.

    Raises:
        InputError: no such row, or several, a folder that holds what another recipe made, or records that are damaged
            or cannot be written.
    """
    wanted = wanted if isinstance(wanted, Row) else row(wanted)
    check(wanted.study)  # before hours of training, not after
    found = _made((wanted, None), work=Path(work), progress=progress)
    record(wanted, **found)
    return found["figures"]


def make_all(
    wanted: Sequence[Row], *, work: str | Path, jobs: int = 0, scheduler: str | None = None
) -> Iterator[tuple[Row, Exception | None]]:
    """Makes rows side by side, and records each as it is done, in this process.

    Args:
        wanted: each row once.
        work: as in `make`; on each machine, where there are several.
        jobs, scheduler: as in `lrc.utils.workers.side_by_side`. The workers of a cluster must have the same images
            and recipes as this machine.

    Yields:
        Each row as it is done, with None, or the error for which it could not be made. The others go on.

    Raises:
        InputError: records that are damaged or cannot be written, and as `side_by_side`.
    """
    for study in {each.study for each in wanted}:
        check(study)
    orders = [*zip(wanted, asked(wanted) if scheduler else [None] * len(wanted), strict=True)]
    with side_by_side(partial(_made, work=Path(work)), orders, jobs=jobs, scheduler=scheduler) as results:
        for (each, _), result in results:
            error = None
            try:
                record(each, **result())
            except Exception as failure:
                error = failure
            yield each, error


def _made(order: tuple[Row, Figures | None], *, work: Path, progress: bool = False) -> Figures:
    """What is recorded of a row: figures, seconds, versions. The order has what `asked` gives where it was given."""
    wanted, expected = order
    if expected is not None and (other := differences(asked([wanted])[0], expected)):
        raise InputError(
            f"this machine would make another row, which differs in {', '.join(other)}: "
            "give it the same release of lrc, and the same files of images"
        )
    with locked(work / wanted.name, wait=True):
        made, place = recipe(wanted.recipe, change=wanted.change), work / wanted.name
        if shipped := store.shipped(made):
            network, history = zoo.load(shipped).to(device()), zoo.info(shipped)["metrics"]
        else:
            network, history = fitting.trained(made, place=place, progress=progress)
        figures = _measured(wanted, network, out=place / "evaluation")
    return {"figures": figures, "seconds": sum(e["seconds"] for e in history), "versions": fitting.versions()}


def _measured(wanted: Row, network: torch.nn.Module, *, limit: int | None = None, out: Path | None = None) -> Figures:
    made, given = recipe(wanted.recipe, change=wanted.change, limit=limit), options(wanted)
    if limit and "attacks" in given:
        given["attacks"] = given["attacks"][:1]
    return MEASURES[study_called(wanted.study)["measure"]](network, made, out=out, **given)


def _right(figures: Figures, figure: str) -> Tensor:
    """1 for each image that is told rightly, else 0: (images,)."""
    if not isinstance(figures.get(figure), str):
        raise InputError(f"the table has no verdicts {figure!r}: `lrc.studies.rows` of boosting-whole have `right`")
    return unpacked(figures[figure], figures["images"]).double()


def _labelled(each: Row, figures: Figures) -> Figures:
    return {"model": each.model, "seed": each.seed, "choice": each.choice} | figures


def _cell(figures: Figures) -> tuple[Any, Any]:
    return figures["choice"], figures["seed"]
