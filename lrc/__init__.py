"""Linearize a classifier, and see whether its classes cluster by meaning, as those of robust models do.

>>> import lrc
>>> model = lrc.zoo.load("cifar10-resnet8-at")
>>> W = lrc.linear_map(model)
>>> tuple(W.shape)
(10, 3, 32, 32)
>>> C = lrc.class_correlation(W, centre=True)
>>> lrc.cut(lrc.tree(C), 2)
[[0, 1, 8, 9], [2, 3, 4, 5, 6, 7]]
"""

from lrc import attacks, clustering, data, hierarchy, models, plots
from lrc.clustering import (
    agreement,
    class_correlation,
    contrast,
    cut,
    feature_distance,
    permutation_test,
    permutation_tests,
    tree,
)
from lrc.data import Images
from lrc.evaluation import Report, accuracy, evaluate, logits
from lrc.experiments import studies, zoo
from lrc.experiments.claims import claim
from lrc.experiments.profiles import profile
from lrc.linearization import affine_map, alignment, linear_map, linearize, local_map, mean_local_map
from lrc.training import objectives, train
from lrc.utils.errors import InputError

__version__ = "0.1.0"

__all__ = [
    "Images",
    "InputError",
    "Report",
    "accuracy",
    "affine_map",
    "agreement",
    "alignment",
    "attacks",
    "claim",
    "class_correlation",
    "clustering",
    "contrast",
    "cut",
    "data",
    "evaluate",
    "feature_distance",
    "hierarchy",
    "linear_map",
    "linearize",
    "local_map",
    "logits",
    "mean_local_map",
    "models",
    "objectives",
    "permutation_test",
    "permutation_tests",
    "plots",
    "profile",
    "studies",
    "train",
    "tree",
    "zoo",
]
