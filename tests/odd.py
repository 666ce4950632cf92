"""Networks of (n, 3, 8, 8) images and 3 classes that keep state in unusual places, and a record of all their state."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lrc.utils.networks import modules


class Network(nn.Module):
    """Convolution, what `middle` makes of it, mean over positions, linear layer."""

    input_shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.middle(self.stem(x)).mean((2, 3)))


class Shared(Network):
    """A block under two names."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(block, block)

    def middle(self, x: Tensor) -> Tensor:
        return self.body(x)


class Tied(Network):
    """One weight in two layers, and one buffer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.two.weight = self.one.weight
        self.register_buffer("scale", torch.ones(4, 1, 1))
        self.two.register_buffer("scale", self.scale)

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(torch.relu(self.one(x)))) * self.scale


class Unregistered(Network):
    """Layers in a list and in a dictionary, where `train` and `parameters` do not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.BatchNorm2d(4), nn.ReLU()]
        self.named = {"last": (nn.Dropout(0.5), nn.BatchNorm2d(4))}

    def middle(self, x: Tensor) -> Tensor:
        for layer in (*self.layers, *self.named["last"]):
            x = layer(x)
        return x


class Counting(Network):
    """Buffers that every forward changes: one in place, one by another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("brightest", torch.zeros(()), persistent=False)

    def middle(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.brightest = torch.maximum(self.brightest, x.detach().max())
        return torch.relu(x)


class Remembering(Network):
    """Its last features, as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.features = None

    def middle(self, x: Tensor) -> Tensor:
        self.features = torch.relu(x)
        self.latest = self.features.mean()
        return self.features


class Recurrent(nn.Module):
    """The rows of the image one after the other."""

    input_shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(24, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x.transpose(1, 2).flatten(2))[0][:, -1])


def parametrized(norm: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = Shared()
        norm(model.stem), norm(model.body[0][0])
        return model

    return build


def hooked() -> nn.Module:
    """With hooks, frozen parts, a gradient, and modes that differ."""
    model = Shared()
    model.stem.register_forward_hook(lambda *_: None)
    model.stem.bias.requires_grad_(False)
    model.fc.bias.grad = torch.ones(3)
    model.body[0][1].eval()
    return model


ODD: dict[str, Callable[[], nn.Module]] = {
    "shared": Shared,
    "tied": Tied,
    "unregistered": Unregistered,
    "counting": Counting,
    "remembering": Remembering,
    "recurrent": Recurrent,
    "hooked": hooked,
    "weight norm": parametrized(parametrizations.weight_norm),
    "spectral norm": parametrized(parametrizations.spectral_norm),
    "spectral norm by a hook": parametrized(nn.utils.spectral_norm),
}


def odd(name: str) -> nn.Module:
    """The network with fixed random weights, in train mode but for what it set itself."""
    state = torch.get_rng_state()
    try:
        torch.manual_seed(0)
        return ODD[name]()
    finally:
        torch.set_rng_state(state)


def state(model: nn.Module) -> list[Any]:
    """Everything that must be as it was: objects by identity, values as copies."""
    found: list[Any] = []
    for m in modules(model):
        held = (m._parameters, m._buffers, m._modules, m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)
        found.append((id(m), m.training, [[(k, id(v)) for k, v in part.items()] for part in held]))
        found.append([(k, id(v)) for k, v in vars(m).items() if isinstance(v, Tensor)])
        for p in m._parameters.values():
            if p is not None:
                found.append((p.requires_grad, p.detach().tolist(), None if p.grad is None else p.grad.tolist()))
        found.append([b.tolist() for b in m._buffers.values() if b is not None])
    return found
