"""The rules for gates, attention and norms against closed forms; rules of one's own; parts; verification; refusals."""

import copy
import inspect
import math
import operator
import re
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linearizing import Net, assert_close, images, lively
from torch import Tensor, nn
from torchvision import models, ops
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

import lrc
from lrc.linearization import RULES, linear_map, linearize, superposition_error

# --- gates -----------------------------------------------------------------------------------------------------------


def squeeze(m: nn.Module, x: Tensor) -> Tensor:
    return torch.sigmoid(m.up(F.silu(m.down(x.mean((2, 3)))))).view(len(x), -1, 1, 1)


SQUEEZE = {"down": nn.Linear(4, 2), "up": nn.Linear(2, 4), "conv": nn.Conv2d(3, 4, 3)}


def squeezed(m: Net, x: Tensor) -> Tensor:
    x = m.conv(x)
    return torch.sigmoid(m.up(F.silu(m.down(x.mean((2, 3)))))).view(x.size(0), -1, 1, 1) * x


def test_squeeze_and_excite_is_opened_or_set_to_its_mean():
    model, x, seen = lively(Net(squeezed, **SQUEEZE)), images(2, 3, 8, 8), images(6, 3, 8, 8, seed=2)
    z = model.conv(x)
    assert_close(linearize(model)(x), z)
    gates = squeeze(model, model.conv(seen))
    linear = linearize(model, gates=seen)
    assert_close(linear(x), z * gates.mean(0, keepdim=True))
    assert superposition_error(linear, (3, 8, 8)) < 1e-12
    assert gates.std(0).min() > 1e-4 and not torch.allclose(linear(x), model(x))


def test_squeeze_and_excite_of_torchvision():
    model = lively(ops.SqueezeExcitation(4, 2, scale_activation=nn.Hardsigmoid)).eval()
    x, seen = images(2, 4, 6, 6), images(5, 4, 6, 6, seed=3)
    assert_close(linearize(model)(x), x)
    assert_close(linearize(model, gates=seen)(x), x * model._scale(seen).mean(0))
    assert_close(linearize(linearize(model, gates=seen))(x), x * model._scale(seen).mean(0))


def test_the_mean_of_a_spatial_gate_is_one_a_channel():
    model, x = lively(Net(lambda m, x: x * m.c(x).sigmoid(), c=nn.Conv2d(3, 3, 1))), images(4, 3, 5, 5)
    assert_close(linearize(model, gates=x)(x), x * model.c(x).sigmoid().mean((0, 2, 3))[:, None, None])
    assert linearize(model, gates=x)(images(1, 3, 7, 9)).shape == (1, 3, 7, 9)


GATED = {
    "swish": (lambda m, x: x * torch.sigmoid(x), lambda a, b: a),
    "swish in place": (lambda m, x: m.a(x).mul_(m.b(x).sigmoid_()), lambda a, b: a),
    "hard swish": (lambda m, x: x * F.relu6(x + 3, inplace=True) / 6, lambda a, b: a),
    "hard swish as a module": (lambda m, x: m.a(x) * (m.six(m.a(x) + 3.0) / 6), lambda a, b: a),
    "GELU by erf": (lambda m, x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), lambda a, b: a),
    "GELU by tanh": (lambda m, x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3))), lambda a, b: a),
    "mish": (lambda m, x: x * F.softplus(x).tanh(), lambda a, b: a),
    "highway": (lambda m, x: [g := m.b(x).sigmoid(), g * m.a(x) + (1 - g) * x][1], lambda a, b: a),
    "twice the gate": (lambda m, x: m.a(x) * (2 * m.b(x).sigmoid()), lambda a, b: 2 * a),
    "two gates": (lambda m, x: m.a(x) * m.b(x).sigmoid() * x.mean((2, 3), keepdim=True).sigmoid(), lambda a, b: a),
    "product of gates": (lambda m, x: m.a(x) * (m.b(x).sigmoid() * m.a(x).sigmoid()), lambda a, b: a),
    "surer gate": (lambda m, x: m.a(x).tanh() * m.b(x).sigmoid(), lambda a, b: a),
    "gate on the left": (lambda m, x: F.hardsigmoid(m.b(x)).mul(m.a(x)), lambda a, b: a),
    "linear unit": (lambda m, x: F.glu(torch.cat([m.a(x), m.b(x)], 1), 1), lambda a, b: a),
    "linear unit with a name": (lambda m, x: F.glu(torch.cat([m.a(x), m.b(x)], 1), dim=1), lambda a, b: a),
    "linear unit as a module": (lambda m, x: m.unit(torch.cat([m.a(x), m.b(x)], 1)), lambda a, b: a),
    "hard swish by hardtanh": (lambda m, x: x * F.hardtanh(x + 3, 0.0, max_val=6.0) / 6, lambda a, b: a),
    "hard swish by a module of hardtanh": (lambda m, x: m.a(x) * (m.tanh(m.a(x) + 3.0) / 6), lambda a, b: a),
    "SwiGLU": (lambda m, x: F.silu(m.b(x)) * m.a(x), lambda a, b: a),
    "GEGLU": (lambda m, x: m.a(x) * m.gelu(m.b(x)).flip(2), lambda a, b: a),
    "gate surer than an activation": (lambda m, x: F.silu(m.a(x)) * m.b(x).tanh(), lambda a, b: a),
    "gate expanded to an image": (
        lambda m, x: m.a(x) * m.b(x).mean((2, 3), True).sigmoid().expand_as(x),
        lambda a, b: a,
    ),
    "gate of the type of an image": (lambda m, x: m.b(x).sigmoid().type_as(other=x) * m.a(x), lambda a, b: a),
    "masked gate": (lambda m, x: m.a(x) * F.dropout(m.b(x).sigmoid(), 0.1).flip(1), lambda a, b: a),
    "selective kernels": (
        lambda m, x: (torch.stack([m.a(x), m.b(x)], 1) * torch.stack([m.b(x), m.a(x)], 1).softmax(1)).sum(1),
        lambda a, b: (a + b) / 2,
    ),
    "gate in a concatenation": (
        lambda m, x: torch.cat([m.a(x), m.b(x)], 1) * torch.cat([m.b(x).tanh(), m.a(x).sigmoid()], 1),
        lambda a, b: torch.cat([a, b], 1),
    ),
}

