"""What a network is read as: numbers, gates, masks, caches and noise, whether it looks at shapes or not."""

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linearizing import Net, assert_close, images, lively
from torch import Tensor, nn

import lrc
from lrc.linearization import affine_map, linear_map, linearize

SHAPE = (3, 8, 8)


def net(function: Callable[..., Any], **parts: nn.Module) -> nn.Module:
    parts = {"conv": nn.Conv2d(3, 8, 3, padding=1), "fc": nn.Linear(8, 4)} | parts
    return lively(Net(function, **parts)).eval()


def jacobian(function: Callable[[Tensor], Tensor], *shape: int) -> Tensor:
    return torch.autograd.functional.jacobian(lambda x: function(x)[0], torch.zeros(1, *shape, dtype=torch.double))[
        :, 0
    ]


# --- numbers ---------------------------------------------------------------------------------------------------------


def counted(m: Net, x: Tensor) -> Tensor:
    x = m.conv(x)
    channels = left = x.shape[1]
    left -= 3
    left //= 2
    factor = x.size(-1) + left
    twice = factor
    twice *= 2
    return m.fc((F.relu(x) * channels / factor).mean((2, 3)))


def test_numbers_from_shapes_are_values():
    model = net(counted)
    expected = jacobian(lambda x: model.fc((model.conv(x) * 8 / 10).mean((2, 3))), *SHAPE)
    assert_close(linear_map(model, SHAPE), expected)
    assert_close(linear_map(linearize(model), SHAPE), expected)


def looking(m: Net, x: Tensor) -> Tensor:
    """Everything that stand-ins without a size cannot do."""
    assert x.shape[1:] == (3, 8, 8)
    n, _, h, w = m.conv(x).shape
    x = F.relu(m.conv(x))
    if h > 4:
        x = F.pad(x, (0, max(0, -w % 3), 0, max(0, -h % 3)))
    pieces = [x[:, :, i : i + 3] for i in range(0, x.shape[2], 3)]
    x = torch.cat(list(reversed(pieces)), 2)
    x = x.reshape(n * x.shape[2], -1, x.shape[3]).sum(1).view(n, int(x.shape[2]), -1)
    return types.SimpleNamespace(logits=m.out(x.flatten(1)[:, : len(m.out.weight[0])]), features=x)


def test_forward_that_looks_at_shapes():
    model, x = net(looking, out=nn.Linear(36, 4)), images(5, *SHAPE)
    with pytest.raises(lrc.InputError, match=r"cannot trace Net .* input_shape=\(3, 32, 32\), as an example"):
        linearize(model)
    linear = linearize(model, input_shape=SHAPE)
    with torch.no_grad():
        z = F.pad(model.conv(x), (0, 1, 0, 1)).unflatten(2, (3, 3)).flip(2).flatten(2, 3)
        z = z.reshape(45, 8, 9).sum(1).view(5, -1)
        assert_close(linear(x), model.out(z[:, :36]))
        assert_close(linear(x[:1]), linear(x)[:1])
    assert {id(p) for p in linear.parameters()} <= {id(p) for p in model.parameters()}


def test_values_of_the_image_decide_nothing():
    for function in (
        lambda m, x: x if x.sum() > 0 else -x,
        lambda m, x: x * float(x.mean()),
        lambda m, x: x[:, : int(x.argmax())],
        lambda m, x: x + torch.tensor(x.flatten()[:1].tolist()),
    ):
        with pytest.raises(lrc.InputError, match="the network takes the values of a tensor that depends on the image"):
            linearize(net(function), input_shape=SHAPE)


def test_a_network_that_treats_batches_of_two_sizes_differently():
    with pytest.raises(lrc.InputError, match="does other things with 2 images than with 3"):
        linearize(net(lambda m, x: torch.stack([m.fc(x[i, 0]) for i in range(len(x))])), input_shape=SHAPE)
    with pytest.raises(lrc.InputError, match="computes 0.5 for 2 images and 0.33"):
        linearize(net(lambda m, x: m.conv(x) * (1 / len(x))), input_shape=SHAPE)


def positive(x: Tensor) -> Tensor:
    return torch.relu(x)


