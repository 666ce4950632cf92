"""Do the classes cluster? From the linear map W to the correlation C of classes, to groups, and to how sure one can be.

`matrices` has C and F, `contrasts` the one number that a matrix and a partition give, `permutations` its test,
`trees` the groups that a matrix itself suggests. A partition of the classes is `groups`: lists of class indices, each
class in one list.
"""

from lrc.clustering.contrasts import contrast
from lrc.clustering.matrices import class_correlation, feature_distance
from lrc.clustering.permutations import PermutationTest, permutation_test
from lrc.clustering.trees import agreement, cut, tree

__all__ = [
    "PermutationTest",
    "agreement",
    "class_correlation",
    "contrast",
    "cut",
    "feature_distance",
    "permutation_test",
    "tree",
]
