"""Tables of trainings, recorded: the same networks for several seeds and held-out classes, compared cell by cell.

A study is a section of `studies.toml`. Its rows were trained and measured by `lrc study NAME`, and what came out is
recorded in the package; where nothing is, rows are trained when the table is asked for, and kept in the cache.
"""

from lrc.experiments.studies.plan import Row, names, row, rows
from lrc.experiments.studies.records import left, recorded
from lrc.experiments.studies.tables import column, make, make_all, paired, table

__all__ = ["Row", "column", "left", "make", "make_all", "names", "paired", "recorded", "row", "rows", "table"]