OF_ITSELF = ("swish", "hard swish", "hard swish by hardtanh", "GELU by erf", "GELU by tanh")


@pytest.mark.parametrize("name", GATED)
def test_products_with_gates(name):
    function, expected = GATED[name]
    parts = {"a": nn.Conv2d(3, 3, 1), "b": nn.Conv2d(3, 3, 1), "unit": nn.GLU(1), "six": nn.ReLU6(True)}
    parts |= {"tanh": nn.Hardtanh(0, 6), "gelu": nn.GELU()}
    if "m.a" not in inspect.getsource(function) or name in OF_ITSELF:
        parts |= {"a": nn.Identity()}
    model, x = lively(Net(function, **parts)), images(2, 3, 5, 5) - 0.5
    linear = linearize(model, input_shape=(3, 5, 5))
    assert_close(linear(x), expected(model.a(x), model.b(x)))


def test_means_of_other_gates():
    parts = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}
    x, seen = images(2, 4), images(7, 4, seed=4)
    highway = lively(Net(lambda m, x: [g := m.b(x).sigmoid(), g * m.a(x) + (1 - g) * x][1], **parts))
    mean = highway.b(seen).sigmoid().mean(0)
    assert_close(linearize(highway, gates=seen)(x), mean * highway.a(x) + (1 - mean) * x)
    unit = lively(Net(lambda m, x: F.glu(torch.cat([m.a(x), m.b(x)], -1)), **parts))
    assert_close(linearize(unit, gates=seen)(x), unit.a(x) * unit.b(seen).sigmoid().mean(0))
    swiglu = lively(Net(lambda m, x: F.silu(m.a(x)) * m.b(x), **parts))
    assert_close(linearize(swiglu, gates=seen)(x), F.silu(swiglu.a(seen)).mean(0) * swiglu.b(x))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((0, 3, 8, 8), "gates must be rows .* of one number or more"),
        ((2, 5, 8, 8), r"gates: .* not take images of shape \(5, 8, 8\) \("),
    ],
)
def test_gates_over_no_images_or_images_of_another_shape(shape, message):
    with pytest.raises(lrc.InputError, match=message) as caught:
        linearize(lively(Net(squeezed, **SQUEEZE)), gates=images(*shape))
    assert "\n" not in str(caught.value)


# --- attention -------------------------------------------------------------------------------------------------------


def heads(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], 2, -1).transpose(1, 2)


def by_hand(m: Net, x: Tensor) -> Tensor:
    q, k, v = (heads(t) for t in m.qkv(x).chunk(3, -1))
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + m.bias
    return (F.dropout(F.softmax(scores, -1), 0.1, m.training) @ v).transpose(1, 2).flatten(2)


def by_einsum(m: Net, x: Tensor) -> Tensor:
    q, k, v = (heads(t) for t in m.qkv(x).chunk(3, -1))
    weights = m.soft(torch.einsum("nhqd,nhkd->nhqk", q, k))
    return torch.einsum("n h q k, n h k d -> n h q d", weights, v).permute(0, 2, 1, 3).flatten(2)


def by_baddbmm(m: Net, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, -1)
    return torch.bmm(torch.softmax(torch.baddbmm(m.bias, q, k.transpose(1, 2)), dim=2), v)


