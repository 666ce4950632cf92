"""Networks small enough to know what an attack should find."""

import torch
from torch import Generator, nn


class Linear(nn.Module):
    """Logits W x + b: where the decision changes, and how far away that is, has a closed form."""

    def __init__(self, classes, shape, seed=0):
        super().__init__()
        generator = Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(classes, *shape, generator=generator))
        self.b = nn.Parameter(0.1 * torch.randn(classes, generator=generator))

    def forward(self, x):
        return (x[:, None] * self.w).flatten(2).sum(2) + self.b


class TwoClasses(nn.Module):
    """Logits (0, w.x + b): the loss of label 0 rises along w, so the best Linf perturbation is eps * sign(w)."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x):
        z = (x * self.w).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(z), z], 1)


class Strange(nn.Module):
    """A network whose logits are NaN or infinite for images that are brighter than `limit` on average."""

    def __init__(self, network, limit, value=float("nan")):
        super().__init__()
        self.network, self.limit, self.value = network, limit, value

    def forward(self, x):
        bright = x.flatten(1).mean(1, keepdim=True) > self.limit
        return torch.where(bright, self.value, self.network(x))


class Counting(nn.Module):
    """Counts the images that the network is asked about, and keeps what it was asked."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, []

    @property
    def images(self):
        return sum(map(len, self.seen))

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.network(x)


def boundary(model, x, *, norm):
    """Distance of each image to the nearest decision boundary of a `Linear`, if [0, 1] does not bind."""
    z = model(x).detach()
    y = z.argmax(1)
    rows = model.w.detach().flatten(1)
    between = (rows[None] - rows[y][:, None]).norm(p=1 if norm == "linf" else 2, dim=2)
    gaps = z.gather(1, y[:, None]) - z
    return (gaps / between).scatter(1, y[:, None], torch.inf).amin(1)


def grey(n, shape, seed=2):
    """Images far enough from 0 and 1 that [0, 1] does not bind."""
    return 0.3 + 0.4 * torch.rand(n, *shape, generator=Generator().manual_seed(seed))


def zeros(x):
    return torch.zeros(len(x), dtype=torch.long)
