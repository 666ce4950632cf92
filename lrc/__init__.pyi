"""The public names of lrc, for type checkers and for the lazy import."""

from . import attacks, clustering, data, hierarchy, models, plots
from .clustering import (
    agreement,
    class_correlation,
    contrast,
    cut,
    feature_distance,
    permutation_test,
    permutation_tests,
    tree,
)
from .data import Images
from .evaluation import Report, accuracy, evaluate, logits
from .experiments import studies, zoo
from .experiments.claims import claim
from .experiments.profiles import profile
from .inspection import Inspection, compare, explore, inspect
from .linearization import affine_map, alignment, linear_map, linearize, local_map, mean_local_map
from .training import objectives, train
from .utils.errors import InputError

__version__: str

__all__ = [
    "Images",
    "Inspection",
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
    "compare",
    "contrast",
    "cut",
    "data",
    "evaluate",
    "explore",
    "feature_distance",
    "hierarchy",
    "inspect",
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
