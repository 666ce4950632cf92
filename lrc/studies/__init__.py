"""Tables of trainings, recorded: the same networks for several seeds and held-out classes, compared cell by cell."""

from lrc.studies.tables import Row, column, left, make, names, paired, recorded, row, rows, table

__all__ = ["Row", "column", "left", "make", "names", "paired", "recorded", "row", "rows", "table"]
