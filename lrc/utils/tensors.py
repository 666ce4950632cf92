"""The tensors that most functions take and give, with their shapes, by name.

`n` is the number of images in a batch; what a dimension is called is the same throughout a signature.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Pixels = Float[Tensor, "n *shape"]  # images in [0, 1], or something of their shape: gradients, perturbations
Labels = Int[Tensor, " n"]
Goals = Int[Tensor, "n *pair"]  # labels, or in a targeted attack pairs of label and target (n, 2)
Logits = Float[Tensor, "n classes"]
PerImage = Float[Tensor, " n"]
Mask = Bool[Tensor, " n"]
Matrix = Float[Tensor, "classes classes"]  # such as C
Scalar = Float[Tensor, ""]
