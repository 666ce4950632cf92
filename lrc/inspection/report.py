"""What can be said of a network by looking: how robust it is, whether that is masking, how its classes cluster."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Generator, nn

from lrc.data import Images
from lrc.evaluation import Report, evaluate
from lrc.inspection.around import AROUND, around_masking
from lrc.inspection.causes import Tried, likely_cause, tried
from lrc.inspection.clusters import PIXELS, Maps, measured, prepared
from lrc.inspection.verdict import Verdict, near_chance, verdict
from lrc.utils.checks import check_whole
from lrc.utils.errors import InputError
from lrc.utils.typed import typed

__all__ = ["Comparison", "Inspection", "compare", "inspect"]

PGD = "pgd"


@dataclass(frozen=True, repr=False)
class Inspection(Maps):
    """What `lrc.inspect` found. In a notebook it shows itself as a page.

    Attributes:
        report: accuracies under attack and signs of masking.
        tried: usual causes of few right answers, and what mending each would bring.
        verdict: see `lrc.inspection.verdict`.
        name, ...: of `lrc.inspection.Maps`.
    """

    report: Report
    tried: tuple[Tried, ...]
    verdict: Verdict

    def __repr__(self) -> str:
        return f"Inspection({self.name}: {self.verdict.word}; {self.report!r})"

    def record(self) -> dict[str, Any]:
        """All numbers but the maps themselves, as JSON has them; groups by index of class."""
        word, reasons = self.verdict.word, list(self.verdict.reasons)
        causes = [
            {
                "cause": t.what,
                "mend": t.mend,
                "right": t.accuracy.value,
                "of": t.accuracy.count,
                "before": t.before.value,
                "p_value": t.p_value,
            }
            for t in self.tried
        ]
        return super().record() | {
            "verdict": {"word": word, "reasons": reasons, "reference_applies": self.comparable},
            "tried": causes,
            "evaluation": json.loads(self.report.to_json()),
        }

    def to_html(self) -> str:
        """One self-contained page."""
        from lrc.inspection.page import page

        return page([self])

    def _repr_html_(self) -> str:
        from lrc.inspection.page import body

        return body(self)


@typed
def inspect(
    model: nn.Module | str,
    data: Any = None,
    *,
    name: str = "",
    source: str = "the images given",
    groups: str | Mapping[str, Sequence[str]] = "data",
    eps: float = 8 / 255,
    norm: str = "linf",
    attack: bool = False,
    attacked: int | None = None,
    masking: bool = True,
    local: int = 200,
    notes: Sequence[str] = (),
    generator: Generator | None = None,
    progress: bool = False,
) -> Inspection:
    """Is the network robust, or does it only look so, and do its classes cluster as those of robust networks do?

    Args:
        model: images in [0, 1] to logits (n, classes), or to what holds them (`lrc.inspection.subject`); left as it
            was. Or what `lrc.inspection.load` takes, such as the name of a network of the zoo.
        data: labelled test images, or what `lrc.data.as_images` makes them of; absent, those of the network's recipe.
        name, source: what to call network and images.
        groups: "data" for the superclasses of the data, if they have any; "wordnet" for those that the distances
            between names of classes give; names of classes by name of group; "found" for those that the tree of the
            mean local map gives: explored, not tested; "none".
        eps, norm: of the attacks, as in `lrc.evaluate`.
        attack: run AutoAttack beside PGD-20; it takes minutes to hours.
        attacked: so many of the images, the first; the class means are over all. By default all are attacked.
        masking: look for signs of gradient masking.
        local: images over which the Jacobian is averaged, at most; fewer where classes or pixels are many.
        notes: what is to be said of the network, as `lrc.inspection.load` gives it.
        generator: of the attacks' random choices; a new one with seed 0 if absent.
        progress: show a progress bar.

    Raises:
        InputError: images that do not fit the network, another word for the groups, or as `lrc.evaluate`.
    """
    check_whole("local", local, 1)
    found, images, tested = prepared(model, data, groups)
    name, model, said = name or found.name, found.model, [*notes, *found.notes]
    few = images if attacked is None else images.subset(min(check_whole("attacked", attacked, 1), len(images)))
    batch = max(1, min(250, PIXELS // (images.x.shape[-1] * images.x.shape[-2])))
    report = evaluate(
        model, few, attacks=(PGD, "autoattack") if attack else (PGD,), eps=eps, norm=norm, batch_size=batch,
        generator=generator or Generator().manual_seed(0), masking=masking, progress=progress,
    )  # fmt: skip
    if report.raised:
        report = _hard_pressed(model, few, report, batch, generator)
        said.append(f'as there are signs of masking it was attacked "{AROUND}" too: roundings let gradients through')
    causes = tried(model, few, report.predictions("clean"), images=max(50, min(200, 8 * batch)))
    if (cause := likely_cause(causes)) and not near_chance(report):
        said.append(f"perhaps {cause}")
    seen = measured(
        model, images, name=name, source=source, groups=groups, tested=tested, local=local, notes=said
    )  # fmt: skip
    contrasted = seen.local.contrast if seen.local is not None and tested else None
    word = verdict(report, contrasted, comparable=seen.comparable, cause=cause)
    return Inspection(**vars(seen), report=report, tried=causes, verdict=word)


def _hard_pressed(model: nn.Module, images: Images, report: Report, batch: int, generator: Generator | None) -> Report:
    """The report with a further attack, for networks that others may not have reached."""
    more = evaluate(
        model, images, attacks={AROUND: around_masking}, eps=report.eps, norm=report.norm, batch_size=batch,
        generator=generator or Generator().manual_seed(0), masking=False,
    )  # fmt: skip
    return replace(report, results=report.results | {AROUND: more.results[AROUND]})


@dataclass(frozen=True)
class Comparison:
    """Inspections side by side; in a notebook it shows itself as a table."""

    inspections: tuple[Inspection, ...]

    def to_html(self) -> str:
        """One self-contained page: the table, then each inspection."""
        from lrc.inspection.page import page

        return page(self.inspections)

    def _repr_html_(self) -> str:
        from lrc.inspection.page import comparison

        return comparison(self.inspections)


def compare(*inspections: Inspection) -> Comparison:
    """Several networks side by side.

    Raises:
        InputError: fewer than two.
    """
    if len(inspections) < 2 or not all(isinstance(each, Inspection) for each in inspections):
        raise InputError(
            f"a comparison needs two inspections or more, as lrc.inspect gives them, not {inspections!r:.60}"
        )
    return Comparison(inspections)
