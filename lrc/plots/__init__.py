"""Pictures and tables of what the package computes, in one visual language.

`figures` draws on one Axes and returns it; `tables` has tables that are HTML in a notebook and text elsewhere; `moving`
has figures with buttons and sliders that need no kernel; `style` says which colour means what.
"""

from lrc.plots.figures import curves, images, matrix, report, rows, tree
from lrc.plots.moving import Moving, moving
from lrc.plots.style import GROUPS, KINDS, ink, use_style
from lrc.plots.tables import Table, table

__all__ = [
    "GROUPS",
    "KINDS",
    "Moving",
    "Table",
    "curves",
    "images",
    "ink",
    "matrix",
    "moving",
    "report",
    "rows",
    "table",
    "tree",
    "use_style",
]
