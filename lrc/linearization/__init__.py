"""The linear sub-network of a classifier, and the one linear map that it is.

`maps` has W and b, `network` the linear network that they are read from. That takes `tracing` (a network as a graph),
`surgery` (how to change a graph safely) and `rules` (what becomes of which operation).
"""

from lrc.linearization.maps import affine_map, linear_map
from lrc.linearization.network import linearize
from lrc.linearization.rules import RULES

__all__ = ["RULES", "affine_map", "linear_map", "linearize"]
