"""Training objectives: what each defence lowers, as a loss on examples crafted from the batch.

`named("trades", beta=6)` is one of them; `objective(model, x, y, generator=...)` is its value. An objective is a loss
(a formula), an attack that crafts its examples, and terms that are added; `adding`, `clustered` and `awp` make one of
another.
"""

from lrc.training.objectives.crafting import bent, near, steepest
from lrc.training.objectives.features import clustr, feature_clustering, magnet
from lrc.training.objectives.losses import (
    cross_entropy,
    distillation,
    local_flatness,
    local_linearity,
    mart,
    suppressed,
    trades,
)
from lrc.training.objectives.methods import METHODS, adversarial, clustered, named, standard
from lrc.training.objectives.objective import Craft, Loss, Objective, Pass, Term, adding, awp
from lrc.training.objectives.overfitting import collapsed, watch_collapse
from lrc.training.objectives.terms import clustering, clustering_term, jacobian, logit_penalty, row_clustering
from lrc.training.objectives.weights import orthogonality, parseval, soft_orthogonality, spectral_norm

__all__ = [
    "METHODS",
    "Craft",
    "Loss",
    "Objective",
    "Pass",
    "Term",
    "adding",
    "adversarial",
    "awp",
    "bent",
    "clustered",
    "clustering",
    "clustering_term",
    "clustr",
    "collapsed",
    "cross_entropy",
    "distillation",
    "feature_clustering",
    "jacobian",
    "local_flatness",
    "local_linearity",
    "logit_penalty",
    "magnet",
    "mart",
    "named",
    "near",
    "orthogonality",
    "parseval",
    "row_clustering",
    "soft_orthogonality",
    "spectral_norm",
    "standard",
    "steepest",
    "suppressed",
    "trades",
    "watch_collapse",
]
