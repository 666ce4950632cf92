"""Training objectives: the loss that each defence minimizes, on adversarial examples of the batch.

`named("trades", beta=6)` is one of them; `objective(model, x, y, generator=...)` is its value. An objective is a loss
(a formula), an inner attack that makes its examples, and regularization terms; `adding`, `clustered` and `awp` make
one of another.
"""

from lrc.training.objectives.inner_attacks import gradient_norm_attack, local_linearity_attack, trades_attack
from lrc.training.objectives.losses import (
    clustr,
    cross_entropy,
    distillation,
    local_flatness,
    local_linearity,
    magnet,
    mart,
    suppressed,
    trades,
)
from lrc.training.objectives.methods import METHODS, adversarial, clustered, named, standard
from lrc.training.objectives.objective import InnerAttack, Loss, Objective, Term, TermInputs, adding, awp
from lrc.training.objectives.overfitting import collapsed, watch_collapse
from lrc.training.objectives.regularizers import (
    clustering,
    clustering_term,
    feature_clustering,
    jacobian,
    logit_penalty,
    orthogonality,
    parseval,
    row_clustering,
    soft_orthogonality,
    spectral_norm,
)

__all__ = [
    "METHODS",
    "InnerAttack",
    "Loss",
    "Objective",
    "Term",
    "TermInputs",
    "adding",
    "adversarial",
    "awp",
    "clustered",
    "clustering",
    "clustering_term",
    "clustr",
    "collapsed",
    "cross_entropy",
    "distillation",
    "feature_clustering",
    "gradient_norm_attack",
    "jacobian",
    "local_flatness",
    "local_linearity",
    "local_linearity_attack",
    "logit_penalty",
    "magnet",
    "mart",
    "named",
    "orthogonality",
    "parseval",
    "row_clustering",
    "soft_orthogonality",
    "spectral_norm",
    "standard",
    "suppressed",
    "trades",
    "trades_attack",
    "watch_collapse",
]
