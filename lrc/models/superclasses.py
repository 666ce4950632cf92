"""A classifier of subclasses asked for the superclass, as a network of its own."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrc.clustering.contrasts import Groups, labels_of, listed
from lrc.utils.checks import check_choice, check_network
from lrc.utils.errors import InputError

WAYS = ("max", "sum")


class Superclasses(nn.Module):
    """A classifier of subclasses as one of superclasses: logits (n, superclasses).

    It is a network like any other: its labels are those of `lrc.data.as_superclasses`, and an attack on it is aimed at
    the superclass, whatever becomes of the subclass.

    Args:
        model: images to logits of the subclasses; shared, not copied.
        groups: the subclasses of each superclass, as indices of the logits; each in one group.
        by: "max" for the largest logit of the members, so that the answer is the superclass of the subclass that the
            model says; or "sum" for the logarithm of their summed exponentials, so that the probability of a superclass
            is the sum of its members'.

    Raises:
        InputError: groups that are no partition of the logits, or another `by`; the number of logits is known only when
            the network is run.

    Source: "max" is how Bai et al., *Clustering effect of adversarial robust models* (2021), section 4.1, count an
    answer as right; their script attacks the subclasses instead.

    >>> z = torch.tensor([[2.0, 0.0, 1.5, 1.5]])
    >>> Superclasses(nn.Identity(), [[0, 1], [2, 3]])(z)
    tensor([[2.0000, 1.5000]])
    >>> Superclasses(nn.Identity(), [[0, 1], [2, 3]], by="sum")(z)
    tensor([[2.1269, 2.1931]])
    """

    members: Tensor

    def __init__(self, model: nn.Module, groups: Groups, *, by: str = "max") -> None:
        super().__init__()
        check_choice("way to take the logits of a superclass", by, WAYS)
        check_network(model)
        groups = listed(groups)
        of = labels_of(groups, sum(map(len, groups)))
        self.model, self.by = model, by
        # bool and not kept among the weights: no change of precision touches it
        self.register_buffer("members", of == torch.arange(len(groups))[:, None], persistent=False)
        self.input_shape: Sequence[int] | None = getattr(model, "input_shape", None)

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n superclasses"]:
        z = self.model(x)
        if isinstance(z, Tensor) and z.shape[-1] != self.members.shape[1]:  # torch.fx traces with what is no tensor
            raise InputError(f"groups part {self.members.shape[1]} subclasses, the network has {z.shape[-1]} logits")
        own = torch.where(self.members.to(z.device), z[:, None], -torch.inf)
        return own.amax(2) if self.by == "max" else own.logsumexp(2)

    def extra_repr(self) -> str:
        return f"by={self.by!r}"