def by_function(m: Net, x: Tensor) -> Tensor:
    q, k, v = (heads(t) for t in m.qkv(x).chunk(3, -1))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def values(m: nn.Module, x: Tensor) -> Tensor:
    return m.qkv(x).chunk(3, -1)[2]


def transformer(function: Any) -> nn.Module:
    model = Net(function, qkv=nn.Linear(4, 12), soft=nn.Softmax(-1))
    model.bias = nn.Parameter(torch.empty(5, 5))
    return lively(model)


@pytest.mark.parametrize("function", [by_hand, by_einsum, by_baddbmm, by_function])
def test_attention_mixes_its_values_uniformly(function):
    model, x = transformer(function), images(2, 5, 4)
    linear = linearize(model, input_shape=(5, 4))
    assert_close(linear(x), values(model, x).mean(1, keepdim=True).expand(2, 5, 4))
    assert not torch.allclose(linear(x), model(x))


def masked(m: Net, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, -1)
    scores = (q @ k.transpose(1, 2)).masked_fill(m.mask, float("-inf")) * 0.5
    return scores.softmax(-1) @ v


def masked_by_sum(m: Net, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, -1)
    return F.softmax(q @ k.transpose(1, 2) + m.mask * torch.finfo(torch.float32).min / 2, dim=-1) @ v


def masked_by_choice(m: Net, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, -1)
    return F.softmax(torch.where(m.mask, -1e9, q @ k.transpose(1, 2)), dim=-1) @ v


def masked_in_place(m: Net, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, -1)
    mask = x.new_full((5, 5), float("-inf"))
    mask.triu_(1)
    return F.softmax((q @ k.transpose(1, 2) + mask).double(), dim=-1).type_as(q) @ v


def masked_cosines(m: Net, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, -1)
    scores = (q @ k.transpose(1, 2)).masked_fill(m.mask, float("-inf")) / q.norm(dim=-1, keepdim=True)
    return torch.softmax(m.qkv(x)[..., :1].exp() * scores.div(F.softplus(m.qkv(x)[..., :1])), -1) @ v


def causal(m: Net, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v, None, 0.5, is_causal=True)  # with dropout


def function_with_mask(m: Net, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, -1)
    return F.scaled_dot_product_attention(value=v, key=k, query=q, attn_mask=~m.mask, dropout_p=0.5)


MASKED = [masked, masked_by_sum, masked_by_choice, masked_in_place, masked_cosines, causal, function_with_mask]


@pytest.mark.parametrize("function", MASKED)
def test_masked_attention_mixes_what_the_mask_allows(function):
    model, x = transformer(function), images(2, 5, 4)
    mask = torch.ones(5, 5).triu(1).bool()
    model.register_buffer("mask", mask)
    v = values(model, x)
    expected = torch.stack([v[:, : i + 1].mean(1) for i in range(5)], 1)
    linear = linearize(model, input_shape=(5, 4))
    assert_close(linear(x), expected)
    assert_close(linear(0 * x)[:, :1], values(model, 0 * x)[:, :1])  # a quotient of zeros must not get into the bias


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(batch_first, need_weights):
    attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
    model = lively(Net(lambda m, x: m.a(x, x, value=x, need_weights=need_weights)[0] + x, a=attention))
    x = images(2, 5, 4)
    mean = (x @ attention.in_proj_weight[8:].T + attention.in_proj_bias[8:]).mean(1 if batch_first else 0, True)
    linear = linearize(model, input_shape=(5, 4) if batch_first else None)
    assert_close(linear(x), attention.out_proj(mean) + x)
    assert_close(linearize(linear)(x), linear(x), 1e-15)
    with torch.no_grad():
        assert_close(linear(x), attention.out_proj(mean) + x)


def test_multihead_attention_with_masks_weights_and_other_sizes():
    attention = nn.MultiheadAttention(4, 2, batch_first=True, kdim=3, vdim=6)
    causal, padding = torch.ones(5, 5).triu(1).bool(), torch.tensor([[True, False, False, False, False]] * 2)
    options: dict[str, Any] = {"attn_mask": causal, "key_padding_mask": padding}
    model = lively(Net(lambda m, x: m.a(x[..., :4], x[..., :3], x, **options)[0][:, 1:], a=attention))
    x = images(2, 5, 6)
    v = F.linear(x, attention.v_proj_weight, attention.in_proj_bias[8:])
    expected = torch.stack([attention.out_proj(v[:, 1 : i + 1].mean(1)) for i in range(1, 5)], 1)
    assert_close(linearize(model)(x), expected)