@pytest.mark.filterwarnings("ignore:.*jit.*")
def test_what_is_not_seen_is_not_frozen():
    scripted = torch.jit.script(positive)

    def forward(m: Net, x: Tensor) -> Tensor:
        assert len(x) > 0
        return m.fc(m.conv(scripted(x)).mean((2, 3)))

    with pytest.raises(lrc.InputError, match="cannot be read: it computes what torch.fx does not see"):
        linearize(net(forward), input_shape=SHAPE)


# --- items -----------------------------------------------------------------------------------------------------------


def assigned(m: Net, x: Tensor) -> Tensor:
    x = m.conv(x)
    y = torch.zeros_like(x)
    y[:, 1:] = x[:, :-1]
    y[:, 0] += x[:, 7]
    y[:, 2] = 3.0
    return m.fc(F.relu(y).mean((2, 3)))


def test_assignment_of_items():
    model, x = net(assigned), images(2, *SHAPE)
    with torch.no_grad():
        assert_close(linearize(model)(x), model.fc(_rolled(model.conv(x)).mean((2, 3))))


def _rolled(x: Tensor) -> Tensor:
    return torch.cat([x[:, 7:], x[:, :1], torch.full_like(x[:, :1], 3.0), x[:, 2:7]], 1)


# --- gates that are more than that -----------------------------------------------------------------------------------

TRUNKS = {
    "gated by a part of itself": lambda m, x: [t := F.gelu(m.conv(x)).chunk(2, 1), t[0] * m.part(t[1])][1],
    "gate and feature": lambda m, x: [g := torch.sigmoid(m.conv(x)), torch.cat([g, g * m.conv(x)], 1)][1],
    "gate and feature by a sum": lambda m, x: [g := F.silu(m.conv(x)), g * m.conv(x) + g][1],
    "its own features": lambda m, x: [a := m.conv(x).tanh(), a * m.deep(a)][1],
    "a shortcut around a softmax": lambda m, x: [s := m.conv(x).softmax(1), s * m.conv(x) + s][1],
}


@pytest.mark.parametrize("name", TRUNKS)
def test_an_activated_trunk_is_no_gate(name):
    model = net(TRUNKS[name], part=nn.Conv2d(4, 4, 1), deep=nn.Conv2d(8, 8, 1))
    with pytest.raises(
        lrc.InputError, match="is its gate, and (its other factor .* computed from|goes into .* feature)"
    ):
        linearize(model)


# --- attention, fused or written out ---------------------------------------------------------------------------------


