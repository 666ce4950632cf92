"""Networks and comparisons that the tests of linearization share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 with random weights of a sensible size, random biases and random batch statistics."""
    g = torch.Generator().manual_seed(seed)
    on_meta = any(p.is_meta for p in model.parameters())
    model = (model.to_empty(device="cpu") if on_meta else model).double()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    with torch.no_grad():
        for p in model.parameters():
            fan_in = p[0].numel() if p.dim() > 1 else 100
            p.normal_(0, (2 / fan_in) ** 0.5, generator=g)
        for norm in norms:
            norm.running_mean.normal_(0, 0.1, generator=g)
            norm.running_var.uniform_(0.5, 1.5, generator=g)
            norm.weight.uniform_(0.5, 1.5, generator=g)
    return model


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def apply(W: Tensor, x: Tensor) -> Tensor:
    return x.flatten(1) @ W.flatten(1).T


def assert_close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max()


class Net(nn.Module):
    """A function as a network without parameters."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def slim(model: nn.Module) -> nn.Module:
    """The layers of 4096 units that AlexNet and VGG end in, at 8."""
    first, second, last = (i for i, m in enumerate(model.classifier) if isinstance(m, nn.Linear))
    model.classifier[first] = nn.Linear(model.classifier[first].in_features, 8)
    model.classifier[second] = nn.Linear(8, 8)
    model.classifier[last] = nn.Linear(8, 7)
    return model