def windowed(x: Tensor, size: int, shift: int) -> Tensor:
    """Each token the mean of those of its window, of whose tokens the shift must not have brought it from afar."""
    side = x.shape[1]
    shift = shift if size < side else 0
    place = (torch.arange(side) - shift) % side
    part = torch.bucketize(place, torch.tensor([side - size, side - shift]), right=True) if shift else 0 * place
    names = place // size * 3 + part
    names = torch.stack(torch.meshgrid(names, names, indexing="ij"), -1).flatten(0, 1)
    same = (names[:, None] == names).all(-1).double()
    return torch.einsum("tu,nuc->ntc", same / same.sum(1, keepdim=True), x.flatten(1, 2)).view_as(x)


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize(("size", "shift"), [(4, 0), (4, 2), (2, 1), (8, 4)])
def test_shifted_windows(kind, size, shift):
    model, x = lively(kind(4, [size, size], [shift, shift], 2)).eval(), images(2, 8, 8, 4)
    v = F.linear(x, model.qkv.weight[8:], model.qkv.bias[8:])
    linear = linearize(model, input_shape=(8, 8, 4))
    assert_close(linear(x), model.proj(windowed(v, size, shift)))
    assert_close(linearize(linear)(x), linear(x), 1e-15)


def test_windows_of_a_padded_image():
    model = lively(ShiftedWindowAttention(4, [4, 4], [0, 0], 2)).eval()
    x = images(1, 6, 6, 4)
    v = F.linear(F.pad(x, (0, 0, 0, 2, 0, 2)), model.qkv.weight[8:], model.qkv.bias[8:])  # as the network pads
    assert_close(linearize(model)(x), model.proj(windowed(v, 4, 0))[:, :6, :6])


def test_class_token_and_positions_go_into_b():
    with torch.device("meta"):
        sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8, "num_classes": 3}
        model = models.VisionTransformer(8, 4, **sizes)
    model = lively(model).eval()
    W, b = lrc.affine_map(model, (3, 8, 8))
    with torch.no_grad():
        model.class_token.mul_(3)
        model.encoder.pos_embedding.mul_(2)
    V, c = lrc.affine_map(model, (3, 8, 8))
    assert torch.equal(W, V) and not torch.allclose(b, c)


# --- norms -----------------------------------------------------------------------------------------------------------

