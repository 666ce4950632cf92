"""Do the classes cluster? From the linear map W to the correlation C of classes, to groups, and to how sure one can be.

`similarity` has C and F, eigenvalues and rank; `contrasts` the one number that a matrix and a partition give, also of
random weights; `permutations` its test, `hierarchy_tests` that of every level of a hierarchy, and of a distance between
classes. `trees` has the groups that a matrix itself suggests, and their agreement with given ones; `intervals` how
far a figure can be trusted.

`C` is the class correlation, and `groups` a partition of the classes: lists of class indices, each class in one list.
Random choices follow a `generator`; without one, a new one with seed 0.
"""

from lrc.clustering.contrasts import contrast, p_value, random_contrasts
from lrc.clustering.hierarchy_tests import LevelTest, mantel_test, permutation_tests
from lrc.clustering.intervals import Interval, bootstrap, t_interval
from lrc.clustering.permutations import PermutationTest, holm, permutation_test
from lrc.clustering.similarity import class_correlation, effective_rank, eigengap, eigenvalues, feature_distance
from lrc.clustering.trees import (
    agreement,
    agreements,
    cophenetic,
    cophenetic_correlation,
    cut,
    tree,
    triplet_agreement,
)

__all__ = [
    "Interval",
    "LevelTest",
    "PermutationTest",
    "agreement",
    "agreements",
    "bootstrap",
    "class_correlation",
    "contrast",
    "cophenetic",
    "cophenetic_correlation",
    "cut",
    "effective_rank",
    "eigengap",
    "eigenvalues",
    "feature_distance",
    "holm",
    "mantel_test",
    "p_value",
    "permutation_test",
    "permutation_tests",
    "random_contrasts",
    "t_interval",
    "tree",
    "triplet_agreement",
]
