"""Tables: HTML in a notebook, aligned text in a terminal and for the tests that compare what a chapter shows."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from torch import Tensor

from lrc.clustering import Interval
from lrc.evaluation.report import Rate
from lrc.utils.errors import InputError
from lrc.utils.typed import typed

__all__ = ["Table", "table"]

NONE = "–"


@dataclass(frozen=True)
class Table:
    """Cells as text, with a head; the last thing in a cell of a notebook, it shows itself.

    Attributes:
        head: the columns; the first is that of the rows' names.
        cells: the rows, each as long as the head.
        title: what the table shows, and of how many.
        left: columns that hold words, and so begin at the left.
    """

    head: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    title: str = ""
    left: frozenset[int] = frozenset({0})

    def __str__(self) -> str:
        lines = [self.head, *self.cells]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = ["  ".join(self._padded(line, widths)).rstrip() for line in lines]
        rows.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*filter(None, [self.title]), *rows])

    __repr__ = __str__

    def _padded(self, line: Sequence[str], widths: Sequence[int]) -> list[str]:
        pairs = enumerate(zip(line, widths, strict=True))
        return [cell.ljust(width) if i in self.left else cell.rjust(width) for i, (cell, width) in pairs]

    def _repr_html_(self) -> str:
        kinds = ["" if i in self.left else ' class="number"' for i in range(len(self.head))]
        head = "".join(f'<th scope="col"{k}>{escape(h)}</th>' for h, k in zip(self.head, kinds, strict=True))
        body = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>'
            + "".join(
                f"<td{k}>{_whole(cell) if k else escape(cell)}</td>" for cell, k in zip(row[1:], kinds[1:], strict=True)
            )
            + "</tr>\n"
            for row in self.cells
        )
        title = f"<caption>{escape(self.title)}</caption>\n" if self.title else ""
        label = escape(self.title or "table")
        return (
            f'<div class="lrc-table" role="region" tabindex="0" aria-label="{label}"><table>\n'
            f"{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
        )


def _whole(cell: str) -> str:
    """As HTML: a narrow column may break before an interval or a deviation, not within."""
    return escape(cell).replace(", ", ",&nbsp;").replace("± ", "±&nbsp;")


@typed
def table(
    rows: Mapping[Any, Mapping[str, Any]],
    *,
    title: str = "",
    name: str = "",
    digits: int | Mapping[str, int] = 2,
    percent: Collection[str] = (),
    signed: Collection[str] = (),
) -> Table:
    """A table of named rows with the same columns.

    Numbers are shown with so many `digits`, an interval as value [low, high], several values as mean ± standard
    deviation, nothing as a dash; words stay as they are. Without rows it says `none`.

    Args:
        rows: by the row's name (a tuple of words is one name) a value for each column; a column may be missing.
        title: what the table shows, of how many; above it.
        name: head of the rows' names.
        digits: after the point, for all columns or by column; a column not named has 2.
        percent: columns whose values are shares; shown in percent, with one digit.
        signed: columns of differences; their values carry a sign.

    Raises:
        InputError: a `percent` or `signed` column that no row has.

    >>> print(table({"a": {"n": 3, "share": 0.25}, "b": {"n": 10}}, percent=["share"]))
         n  share, %
    -  --  --------
    a   3      25.0
    b  10         –
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    if rows and (unknown := {*percent, *signed} - {*columns}):
        raise InputError(f"no column {min(unknown)!r} in the table: it has {', '.join(columns)}")

    def shown(column: str, value: Any) -> str:
        places = digits.get(column, 2) if isinstance(digits, Mapping) else digits
        if column in percent:
            return _text(value, 1, 100, "+" if column in signed else "")
        return _text(value, places, 1, "+" if column in signed else "")

    if not rows:
        return Table((name or "rows",), (("none",),), title)
    cells = tuple(
        (", ".join(map(str, key)) if isinstance(key, tuple) else str(key), *(shown(c, row.get(c)) for c in columns))
        for key, row in rows.items()
    )
    words = {i for i, c in enumerate(columns, 1) if any(isinstance(row.get(c), str) for row in rows.values())}
    ranks = {i for i in words if any(line[i][:1].isdigit() for line in cells)}  # "1 of 210" stands with numbers
    heads = [f"{c}, %" if c in percent else c for c in columns]
    return Table((name, *heads), cells, title, frozenset({0} | words - ranks))


def _text(value: Any, digits: int, times: int, sign: str) -> str:
    """A value as a cell shows it."""
    if value is None:
        return NONE
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value * times:{sign}d}"
    if isinstance(value, Rate):
        low, high = value.interval
        return f"{_number(value.value, digits, times, sign)} [{low * times:.{digits}f}, {high * times:.{digits}f}]"
    if isinstance(value, Interval):
        ends = ", ".join(_number(end, digits, times, "") for end in (value.low, value.high))
        return f"{_number(value.value, digits, times, sign)} [{ends}]"
    if isinstance(value, Tensor) and value.numel() > 1:
        spread = _number(float(value.double().std()), digits, times, "")
        return f"{_number(float(value.double().mean()), digits, times, sign)} ± {spread}"
    return _number(float(value), digits, times, sign)


def _number(value: float, digits: int, times: int, sign: str) -> str:
    text = f"{value * times:{sign}.{digits}f}"
    return text[1:] if not float(text) and text[0] == "-" else text  # no minus before a zero