NORMS = {
    "layers": nn.LayerNorm([3, 4, 4]),
    "layers of torchvision": models.convnext.LayerNorm2d(3),
    "groups": nn.GroupNorm(3, 3),
    "instances": nn.InstanceNorm2d(3, affine=True),
    "root mean squares": nn.RMSNorm([3, 4, 4]),
    "responses": nn.LocalResponseNorm(2),
    "function": Net(lambda m, x: F.layer_norm(x, x.shape[1:])),
    "function of groups": Net(lambda m, x: F.group_norm(x, 3)),
    "function of instances": Net(lambda m, x: F.instance_norm(x)),
    "stochastic depth": ops.StochasticDepth(0.3, "row"),
    "clamp": Net(lambda m, x: x.clamp(0.2, 0.4)),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("batchnorm", ["remove", "fold"])
def test_norms_without_statistics_are_removed(name, batchnorm):
    x = images(2, 3, 4, 4)
    assert torch.equal(linearize(lively(NORMS[name]), batchnorm=batchnorm)(x), x)


def test_instance_and_frozen_norms_are_folded():
    instance = nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
    call = Net(lambda m, x: F.instance_norm(x, m.i.running_mean, m.i.running_var, use_input_stats=False), i=instance)
    x = images(2, 3, 4, 4)
    for model in (instance, ops.FrozenBatchNorm2d(3), call):
        lively(model).eval()
        for norm in (m for m in model.modules() if hasattr(m, "running_mean")):
            norm.running_mean.copy_(torch.tensor([1.0, 2, 3]))
            norm.running_var.copy_(torch.tensor([4.0, 5, 6]))
        assert_close(linearize(model, batchnorm="fold").train()(x), model(x), 1e-6)
        assert torch.equal(linearize(model)(x), x)


# --- parts -----------------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    return lively(lrc.models.resnet8(classes=4, width=4)).eval()


def test_keeping_everything_is_the_network():
    model, x = network(), images(2, 3, 16, 16)
    assert torch.equal(linearize(model, keep=[""])(x), model(x))
    parts, y = chain().eval(), images(4, 3, 8, 8) - 0.5
    for keep in (["0", "1", "2"], [name for name, module in parts.named_modules() if not [*module.children()]]):
        assert torch.equal(linearize(parts, keep=keep)(y), parts(y))
    vit = lively(models.VisionTransformer(8, 4, 1, 2, 8, 8)).eval()
    assert torch.equal(linearize(vit, keep="encoder")(x[..., :8, :8]), vit(x[..., :8, :8]))


def test_keeping_nothing_is_the_linear_network():
    model, x = network(), images(2, 3, 16, 16)
    first = next(name for name, _ in model.named_children())
    for options in ({"keep": ()}, {"start": first}, {"stop": "fc"}, {"start": ""}):
        assert torch.equal(linearize(model, **options)(x), linearize(model)(x))


def chain() -> nn.Module:
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(True), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return lively(nn.Sequential(nn.Sequential(*layers), nn.Sequential(nn.Linear(36, 5), nn.ReLU()), nn.Linear(5, 3)))


def test_start_and_stop():
    model, x = chain().eval(), images(4, 3, 8, 8) - 0.5
    head = model[2]
    assert_close(linearize(model, start="1")(x), head(model[1][0](model[0](x))))
    late = model[0][2](model[0][:2](x))
    assert_close(linearize(model, start="0.3")(x), head(model[1][0](F.avg_pool2d(late, 2).flatten(1))))
    early = F.avg_pool2d(model[0][0](x), 2).flatten(1)
    assert_close(linearize(model, stop="0")(x), head(model[1](early)))
    assert_close(linearize(model, start="0.2", stop="0.2")(x), head(model[1](model[0][3:](model[0][:2](x)))))


def test_keep_operations_and_modules():
    model, x = chain().eval(), images(4, 3, 8, 8) - 0.5
    conv, norm, fc, head = model[0][0], model[0][2], model[1][0], model[2]
    pooled = F.avg_pool2d(conv(x).relu(), 2).flatten(1)
    assert_close(linearize(model, keep=(nn.ReLU,))(x), head(fc(pooled).relu()))
    assert_close(linearize(model, keep=(nn.ReLU, nn.BatchNorm2d, nn.MaxPool2d))(x), model(x), 1e-15)
    assert_close(linearize(model, keep=("0.2", "1"))(x), head(model[1](F.avg_pool2d(norm(conv(x)), 2).flatten(1))))
    gated = Net(lambda m, x: x * F.silu(x).sigmoid())
    assert torch.equal(linearize(gated, keep=(torch.Tensor.sigmoid, F.silu))(x), gated(x))


def test_what_is_kept_changes_nothing_in_place():
    def before(m: nn.Module, x: Tensor) -> Tensor:
        return x + m.conv(F.relu(m.norm(x), True))

    parts = {"norm": nn.BatchNorm2d(3), "act": nn.ReLU(True), "conv": nn.Conv2d(3, 3, 1)}
    module = lively(Net(lambda m, x: x + m.conv(m.act(m.norm(x))), **parts))
    function = lively(Net(before, **parts))
    x = images(2, 3, 4, 4) - 0.5
    expected = x + module.conv(x.relu())
    assert_close(linearize(module, keep=(nn.ReLU,))(x), expected)
    assert_close(linearize(function, keep=(F.relu,))(x), expected)


def relu_of_a_slice(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv(x)
    m.act(x[:, :2])
    return m.head(x * m.conv(x).sigmoid())


@pytest.mark.parametrize(
    ("act", "operation"),
    [
        (nn.ReLU(True), nn.ReLU),
        (Net(lambda m, x: x.relu_()), Tensor.relu),
        (Net(lambda m, x: F.relu(x, True)), F.relu),
    ],
)
def test_in_place_activation_of_a_slice(act, operation):
    model = lively(Net(relu_of_a_slice, conv=nn.Conv2d(3, 3, 1), act=act, head=nn.Conv2d(3, 2, 1)))
    x = images(2, 3, 4, 4)
    assert_close(linearize(model)(x), model.head(model.conv(x)))
    for options in ({"keep": [operation]}, {"start": "head"}, {"gates": x}):
        with pytest.raises(lrc.InputError, match="it changes in place what is used later through a view: make"):
            linearize(model, **options)


@pytest.mark.parametrize("shared", [False, True])
def test_a_block_kept_whole_changes_in_place_what_it_did_in_the_network(shared):
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.conv(x)
        return x + m.branch((x if shared else m.norm(x)).flatten(2).unflatten(2, (4, 4)))

    branch = nn.Sequential(nn.ReLU(True), nn.Conv2d(3, 3, 1))
    model = lively(Net(forward, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3), branch=branch)).eval()
    x = images(2, 3, 4, 4) - 0.5
    z = model.conv(x)
    linear = linearize(model, keep="branch")
    assert_close(linear(x), (z.relu() if shared else z) + branch[1](z.relu()))
    assert_close(linearize(linear, keep="branch")(x), linear(x), 1e-15)
    before = x.clone()
    linearize(nn.Sequential(branch), keep="0")(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("forward", "operation"),
    [
        (lambda m, x: [x := x * 2, x.relu_(), x][-1], Tensor.relu_),
        (lambda m, x: [x := x * 2, x.relu_(), x][-1], Tensor.relu),
        (lambda m, x: F.relu_(x * 2), F.relu_),
        (lambda m, x: m.act(x * 2), nn.ReLU),
    ],
)
def test_an_operation_is_kept_in_place_or_not_and_without_a_tuple(forward, operation):
    x = images(2, 3) - 0.5
    model = Net(forward, act=nn.ReLU(True))
    for keep in (operation, [operation]):
        assert torch.equal(linearize(model, keep=keep)(x), 2 * x.relu())


def test_a_module_of_two_names_is_kept_by_either():
    block = nn.Sequential(nn.ReLU())
    model, x = Net(lambda m, x: m.second(m.first(x) - 0.5), first=block, second=block), images(2, 3) - 0.5
    for keep in ("first", "second", "second.0"):
        assert torch.equal(linearize(model, keep=keep)(x), model(x))
    assert torch.equal(linearize(model, start="second")(x), x - 0.5)


def test_a_kept_module_need_not_be_traced():
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    model, x = nn.Sequential(nn.ReLU(), nn.Sequential(Branch()), nn.ReLU()), images(2, 3) - 1
    assert torch.equal(linearize(model, keep="1.0")(x), -x)
    assert torch.equal(linearize(model, keep=[Branch])(x), -x)
    assert torch.equal(linearize(model, rules={Branch: "identity"})(x), x)


WRONG_PARTS = [
    ({"keep": ["stags"]}, "ResNet has no module 'stags': did you mean 'stages' or"),
    ({"start": "layer3"}, "has no module 'layer3': did you mean"),
    ({"stop": "stem2"}, "did you mean 'stem'"),
    ({"start": "fc", "stop": "stem"}, "nothing to linearize: 'fc' runs after 'stem'"),
    ({"keep": [nn.GELU]}, "does not call GELU; it calls .*Conv2d"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_PARTS)
def test_parts_that_do_not_exist(options, message):
    with pytest.raises(lrc.InputError, match=message):
        linearize(network(), **options)


@pytest.mark.parametrize("option", ["start", "keep"])
def test_a_module_that_does_not_run(option):
    model = Net(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2), unused=nn.ReLU())
    for name in ("unused", "a.out_proj"):
        with pytest.raises(lrc.InputError, match=f"'{name}' is not run in eval mode, or runs inside"):
            linearize(model, **{option: name})
    with pytest.raises(lrc.InputError, match=r"'1\.fc' is not run"):
        linearize(nn.Sequential(nn.ReLU(), Net(lambda m, x: m.fc(x), **LINEAR)), rules={Net: "identity"}, keep="1.fc")


@pytest.mark.parametrize("options", [{"start": 2}, {"stop": 2}, {"keep": nn.ReLU()}])
def test_paths_that_are_none(options):
    with pytest.raises(lrc.InputError, match="is no path of a module: give one|must be the name of a module, not int"):
        inspect.unwrap(linearize)(nn.Sequential(nn.ReLU()), **options)


def test_what_spreads_a_network_over_devices():
    with pytest.raises(lrc.InputError, match=r"DataParallel .* give that network, model\.module"):
        linearize(nn.DataParallel(nn.ReLU()))


# --- rules of one's own, and their verification ----------------------------------------------------------------------


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 3.0))

    def forward(self, x: Tensor, power: int = 2) -> Tensor:
        return self.scale * x**power


