"""Whatever is taken has the W and b that the oracle finds by other means; whatever is not is refused in one line."""

import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linearizing import assert_close, images, lively
from oracle import backward_map, oracle_map
from torch import Tensor, nn

import lrc
from lrc.linearization import affine_map, local_map

SHAPE = (3, 4, 4)
C = 4

Step = Callable[["Drawn", Tensor, Tensor], Tensor]
"""Makes features (n, 4, 4, 4) of two earlier ones."""


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def grid(x: Tensor, like: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(like.shape)


def attend(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    q, k, v = m.qkv(tokens(x)).chunk(3, -1)
    return grid((q @ k.transpose(1, 2) / 2 + m.positions).softmax(-1) @ v, x) + y


def attend_masked(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    q, k, v = m.qkv(tokens(x)).chunk(3, -1)
    scores = (q @ k.transpose(1, 2)).masked_fill(m.positions > 0.5, float("-inf")) * 0.5
    return grid(F.dropout(F.softmax(scores, dim=-1), 0.1, m.training) @ v, x) + y


def attend_fused(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    q, k, v = m.qkv(tokens(x)).chunk(3, -1)
    return grid(F.scaled_dot_product_attention(q, k, v, m.positions), x) + y


def attend_twice(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    q, k, v = m.qkv(tokens(x)).chunk(3, -1)
    shares = 0.3 * (q @ k.transpose(1, 2)).softmax(-1) + 0.9 * m.positions.softmax(-1)
    shares /= shares.sum(-1).unsqueeze(-1)
    return grid(shares @ v, x) + y


def squeeze(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    return x * m.squeeze(y.mean((2, 3), keepdim=True)).sigmoid()


def highway(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    g = torch.sigmoid(m.conv(x))
    return g * y + (1 - g) * x


def update(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    x = x + 0.5
    x += y
    return x.mul_(0.5)


def items(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    z[:, 1:] = y[:, :3]
    z[:, 0] += x[:, 2]
    return z


def counting(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    n = total = x.shape[1]
    n += x.size(2)
    n //= 2
    return x * total / n


def looking(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    n, c, h, w = x.shape
    if h == w and len(y) == n:
        x = F.pad(x, (0, -w % 3, 0, int(-h % 3)))
    return torch.cat([x[:, i : i + 1, :h, :w] for i in reversed(range(c))], 1)


STEPS: dict[str, Step] = {
    "conv": lambda m, x, y: m.conv(x),
    "batch norm": lambda m, x, y: m.bn(x),
    "batch norm after a shuffle": lambda m, x, y: m.conv(m.bn(F.channel_shuffle(x, 2))),
    "layer norm": lambda m, x, y: grid(m.ln(tokens(x)), x),
    "group norm": lambda m, x, y: m.gn(x),
    "relu": lambda m, x, y: F.relu(x),
    "relu in place": lambda m, x, y: F.relu(x + 0.1, inplace=True),
    "relu on a name": lambda m, x, y: [z := x + y, z.relu_(), z + 1][2],
    "gelu": lambda m, x, y: F.gelu(x),
    "silu by hand": lambda m, x, y: x * x.sigmoid(),
    "hard swish by hand": lambda m, x, y: x * F.relu6(x + 3) / 6,
    "leaky by hand": lambda m, x, y: torch.where(x > 0, x, 0.1 * x),
    "tanh": lambda m, x, y: torch.tanh(x),
    "sigmoid": lambda m, x, y: torch.sigmoid(x),
    "pool": lambda m, x, y: F.max_pool2d(x, 3, 1, 1),
    "average": lambda m, x, y: F.avg_pool2d(x, 3, 1, 1),
    "dropout": lambda m, x, y: F.dropout(x, 0.5, m.training),
    "sum": lambda m, x, y: x + y,
    "difference": lambda m, x, y: y - 2 * x,
    "product": lambda m, x, y: x * y,
    "gated": lambda m, x, y: x * torch.sigmoid(y),
    "gated by tanh": lambda m, x, y: torch.tanh(x).mul(y),
    "swish gated": lambda m, x, y: F.silu(x) * m.conv(y),
    "gated by half of itself": lambda m, x, y: [t := F.gelu(x).chunk(2, 1), torch.cat([t[0] * t[1], t[0]], 1)][1],
    "gate and feature": lambda m, x, y: [g := torch.sigmoid(x), g * y + g][1],
    "softmax": lambda m, x, y: x.softmax(1) * y,
    "softmax alone": lambda m, x, y: x.softmax(1) + y,
    "squeeze": squeeze,
    "highway": highway,
    "attend": attend,
    "attend masked": attend_masked,
    "attend fused": attend_fused,
    "attend twice": attend_twice,
    "view": lambda m, x, y: x.reshape(x.shape[0], 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
    "flip": lambda m, x, y: x.flip(1).transpose(2, 3),
    "halves": lambda m, x, y: torch.cat([x[:, :2], y[:, 2:]], 1),
    "update": update,
    "items": items,
    "a view changed": lambda m, x, y: [z := x.clone(), z[:, :2].add_(1), z][2],
    "double": lambda m, x, y: x.float().to(x.dtype) if x.dtype is torch.float32 else x.double().type_as(y),
    "integers": lambda m, x, y: x.to(torch.int64).to(y.dtype) + y,
    "counting": counting,
    "looking": looking,
    "square": lambda m, x, y: x**2 + y,
    "squared relu": lambda m, x, y: F.relu(x) ** 2 + y,
    "rms norm": lambda m, x, y: x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6),
    "quotient": lambda m, x, y: x / (x.norm(dim=1, keepdim=True) + 1e-6),
    "odd quotient": lambda m, x, y: x / (1 + y.exp()),
    "largest": lambda m, x, y: x.amax((2, 3), keepdim=True) + y,
    "maxout": lambda m, x, y: torch.maximum(x, y),
    "constant": lambda m, x, y: x + m.scale.expand_as(y),
    "scaled": lambda m, x, y: x * m.scale.type_as(y),
    "clamp": lambda m, x, y: x.clamp(-1, 1),
    "noise": lambda m, x, y: x + torch.randn_like(x),
    "kept": lambda m, x, y: [setattr(m, "features", x), x + 1][1],
}


class Drawn(nn.Module):
    """A network of drawn steps, each on two of what came before it."""

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.steps = steps
        self.stem, self.conv, self.bn = nn.Conv2d(3, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)
        self.ln, self.gn, self.qkv, self.squeeze = (
            nn.LayerNorm(C),
            nn.GroupNorm(2, C),
            nn.Linear(C, 12),
            nn.Conv2d(C, C, 1),
        )
        self.fc = nn.Linear(C * 16, 3)
        self.positions = nn.Parameter(torch.empty(16, 16))
        self.scale = nn.Parameter(torch.empty(1, C, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for name, i, j in self.steps:
            found.append(STEPS[name](self, found[-1 - i % len(found)], found[-1 - j % len(found)]))
        return self.fc(found[-1].flatten(1))


def agrees_or_is_refused(steps: list[tuple[str, int, int]]) -> bool:
    """Whether the network is taken; if so it has been compared."""
    model = lively(Drawn(steps)).eval()
    taken = False
    for batchnorm in ("remove", "fold"):
        try:
            W, b = affine_map(model, SHAPE, batchnorm=batchnorm)
        except lrc.InputError as error:
            assert "\n" not in str(error)
            continue
        taken = True
        expected = oracle_map(model, SHAPE, batchnorm)
        assert_close(W, expected[0], 1e-9)
        assert (b - expected[1]).abs().max() <= 1e-9 * max(float(b.abs().max()), float(W.abs().max()))
    return taken


pairs = st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 2), st.integers(0, 2))


GRAPHS = int(os.environ.get("LRC_GRAPHS", "40"))
"""How many graphs are drawn; LRC_GRAPHS=2000 for a long run."""


@settings(max_examples=GRAPHS, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(pairs, min_size=1, max_size=6))
def test_small_networks_drawn_at_random(steps):
    agrees_or_is_refused(steps)


REFUSED = {
    *("product", "gated by half of itself", "gate and feature", "softmax alone", "integers", "square", "odd quotient"),
    *("noise", "a view changed"),
}


@pytest.mark.parametrize("name", sorted(STEPS))
def test_each_step_alone(name):
    steps = [("conv", 0, 0), ("relu", 0, 0), ("conv", 0, 0), (name, 0, 1)]
    assert agrees_or_is_refused(steps) == (name not in REFUSED)
    if name not in ("noise",):
        model, x = lively(Drawn(steps)).eval(), images(2, *SHAPE)
        for n in (1, 2):
            assert_close(local_map(model, x[:n]), backward_map(model, x[:n]), 1e-9)


def test_the_oracle_is_not_the_network():
    model = lively(Drawn([("relu", 0, 0), ("attend", 0, 0)])).eval()
    assert not torch.allclose(oracle_map(model, SHAPE)[0], backward_map(model, images(1, *SHAPE))[0], rtol=0.01)
