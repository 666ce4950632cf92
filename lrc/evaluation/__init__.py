"""What a trained classifier says, how often it is right, also under attack, and whether that can be trusted.

`evaluate` gives a `Report`. Its attacks go by name or are functions of one's own; `masking_flags` looks for signs that
a network only seems robust. `accuracy` and `logits` are the short way. `Superclasses` asks a classifier of subclasses
for the superclass.
"""

from lrc.evaluation.accuracy import Attack as Attack
from lrc.evaluation.accuracy import accuracy, logits
from lrc.evaluation.counting import Cost
from lrc.evaluation.evaluate import evaluate
from lrc.evaluation.masking import masking_flags
from lrc.evaluation.outcomes import Comparison, Confusion, Flag, Outcome
from lrc.evaluation.rates import Rate, wilson
from lrc.evaluation.report import Report
from lrc.evaluation.superclasses import Split, Superclasses, confusions, per_superclass

__all__ = [
    "Comparison",
    "Confusion",
    "Cost",
    "Flag",
    "Outcome",
    "Rate",
    "Report",
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