class Attention(nn.Module):
    """Two heads over 16 tokens, with a bias of positions that excludes some."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.qkv, self.fc = how, nn.Linear(3, 12), nn.Linear(4, 5)
        self.bias = nn.Parameter(torch.zeros(16, 16))
        self.whole = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.qkv(x.flatten(2).transpose(1, 2))
        q, k, v = (t.unflatten(2, (2, 2)).transpose(1, 2) for t in tokens.chunk(3, -1))
        mask = self.bias.masked_fill(torch.ones(16, 16).triu(1).bool(), -100.0)
        if self.how == "fused":
            y = F.scaled_dot_product_attention(q, k, v, mask)
        else:
            y = ((q @ k.transpose(2, 3)) / 2**0.5 + mask).softmax(-1) @ v
        y = y.transpose(1, 2).flatten(2)
        return self.fc((torch.arange(16.0)[:, None] * y).mean(1))


def test_attention_has_one_map_however_it_is_written():
    models = [lively(Attention(how)) for how in ("fused", "written out")]
    x = images(2, 3, 4, 4)
    assert_close(models[0](x), models[1](x))
    with torch.no_grad():
        v = models[0].qkv(x.flatten(2).transpose(1, 2))[..., 8:]
        means = torch.stack([v[:, : i + 1].mean(1) for i in range(16)], 1)
        expected = models[0].fc((torch.arange(16.0)[:, None] * means).mean(1))
    for model in models:
        assert_close(linearize(model)(x), expected)


@pytest.mark.parametrize("mask", ["numbers", "bool"])
def test_masks_of_multihead_attention(mask):
    def forward(m: Net, x: Tensor) -> Tensor:
        given = m.bias.triu(1) * 1e4 + m.bias.sin() if mask == "numbers" else m.bias.triu(1) < 0
        return m.a(x, x, x, attn_mask=given, need_weights=False)[0]

    model, x = lively(Net(forward, a=nn.MultiheadAttention(4, 2, batch_first=True))), images(2, 5, 4)
    model.bias = nn.Parameter(-torch.ones(5, 5).double())
    v = F.linear(x, model.a.in_proj_weight[8:], model.a.in_proj_bias[8:])
    expected = model.a.out_proj(torch.stack([v[:, : i + 1].mean(1) for i in range(5)], 1))
    assert_close(linearize(model)(x), expected)


# --- the network stays as it was -------------------------------------------------------------------------------------


class Keeping(nn.Module):
    """Caches, counts, keeps features, and moves an average."""

    def __init__(self, looks: bool) -> None:
        super().__init__()
        self.looks, self.conv, self.fc = looks, nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.cache: dict[str, Tensor] = {}
        self.calls = 0
        self.register_buffer("bias", torch.randn(8, generator=torch.Generator().manual_seed(0)))
        self.register_buffer("seen", torch.zeros(()))
        self.list: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.looks:
            assert len(x) > 0
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias[:, None, None] * 2
        self.seen += 1
        self.calls += 1
        x = F.relu(self.conv(x) + self.cache["bias"])
        self.features = x
        self.list.append(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("looks", [False, True])
def test_what_a_network_keeps_is_not_touched(looks):
    model = lively(Keeping(looks)).eval()
    before = copy.deepcopy(vars(model)), copy.deepcopy(model.state_dict())
    first, second = (affine_map(model, SHAPE) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert sorted(vars(model)) == sorted(before[0]) and model.calls == 0 and not model.cache and not model.list
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before[1].values(), strict=True))
    with torch.no_grad():
        expected = model.fc((model.conv(torch.zeros(1, *SHAPE).double()) + 2 * model.bias[:, None, None]).mean((2, 3)))
    assert_close(first[1], expected[0])
    model(images(1, *SHAPE))
    assert torch.equal(linear_map(model, SHAPE), first[0])  # with what a call of its own has left on it


# --- what is questionable --------------------------------------------------------------------------------------------

QUESTIONABLE = {
    "frozen noise": (lambda m, x: m.fc((m.conv(x) + torch.randn(8, 8, 8)).mean((2, 3))), "draws at random"),
    "noise like": (lambda m, x: m.fc((m.conv(x) + torch.rand_like(m.conv.bias).sum()).mean((2, 3))), "draws at random"),
    "cancelled": (lambda m, x: [z := m.fc(m.conv(x).mean((2, 3))), z - z.tanh()][1], r"4 logits do not depend"),
    "one logit cancelled": (
        lambda m, x: [z := m.fc(m.conv(x).mean((2, 3))), torch.cat([z, (F.relu(z) + F.relu(-z))[:, :1]], 1)][1],
        r"1 logits do not depend on the image any more, logit 4",
    ),
    "integers": (lambda m, x: m.fc((5 * m.conv(x)).to(torch.int32).double().mean((2, 3))), "a cast to torch.int32"),
    "type of integers": (
        lambda m, x: m.fc((5 * m.conv(x)).type_as(m.whole).double().mean((2, 3))),
        r"verify: node 'type_as' .* is not affine",
    ),
    "infinite padding": (lambda m, x: m.fc(F.pad(m.conv(x), (1, 1), value=-float("inf")).mean((2, 3))), "is infinite"),
    "clamped by the image": (lambda m, x: m.fc(m.conv(x).clamp(max=x.amax()).mean((2, 3))), "'amax' depends"),
}


@pytest.mark.parametrize("name", QUESTIONABLE)
def test_what_is_questionable_is_refused(name):
    function, message = QUESTIONABLE[name]
    model = net(function)
    model.register_buffer("whole", torch.zeros((), dtype=torch.int64))
    with pytest.raises(lrc.InputError, match=message):
        linear_map(model, SHAPE)


def test_rows_that_were_zero_may_stay_zero():
    model = net(lambda m, x: m.fc(m.conv(x).relu().mean((2, 3))))
    with torch.no_grad():
        model.fc.weight[1] = 0
    W = linear_map(model, SHAPE)
    assert W.flatten(1).abs().amax(1).eq(0).tolist() == [False, True, False, False]


@pytest.mark.parametrize("layer", [False, True])
def test_infinite_padding_before_a_maximum_is_padding_of_a_mean(layer):
    padding = nn.ConstantPad2d((0, 1, 0, 1), -float("inf"))
    pad = padding if layer else lambda x: F.pad(x, (0, 1, 0, 1), value=-float("inf"))
    model = net(
        lambda m, x: m.fc(F.max_pool2d(pad(m.conv(x)), 3, 2).mean((2, 3))), **({"pad": padding} if layer else {})
    )
    if layer:
        model.function = lambda m, x: m.fc(F.max_pool2d(m.pad(m.conv(x)), 3, 2).mean((2, 3)))
    expected = jacobian(lambda x: model.fc(F.avg_pool2d(F.pad(model.conv(x), (0, 1, 0, 1)), 3, 2).mean((2, 3))), *SHAPE)
    assert_close(linear_map(model, SHAPE), expected)
    with pytest.raises(lrc.InputError, match="its padding is infinite"):
        linear_map(model, SHAPE, pooling="average_inside")


def test_a_constant_in_the_shape_of_the_image_is_a_constant():
    model = net(lambda m, x: [z := m.conv(x), z * m.scale.expand_as(z) + z * m.scale.type_as(z)][1])
    model.scale = nn.Parameter(torch.tensor(3.0).double())
    assert_close(linearize(model)(images(2, *SHAPE)), 6 * model.conv(images(2, *SHAPE)))


# --- forms -----------------------------------------------------------------------------------------------------------

SAME: Callable[..., Tensor] = lambda m, x: x  # noqa: E731
FORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "squared ReLU": (lambda m, x: F.relu(x) ** 2, SAME),
    "star ReLU": (lambda m, x: 3 * torch.square(F.relu(x)) + 1, lambda m, x: 3 * x + 1),
    "RMS norm by hand": (lambda m, x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6), SAME),
    "layer norm by hand": (
        lambda m, x: (x - x.mean(1, True)) / torch.sqrt(x.var(1, keepdim=True) + 1e-6),
        lambda m, x: x - x.mean(1, True),
    ),
    "normalize": (lambda m, x: F.normalize(x, dim=1), SAME),
    "by its norm": (lambda m, x: x / x.norm(dim=1, keepdim=True).clamp_min(1e-6), SAME),
    "response norm": (
        lambda m, x: [g := x.norm(dim=(2, 3), keepdim=True), torch.addcmul(x, x, g / (g.mean(1, True) + 1e-6))][1],
        lambda m, x: 2 * x,
    ),
    "addcmul": (lambda m, x: torch.addcmul(m.p, x, m.p, value=2.0), lambda m, x: m.p + 2 * x * m.p),
    "addmm": (lambda m, x: torch.addmm(m.v, x.flatten(1), m.w), lambda m, x: m.v + x.flatten(1) @ m.w),
    "addmm by names": (
        lambda m, x: torch.addmm(m.v, mat2=m.w, mat1=x.flatten(1), alpha=2, beta=3),
        lambda m, x: 3 * m.v + 2 * x.flatten(1) @ m.w,
    ),
    "addmv": (lambda m, x: torch.addmv(m.v, m.w.T, x[0].flatten()), lambda m, x: m.v + m.w.T @ x[0].flatten()),
    "baddbmm": (lambda m, x: torch.baddbmm(m.p, x[0], m.p), lambda m, x: m.p + x[0] @ m.p),
    "lerp": (lambda m, x: torch.lerp(x, m.p * x, 0.25), lambda m, x: x + 0.25 * (m.p * x - x)),
    "maximum over positions": (lambda m, x: x.amax((2, 3)), lambda m, x: x.mean((2, 3))),
    "maximum with indices": (lambda m, x: x.max(2).values, lambda m, x: x.mean(2)),
    "maximum, unpacked": (lambda m, x: torch.max(x, dim=2, keepdim=True)[0], lambda m, x: x.mean(2, True)),
    "maxout": (lambda m, x: torch.maximum(x[:, :2], x[:, 2:]), lambda m, x: (x[:, :2] + x[:, 2:]) / 2),
    "leaky by maximum": (lambda m, x: torch.maximum(x, 0.1 * x), SAME),
    "leaky by maximum, of a quotient": (lambda m, x: torch.maximum(x / 4, x), SAME),
    "maxout with a product of matrices": (lambda m, x: torch.maximum(x, x @ m.p), lambda m, x: (x + x @ m.p) / 2),
    "copied into a tensor": (
        lambda m, x: torch.empty_like(x).copy_(x[:, :1]).mul_(2),
        lambda m, x: 2 * x[:, :1].expand_as(x),
    ),
    "ReLU by max": (lambda m, x: torch.max(x, torch.zeros(())), SAME),
    "ReLU by where": (lambda m, x: torch.where(x > 0, x, 0.0), SAME),
    "ELU by where": (lambda m, x: torch.where(x >= 0, x, torch.exp(x) - 1), SAME),
    "ReLU by a mask": (lambda m, x: x * (x > 0), SAME),
    "ReLU by a mask of numbers": (lambda m, x: x * (x > 0).to(x.dtype), SAME),
    "hard swish by clamp": (lambda m, x: x * (x + 3).clamp(0, 6) / 6, SAME),
    "hard swish by names": (lambda m, x: x * torch.clamp(x / 6 + 0.5, min=0, max=1), SAME),
    "sorted in groups": (lambda m, x: x.unflatten(1, (2, 2)).sort(2).values.flatten(1, 2), SAME),
    "rounded": (lambda m, x: torch.round(x * 15) / 15, SAME),
    "talking heads": (
        lambda m, x: F.conv2d(x.softmax(3), m.k) @ x,
        lambda m, x: F.conv2d(torch.full_like(x, 0.25), m.k) @ x,
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_are_written_by_hand(name):
    function, expected = FORMS[name]
    model = Net(function)
    for parameter, shape in {"p": (4, 4, 4), "v": (5,), "w": (64, 5), "k": (4, 4, 1, 1)}.items():
        model.register_parameter(parameter, nn.Parameter(images(*shape) - 0.4))
    x = images(2, 4, 4, 4) - 0.5
    assert_close(linearize(model, input_shape=(4, 4, 4))(x.clone()), expected(model, x))


class Norm(nn.BatchNorm2d):
    """Batch norm of a class of its own."""


def test_subclasses_of_batch_norm():
    models = [lively(nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU())).eval() for norm in (Norm, nn.BatchNorm2d)]
    for batchnorm in ("remove", "fold"):
        a, b = (linearize(model, batchnorm=batchnorm)(images(2, *SHAPE)) for model in models)
        assert torch.equal(a, b)


def test_rules_that_match_nothing():
    model = net(
        lambda m, x: m.fc(F.relu(x.max(3).values.mean(2) @ m.conv.weight[0, :, :, 0] @ torch.ones(3, 8).double()))
    )
    with pytest.raises(lrc.InputError, match=r"no call of max was seen: the network calls torch\.Tensor\.max"):
        linearize(model, rules={max: "identity"})
    with pytest.raises(lrc.InputError, match=r"no call of torch\.nn\.GELU was seen: leave the rule out"):
        linearize(model, rules={nn.GELU: "identity"})


# --- the report ------------------------------------------------------------------------------------------------------


def test_the_report_says_what_became_of_what():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        net(lambda m, x: x * m.s(x), s=nn.Sigmoid()),
    ).eval()
    report = linearize(model).report
    assert [(c.operation, c.module, c.became) for c in report.changes] == [
        ("torch.nn.BatchNorm2d", "1", "taken out"),
        ("torch.nn.ReLU", "2", "taken out"),
        ("torch.nn.MaxPool2d", "3", "torch.nn.functional.avg_pool2d"),
        ("torch.nn.Sigmoid", "4.s", "torch.full_like"),
    ]
    assert "1 x torch.nn.Sigmoid: torch.full_like (a gate is open)" in str(report).splitlines()
    assert str(linearize(nn.Linear(3, 2)).report) == ""
