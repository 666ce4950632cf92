"""A report as text: rich tables."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lrc.evaluation.outcomes import Flag
from lrc.evaluation.rates import Rate
from lrc.evaluation.report import CLEAN, WORST, Report

MOST = 20  # classes that get a line each


def tables(report: Report) -> Group:
    """Accuracies and costs; accuracy by superclass and class; where fooled images went; the flags."""
    parts: list[RenderableType] = [_accuracies(report), _groups(report)]
    if report.superclasses:
        parts.append(_confusions(report))
    if report.flags is not None:
        parts.append(_flags(report.flags))
    return Group(*parts)


def _accuracies(report: Report) -> Table:
    table = _table(
        f"{len(report)} images, {report.norm} eps {report.eps:.4g}; accuracy in % with its 95 % interval",
        ("", "accuracy", "95 %", "NaN, inf", "seconds", "queries", "forward", "backward"),
    )
    for name in report.names:
        rate, nonfinite = report.accuracy(name), report.nonfinite(name)
        low, high = rate.interval
        cells = [name, _percent(rate), f"{100 * low:.1f} - {100 * high:.1f}", str(nonfinite or "-")]
        if name != WORST:
            cost = report.outcomes[name].cost
            cells += [f"{cost.seconds:.1f}", f"{cost.queries:,}", f"{cost.forward:,}", f"{cost.backward:,}"]
        table.add_row(*cells, style="bold" if name == WORST else "")
    return table


def _groups(report: Report) -> Table:
    """A line for each superclass, and for each class if they are few."""
    table = _table("accuracy in %", ("superclass, class" if report.superclasses else "class", "images", *report.names))
    found = {name: (report.by_superclass(name), report.by_class(name)) for name in report.names}
    few = len(report.classes) <= MOST
    for group, superclass in enumerate(report.superclasses):
        _line(table, superclass, [found[name][0][superclass] for name in report.names], style="bold")
        if few:
            for name, of in zip(report.classes, report.superclass_of, strict=True):
                if of == group:
                    _line(table, f"  {name}", [found[each][1][name] for each in report.names])
    if not report.superclasses:
        for name in report.classes[:MOST]:
            _line(table, name, [found[each][1][name] for each in report.names])
        if not few:
            table.add_row(f"and {len(report.classes) - MOST} more")
    return table


def _line(table: Table, name: str, rates: list[Rate], *, style: str = "") -> None:
    table.add_row(name, str(rates[0].count), *map(_percent, rates), style=style)


def _confusions(report: Report) -> Table:
    table = _table(
        "of the images that an attack fooled: to another class of the same superclass, in %",
        ("", "fooled", "within", "95 %", "chance", "across"),
    )
    for name in report.names:
        found = report.confusion(name)
        rate = found.rate
        label = "wrong as they are" if name == CLEAN else name
        if not rate.count:
            table.add_row(label, "0", "-", "-", "-", "-")
            continue
        low, high = rate.interval
        table.add_row(
            label,
            str(rate.count),
            _percent(rate),
            f"{100 * low:.1f} - {100 * high:.1f}",
            f"{100 * found.chance:.1f}",
            f"{100 * (1 - rate.value):.1f}",
        )
    return table


def _flags(flags: tuple[Flag, ...]) -> Table:
    table = Table(title="signs of gradient masking", title_justify="left", show_lines=True)
    table.add_column("sign")
    table.add_column("evidence")
    table.add_column("which means", ratio=1)
    for flag in flags:
        evidence = "\n".join(f"{name} {_short(value)}" for name, value in flag.evidence.items())
        name = Text(f"{'! ' if flag.raised else ''}{flag.name}{'' if flag.raised else ': no'}")
        table.add_row(name, evidence, flag.explanation, style="bold red" if flag.raised else "")
    return table


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _percent(rate: Rate) -> str:
    return f"{100 * rate.value:.1f}" if rate.count else "-"


def _short(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3g}"
