"""Any network in, one page out: is it robust, or does it only look so?

`load` makes a network of a file or a name, `inspect` looks at it, and the result shows itself as a page. `maps` are
what it shows besides attacks, and `save` writes them.
"""

from lrc.inspection.architectures import data_of, usual_side
from lrc.inspection.clusters import Clusters, Maps, class_means, maps
from lrc.inspection.explorer import Attacked, Explorer, explore
from lrc.inspection.exports import save
from lrc.inspection.networks import Logits, Subject, load, subject
from lrc.inspection.report import Comparison, Inspection, compare, inspect
from lrc.inspection.verdict import Verdict, verdict

__all__ = [
    "Attacked",
    "Clusters",
    "Comparison",
    "Explorer",
    "Inspection",
    "Logits",
    "Maps",
    "Subject",
    "Verdict",
    "class_means",
    "compare",
    "data_of",
    "explore",
    "inspect",
    "load",
    "maps",
    "save",
    "subject",
    "usual_side",
    "verdict",
]
