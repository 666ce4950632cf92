"""Whatever is taken has the W and b that the oracle finds by other means; whatever is not is refused in one line."""

import math
import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, event, given, settings
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


def heads(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    q, k, v = m.qkv(tokens(x)).reshape(len(x), 16, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
    shares = (q * 2**-0.5 @ k.mT + m.positions).softmax(dim=-1)
    return y + grid(m.ln(torch.einsum("nhqk,nhkd->nqhd", shares, v).flatten(2)), x)


def token(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    """Attention of one token, learned, to all others."""
    t = torch.cat([m.scale.flatten(2).mT.expand(len(x), -1, -1), tokens(y)], dim=1)
    return x + m.mha(t, t, t, need_weights=False)[0][:, 0, :, None, None]


def channels(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    """Attention among channels, of queries and keys on a sphere."""
    q, k, v = (part.mT for part in m.qkv(tokens(x)).split(C, -1))
    return y + (torch.softmax(F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1), -1) @ v).view(x.shape)


def context(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    """All positions weighed by what is seen there, added to each."""
    weights = F.softmax(m.squeeze(x)[:, :1].flatten(2), 2)
    return y + m.squeeze(torch.matmul(x.flatten(2), weights.mT).unsqueeze(-1))


def excite(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    s = F.adaptive_avg_pool2d(x, 1).flatten(1)
    s = F.hardsigmoid(F.linear(F.relu(F.linear(s, m.mixing)), m.mixing.t()))
    return x * s.view(*s.shape, 1, 1).expand_as(x) + y


def by_hand(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    return m.scale * (x - mean) / (deviation + 1e-5) + y


def windows(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    n, c, h, w = x.shape
    parts = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
    parts = parts + (parts @ parts.transpose(1, 2)).mul(c**-0.5).softmax(-1) @ parts
    return parts.reshape(n, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w) + y


def pieces(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    done = [part * (i + 1) for i, part in enumerate(x.split([1, 3], 1))]
    for part in y.chunk(2, dim=2):
        done[0] = done[0] + part.mean((1, 2), keepdim=True)
    return torch.cat(done, dim=1)


def coordinates(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    rows = torch.arange(h, dtype=x.dtype).view(1, 1, h, 1) / max(h - 1, 1)
    return x + rows.expand(x.size(0), C, h, w) * y.new_full((1,), 0.5)


def accumulated(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    z = y.new_zeros(y.shape)
    for i in range(2):
        z[:, i::2] += x[:, i::2] * (i + 1)
        z[..., i] = y[..., -1]
    z[:, torch.tensor([0, 3])] -= 1
    z /= 2
    return z


def patched(m: "Drawn", x: Tensor, y: Tensor) -> Tensor:
    z = torch.empty_like(x).copy_(y)
    z[m.positions.view(4, 4, 4, 4)[0].expand(z.shape) > 0] = 0.0
    return z.sub_(x, alpha=2).mul_(m.scale)


STEPS: dict[str, Step] = {
    "conv by hand": lambda m, x, y: (F.unfold(x, 3, padding=1).mT @ m.conv.weight.flatten(1).T).mT.reshape(y.shape),
    "functional conv": lambda m, x, y: F.conv2d(x, m.depthwise, None, padding=1, groups=C) + m.scale,
    "transposed conv": lambda m, x, y: F.conv_transpose2d(x, weight=m.conv.weight, padding=1),
    "matrices": lambda m, x, y: (
        torch.addmm(tokens(y).flatten(0, 1), tokens(x).reshape(-1, C), m.mixing)
        .view(len(x), 4, 4, C)
        .permute(0, 3, 1, 2)
    ),
    "mixed tokens": lambda m, x, y: torch.einsum("nct,ts->ncs", x.flatten(2), m.positions).unflatten(2, (4, 4)) + y,
    "batch norm's function": lambda m, x, y: F.batch_norm(x, m.bn.running_mean, m.bn.running_var, m.bn.weight, eps=0.1),
    "batch norm of a class of its own": lambda m, x, y: m.own_bn(x) + y,
    "instance norm": lambda m, x, y: F.instance_norm(x) + y,
    "rms norm's function": lambda m, x, y: F.rms_norm(x.movedim(1, -1), (C,)).movedim(-1, 1),
    "norm by hand": by_hand,
    "sphere": lambda m, x, y: F.normalize(x, p=2.0, dim=1) * m.scale,
    "relu layer": lambda m, x, y: m.relu(m.conv(x)) + m.relu(y + 0.2),
    "relu by clamp": lambda m, x, y: x.clamp(min=0.0) + y.clamp_min(0),
    "relu by clamp in place": lambda m, x, y: (x * 1.5).clamp_(min=0),
    "relu by mask": lambda m, x, y: x * (x > 0) + y,
    "leaky": lambda m, x, y: F.leaky_relu(x, 0.2) + torch.selu(y),
    "elu": lambda m, x, y: F.elu(x, inplace=False) + F.softplus(input=y),
    "prelu": lambda m, x, y: F.prelu(x, m.scale.flatten()),
    "hard swish": lambda m, x, y: F.hardswish(x) + F.mish(y),
    "hard gate": lambda m, x, y: (x + 3).clamp(0, 6) / 6 * y,
    "glu": lambda m, x, y: F.glu(torch.cat((x, y), dim=1), dim=1),
    "glu by hand": lambda m, x, y: [a := torch.cat([x, y], 1).chunk(2, dim=1), a[0] * a[1].sigmoid()][1],
    "gate in place": lambda m, x, y: m.conv(x).sigmoid_() * y,
    "gates of gates": lambda m, x, y: (torch.sigmoid(m.conv(x)) * y.sigmoid()) * m.conv(y),
    "gate of a mean": lambda m, x, y: y * (m.conv(x).tanh() + 1).mean(1, keepdim=True),
    "mixture": lambda m, x, y: torch.stack([x, y], 1).mul(m.logits(y).softmax(1)[:, :, None, None, None]).sum(1),
    "lerp": lambda m, x, y: torch.lerp(x, y, m.scale.sigmoid()) + torch.addcmul(x, y, m.scale, value=0.5),
    "excite": excite,
    "context": context,
    "heads": heads,
    "token": token,
    "channels": channels,
    "windows": windows,
    "attend causally": lambda m, x, y: (
        y + grid(F.scaled_dot_product_attention(*m.qkv(tokens(x)).chunk(3, dim=-1), is_causal=True), x)
    ),
    "roll": lambda m, x, y: torch.roll(x, shifts=(-1, 1), dims=(2, 3)) + y.roll(1, 1),
    "pieces": pieces,
    "shuffle of pixels": lambda m, x, y: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2) + y.flip((2,)),
    "resized": lambda m, x, y: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="nearest") + y,
    "strided": lambda m, x, y: torch.cat([x[:, ::2], y[:, 1::2]], 1)[:, [2, 0, 3, 1]],
    "padded": lambda m, x, y: F.pad(x, (1, 0, 1, 0))[..., :-1, :-1] + F.pad(y, [1, 1, 0, 0], mode="reflect")[..., 1:-1],
    "reductions": lambda m, x, y: x - x.mean(dim=(2, 3), keepdim=True) + y.sum(1, keepdim=True) / y.shape[1],
    "stacked": lambda m, x, y: torch.stack((x, y), dim=2).mean(2) + torch.cumsum(x, 1),
    "where a mask is": lambda m, x, y: torch.where(m.scale > 0, x, y),
    "filled where a mask is": lambda m, x, y: x.masked_fill(m.scale > 0.1, 0.5) + y * (m.scale < 0).to(y.dtype),
    "where the image is bright": lambda m, x, y: torch.where(x > y, x, y),
    "cast like another": lambda m, x, y: x.to(y.dtype) + y.to(m.scale) + x.type(torch.float64),
    "mask as numbers": lambda m, x, y: x * (x >= 0).to(x.dtype) + (y > 0).double() * y,
    "coordinates": coordinates,
    "sizes": lambda m, x, y: x.reshape(x.size(0), -1, math.prod(x.shape[2:])).view_as(y) * x.shape[1] ** -0.5 + y,
    "accumulated": accumulated,
    "patched": patched,
    "residual in place": lambda m, x, y: [z := m.bn(m.conv(x)), z.__iadd__(y), F.relu_(z)][2],
    "changed after a copy": lambda m, x, y: [z := x.clone(), z.add_(1), z * 2 + x][2],
    "pooled by maximum": lambda m, x, y: m.pool(x) + y.max(dim=1, keepdim=True)[0],
    "sorted": lambda m, x, y: x.sort(1).values + y,
    "reused": lambda m, x, y: m.block(m.block(x)) + m.block(y),
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


class OwnNorm(nn.BatchNorm2d):
    """A class of its own that changes nothing of the forward."""


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
        self.block = nn.Sequential(self.conv, nn.BatchNorm2d(C), nn.ReLU(inplace=True), nn.Dropout(0.3))
        self.own_bn, self.relu, self.pool = OwnNorm(C), nn.ReLU(inplace=True), nn.MaxPool2d(3, 1, 1)
        self.mha = nn.MultiheadAttention(C, 2, batch_first=True)
        self.logits = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, 2))
        self.mixing, self.depthwise = nn.Parameter(torch.empty(C, C)), nn.Parameter(torch.empty(C, 1, 3, 3))
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
    event("taken" if agrees_or_is_refused(steps) else "refused")  # counted by --hypothesis-show-statistics


REFUSED = {
    *("product", "gated by half of itself", "gate and feature", "softmax alone", "integers", "square", "odd quotient"),
    *("noise", "a view changed", "where the image is bright"),
}


@pytest.mark.parametrize("name", sorted(STEPS))
def test_each_step_alone(name):
    steps = [("conv", 0, 0), ("relu", 0, 0), ("conv", 0, 0), (name, 0, 1)]
    assert agrees_or_is_refused(steps) == (name not in REFUSED)
    if name not in ("noise",):
        model, x = lively(Drawn(steps)).eval(), images(2, *SHAPE)
        for n in (1, 2):
            assert_close(local_map(model, x[:n]), backward_map(model, x[:n]), 1e-9)


ONCE_APART = {
    "a gate of softmax and tanh goes through a layer": [("tanh", 1, 0), ("softmax", 0, 2), ("swish gated", 0, 0)],
    "values that are gates too": [("tanh", 0, 0), ("softmax", 0, 0), ("attend", 0, 1), ("largest", 0, 0)],
    "the square of a relu is a norm's too": [("relu", 0, 0), ("rms norm", 0, 0)],
    "a relu in place, squared": [("residual in place", 0, 0), ("square", 0, 1)],
    "the larger of a value and its multiple": [("sum", 0, 0), ("scaled", 0, 0), ("maxout", 1, 0)],
    "the larger of a multiple and its value": [("sum", 0, 0), ("scaled", 0, 0), ("maxout", 0, 1)],
    "a gate that was changed at some items": [("sigmoid", 0, 0), ("patched", 0, 0), ("glu by hand", 0, 1)],
}
"""What linearizer and oracle once gave different maps for."""


@pytest.mark.parametrize("name", ONCE_APART)
def test_what_was_once_apart(name):
    assert agrees_or_is_refused(ONCE_APART[name])


def test_the_oracle_is_not_the_network():
    model = lively(Drawn([("relu", 0, 0), ("attend", 0, 0)])).eval()
    assert not torch.allclose(oracle_map(model, SHAPE)[0], backward_map(model, images(1, *SHAPE))[0], rtol=0.01)