def cube(x: Tensor) -> Tensor:
    return x**3


def squares() -> nn.Module:
    return lively(nn.Sequential(nn.Linear(4, 4), Net(lambda m, x: m.s(x, power=2), s=Square()), nn.Linear(4, 3)))


OWN = {
    "identity": ("identity", lambda m, z: z),
    "a rule of the table": (RULES[nn.ReLU], lambda m, z: z),
    "a function": (lambda module, x, power: power * module.scale * x, lambda m, z: 2 * m.scale * z),
    "a module": (nn.Linear(4, 4).double(), None),
}


@pytest.mark.parametrize("name", OWN)
def test_rules_of_ones_own(name):
    rule, expected = OWN[name]
    model, x = squares(), images(2, 4)
    if name == "a module":
        model[1].function, expected = (lambda m, x: m.s(x)), (lambda m, z: rule(z))
    linear = linearize(model, rules={Square: rule}, input_shape=(4,))
    expected_z = model[2](expected(model[1].s, model[0](x)))
    assert_close(linear(x), expected_z)
    assert_close(linearize(linear)(x), expected_z)
    assert Square not in RULES


def test_rules_for_functions():
    class Cubes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return cube(torch.sort(x).values)

    model, x = Cubes(), images(2, 4)
    rules = {cube: "identity", torch.sort: "identity", (getattr, "values"): "identity"}
    assert torch.equal(linearize(model, rules=rules)(x), x)
    assert torch.equal(linearize(model, rules=rules | {cube: lambda x: 5 * x})(x), 5 * x)
    pooled = linearize(nn.MaxPool1d(2), rules={nn.MaxPool1d: nn.AvgPool1d(4)})
    assert torch.equal(pooled(x), F.avg_pool1d(x, 4))


