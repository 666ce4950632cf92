"""The linear sub-network of a classifier, and the one linear map that it is.

`maps` has W and b, `local` the linear map that the whole network is near an image, `jacobian` the rows of both,
`network` the linear network that W and b are read from. That takes `tracing` (a network as a graph), `surgery` (how to
change a graph safely) and `rules` (what becomes of which operation). `recording` reads what looks at shapes.
"""

from lrc.linearization.checking import superposition_error
from lrc.linearization.local import alignment, local_map, mean_local_map
from lrc.linearization.maps import affine_map, linear_map
from lrc.linearization.network import linearize
from lrc.linearization.rules import RULES

__all__ = [
    "RULES",
    "affine_map",
    "alignment",
    "linear_map",
    "linearize",
    "local_map",
    "mean_local_map",
    "superposition_error",
]
