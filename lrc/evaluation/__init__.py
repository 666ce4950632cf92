"""What a trained classifier says, how often it is right, also under attack, and whether that can be trusted.

`evaluate` gives a `Report`. Its attacks go by name or are functions of one's own; `masking_flags` looks for signs that
a network only seems robust. `accuracy` and `logits` are the short way.
"""

from lrc.evaluation.accuracy import Attack as Attack
from lrc.evaluation.accuracy import Split, accuracy, confusions, logits, per_superclass
from lrc.evaluation.evaluate import evaluate
from lrc.evaluation.masking import masking_flags
from lrc.evaluation.report import Comparison, Confusion, Cost, Flag, Rate, Report, Result, wilson
from lrc.models.superclasses import Superclasses

__all__ = [
    "Comparison",
    "Confusion",
    "Cost",
    "Flag",
    "Rate",
    "Report",
    "Result",
    "Split",
    "Superclasses",
    "accuracy",
    "confusions",
    "evaluate",
    "logits",
    "masking_flags",
    "per_superclass",
    "wilson",
]