def test_a_rule_for_a_function_that_the_tracer_does_not_see():
    model = Net(lambda m, x: m.cube(x))
    model.cube = cube
    with pytest.raises(lrc.InputError, match="rules: no call of cube was seen: .* global name, not as an attribute"):
        linearize(model, rules={cube: "identity"})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({Square: "remove"}, "'remove' must be 'identity', 'linear', a rule of RULES, or a function"),
        ({Square: nn.AvgPool1d}, "must be 'identity', 'linear'"),
        ({"Square": "identity"}, "'Square' is no operation: give the class of a module, or a function"),
        ({nn.ReLU(): "identity"}, "no operation"),
    ],
)
def test_rules_that_are_none(rules, message):
    with pytest.raises(lrc.InputError, match=message):
        linearize(squares(), rules=rules)


def test_verification_names_the_first_node_that_is_not_affine():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Square()), nn.Linear(4, 4), Square())
    with pytest.raises(lrc.InputError, match=r"verify: node 'model_1_0' \(Square in 1\.0\) is not affine, .* by \d"):
        linearize(model, rules={Square: "linear"}, input_shape=(4,))
    with pytest.raises(lrc.InputError, match=r"verify: node '\w*' \(Replacement in 1\.0\) is not affine"):
        linearize(model, rules={Square: lambda module, x: x.square()}, input_shape=(4,))
    with pytest.raises(lrc.InputError, match="does not take images of shape .5,.: .*shapes cannot"):
        linearize(nn.Linear(4, 4), input_shape=(5,))
    linearize(nn.Linear(4, 4), verify=True)  # of an unknown shape: nothing to check on


def test_verification_leaves_the_network_as_it_is():
    model = lrc.models.resnet8(classes=4, width=4).eval()
    linear = linearize(model, verify=True)
    assert {p.dtype for p in linear.parameters()} == {torch.float32}
    assert {id(p) for p in linear.parameters()} <= {id(p) for p in model.parameters()}
    assert (
        superposition_error(copy.deepcopy(linear).double(), model.input_shape)
        < 1e-12
        < superposition_error(model, (3, 8, 8))
    )


# --- forms -----------------------------------------------------------------------------------------------------------

FORMS = {
    "in place by position": (lambda m, x: [y := x * 1, F.relu(y, True), y][2], lambda x: x),
    "in place by name": (lambda m, x: [y := x - 1, F.elu(y, inplace=True), y][2], lambda x: x - 1),
    "shape of another": (lambda m, x: x.mean(1, True).expand_as(x.exp()), lambda x: x.mean(1, True).expand_as(x)),
    "view of another": (lambda m, x: x.flatten(1).view_as(x * x), lambda x: x),
    "view of another with a name": (lambda m, x: x.flatten(1).view_as(other=x * x), lambda x: x),
    "names in any order": (
        lambda m, x: F.relu(inplace=False, input=torch.flatten(start_dim=1, input=x)),
        lambda x: x.flatten(1),
    ),
    "ellipsis": (lambda m, x: x[..., ::2], lambda x: x[..., ::2]),
    "padding": (lambda m, x: F.pad(x, (1, 1), value=2.0), lambda x: F.pad(x, (1, 1), value=2.0)),
    "choice": (lambda m, x: torch.where(torch.tensor([True, False, True, True]), x, -x), None),
    "mask": (lambda m, x: x.masked_fill(torch.tensor([True, False, True, True]), 7.0), None),
    "einsum of three": (
        lambda m, x: torch.einsum("ij,nchj,k->nchi", m.a.weight, x, m.b.bias),
        lambda x: torch.einsum("ij,nchj,k->nchi", FORM_PARTS["a"].weight, x, FORM_PARTS["b"].bias),
    ),
    "axes": (lambda m, x: torch.swapaxes(x, 1, 2).moveaxis(3, 1).ravel(), lambda x: x.permute(0, 3, 2, 1).flatten()),
}
FORM_PARTS = {"a": nn.Linear(4, 4).double(), "b": nn.Linear(4, 4).double()}


@pytest.mark.parametrize("name", FORMS)
def test_forms(name):
    function, expected = FORMS[name]
    model, x = Net(function, **FORM_PARTS), images(2, 3, 4, 4) - 0.5
    assert_close(linearize(model)(x.clone()), (expected or (lambda x: model(x)))(x))


# --- ten networks that cannot be linearized as they are --------------------------------------------------------------


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def one_hot(m: Net, x: Tensor) -> Tensor:
    return m.fc.weight[x.argmax(1)]


LINEAR = {"fc": nn.Linear(4, 4)}
IMPOSSIBLE = {
    "branching": (Net(lambda m, x: x if x.sum() > 0 else -x), "control flow.* in the forward of 1 "),
    "softmax output": (nn.Softmax(1), r"'model_1' \(Softmax in 1\): no rule .* after the logits, take it out"),
    "top k": (Net(lambda m, x: x.topk(4).values), r"'topk' \(topk in 1\): no rule"),
    "recurrence": (Net(lambda m, x: m.lstm(x)[0], lstm=nn.LSTM(4, 4)), r"\(LSTM in 1\.lstm\): no rule"),
    "product": (Net(lambda m, x: m.fc(x) * x, **LINEAR), r"'mul' \(mul in 1\): .*'model_1_fc' and 'model_0'.* gate"),
    "argmax": (Net(one_hot, **LINEAR), r"\(getitem in 1\): .* 'argmax' depends on the image"),
    "custom function": (Net(lambda m, x: Sign.apply(x)), r"\(sign in 1\): no rule"),
    "entropy": (Net(lambda m, x: x * x.abs().log()), r"\(mul in 1\): .*'model_0' and 'log'"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_be_linearized_says_where_it_is_and_the_ways_past_it(name):
    part, message = IMPOSSIBLE[name]
    model, x = nn.Sequential(nn.Linear(4, 4), part, nn.ReLU(), nn.Linear(4, 3)).double().eval(), images(3, 4)
    with pytest.raises(lrc.InputError, match=message) as caught:
        linearize(model)
    path = "1.lstm" if name == "recurrence" else "1"
    assert f'keep=("{path}",)' in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_close(linearize(model, keep=("1",))(x), model[3](part(model[0](x))), 1e-14)
    assert_close(linearize(model, rules={type(part): "identity"}, input_shape=(4,))(x), model[3](model[0](x)), 1e-14)
    assert linear_map(nn.Sequential(model[0], model[3]), (4,)).shape == (3, 4)


@pytest.mark.parametrize("name", [name for name in IMPOSSIBLE if name != "branching"])
def test_the_advice_of_a_refusal_works(name):
    model = nn.Sequential(nn.Linear(4, 4), IMPOSSIBLE[name][0], nn.ReLU(), nn.Linear(4, 3)).double().eval()
    with pytest.raises(lrc.InputError) as caught:
        linearize(model)
    rule, kept = (
        part.partition(" or ")[0].strip(", ;")
        for part in re.findall(r"(?:rules|keep)=.*?(?:,\)|\})", str(caught.value))
    )
    key = rule.removeprefix("rules={").removesuffix(": f}")
    names = {"torch": torch, "operator": operator, "Net": Net}
    assert linearize(model, keep=eval(kept.removeprefix("keep="), names))(images(2, 4)).shape == (2, 3)
    stand_ins = {"recurrence": lambda m, x: (x, None), "top k": lambda x, k: types.SimpleNamespace(values=x)}
    own = stand_ins.get(name, (lambda m, x: x) if key in ("Net", "torch.nn.Softmax") else lambda x: x)
    linear = linearize(model, rules={eval(key, names): own}, input_shape=(4,))
    assert_close(linear(images(2, 4)), model[3](model[0](images(2, 4))), 1e-14)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m, x: x.sigmoid() * m.fc(x).sigmoid(), r"multiplies 'sigmoid' and 'sigmoid_1', .* not clear"),
        (lambda m, x: F.relu6(x) * m.fc(x), "which is the gate is not clear"),
        (lambda m, x: (x.softmax(1) + x) * m.fc(x), "which is the gate is not clear"),
        (lambda m, x: m.fc(x) + x.softmax(1), "a softmax that weighs nothing"),
        (lambda m, x: x * x.softmax(), "a softmax must say over which dimension"),
        (lambda m, x: torch.where(x > 0, x, m.fc(x)), "the image decides by 'gt'"),
        (lambda m, x: F.scaled_dot_product_attention(x, x, x, scale=x.mean()), "'mean' among its options depends"),
        (lambda m, x: x.clamp(max=x.mean()), r"\(clamp\): it is linear in its first argument, but 'mean' depends"),
        (lambda m, x: x.to(torch.int64).to(x.dtype), "a cast to torch.int64 is not linear"),
        (lambda m, x: x.masked_fill(m.fc.bias > 0, float("-inf")), "puts in infinite values"),
        (lambda m, x: F.pad(x, (1, 1), value=float("-inf")), "its padding is infinite"),
        (lambda m, x: torch.add(x, x, out=x.clone()), "changes in place what is given as `out`"),
        (lambda m, x: x.sigmoid() * 2 + x.exp(), "'exp'"),
    ],
)
def test_other_refusals(function, message):
    with pytest.raises(lrc.InputError, match=message):
        linearize(Net(function, **LINEAR))


def test_tracing_that_fails_in_the_networks_own_forward():
    with pytest.raises(
        lrc.InputError, match="in its own forward: .* input_shape=.*, as an example; else make that independent"
    ):
        linearize(Net(lambda m, x: x if x.sum() > 0 else -x))
