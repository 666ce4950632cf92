"""linearize, linear_map, affine_map against closed forms, brute force, and another way to make a network linear."""

import copy
import inspect
import operator
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
import torchvision
from linearizing import Net, apply, assert_close, images, lively, slim
from torch import Tensor, fx, nn
from torch.nn.utils import prune

import lrc
from lrc.linearization import RULES, affine_map, linear_map, linearize


def resnet(seed: int = 0) -> nn.Module:
    model = lively(lrc.models.resnet8(classes=4, width=6), seed)
    model.normalize.mean.fill_(0.4)
    model.normalize.std.fill_(0.25)
    return model


def vgg() -> nn.Module:
    model = lively(lrc.models.vgg6(classes=4, width=4))
    model.stack[0].mean.fill_(0.4)
    model.stack[0].std.fill_(0.25)
    return model


CASES = [
    (resnet, "remove", "average"),
    (resnet, "fold", "average"),
    (vgg, "remove", "average_inside"),
    (vgg, "fold", "average"),
]


# --- one linear map, whatever the way to it --------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "batchnorm", "pooling"), CASES)
def test_the_linear_network_is_w_x_plus_b(make, batchnorm, pooling):
    model = make()
    linear = linearize(model, batchnorm=batchnorm, pooling=pooling)
    W, b = affine_map(model, batchnorm=batchnorm, pooling=pooling)
    x = images(3, 3, 32, 32)
    assert W.shape == (4, 3, 32, 32) and W.dtype == torch.float64 and not W.requires_grad and not b.requires_grad
    assert W.abs().max() > 0 and b.abs().max() > 0
    assert_close(linear(x), apply(W, x) + b)


def test_w_is_the_brute_force_jacobian_anywhere():
    model = resnet()
    linear = linearize(model)
    x = images(1, 3, 32, 32)
    jacobian = torch.autograd.functional.jacobian(linear, x)
    assert_close(linear_map(model), jacobian[0, :, 0])
    assert not torch.allclose(torch.autograd.functional.jacobian(model.eval(), x)[0, :, 0], jacobian[0, :, 0])


def test_w_agrees_with_finite_differences():
    model, x = resnet(), images(1, 3, 32, 32)
    linear, W = linearize(model), linear_map(model)
    for channel, row, column in [(0, 0, 0), (1, 15, 16), (2, 31, 30), (0, 20, 3)]:
        step = torch.zeros_like(x)
        step[0, channel, row, column] = 0.5  # not small: the network is linear
        assert_close(linear(x + step)[0] - linear(x - step)[0], W[:, channel, row, column], 1e-8)


def test_superposition():
    linear = linearize(resnet(), batchnorm="fold")
    x, y = images(2, 5, 3, 32, 32)
    assert_close(linear(2 * x - 3 * y) - linear(0 * x), 2 * linear(x) - 3 * linear(y) + linear(0 * x))


def test_b_is_the_output_at_the_black_image():
    model = vgg()
    assert_close(affine_map(model)[1], linearize(model)(torch.zeros(1, 3, 32, 32, dtype=torch.float64))[0])


def test_a_hand_written_twin_of_a_small_resnet():
    model = resnet()

    def block(b: nn.Module, x: Tensor) -> Tensor:
        short = b.shortcut[0](x) if isinstance(b.shortcut, nn.Sequential) else x
        return b.conv2(b.conv1(x)) + short

    def twin(x: Tensor) -> Tensor:
        x = model.stem((x - 0.4) / 0.25)
        for b in model.stages:
            x = block(b, x)
        return x.mean((2, 3)) @ model.fc.weight.T + model.fc.bias

    x = images(4, 3, 32, 32)
    assert_close(linearize(model)(x), twin(x))


def test_folding_batch_norm_is_exact_for_a_network_without_activations():
    layers = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(180, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)
    model, x = lively(nn.Sequential(*layers)).eval(), images(4, 3, 8, 8)
    assert_close(linearize(model, batchnorm="fold")(x), model(x))
    assert_close(apply(affine_map(model, (3, 8, 8), batchnorm="fold")[0], x[:1] - x[1:2]), model(x)[:1] - model(x)[1:2])


def test_folding_without_scale_or_in_training_mode():
    model, x = lively(nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(180, 4))), images(4, 3, 8, 8)
    norm = nn.BatchNorm2d(5, affine=False, eps=0.1).double()
    norm.running_var.fill_(3.0)
    model.insert(1, norm)
    expected = model.eval()(x)
    linear = linearize(model.train(), batchnorm="fold")
    assert_close(linear.train()(x), expected)
    assert (norm.running_var == 3).all()


def test_removing_batch_norm_is_the_network_without_it():
    model = vgg()
    bare = copy.deepcopy(model)
    for i, layer in enumerate(bare.stack):
        if isinstance(layer, nn.BatchNorm2d):
            bare.stack[i] = nn.Identity()
    assert torch.equal(linear_map(model), linear_map(bare))
    assert not torch.allclose(linear_map(model), linear_map(model, batchnorm="fold"))


@pytest.mark.parametrize(("make", "batchnorm", "pooling"), CASES)
def test_linearizing_twice_changes_nothing(make, batchnorm, pooling):
    once = linearize(make(), batchnorm=batchnorm, pooling=pooling)
    twice = linearize(once, batchnorm=batchnorm, pooling=pooling)

    def operations(network: fx.GraphModule) -> list[tuple[str, object]]:
        return sorted((node.op, str(node.target)) for node in network.graph.nodes)

    assert operations(once) == operations(twice)
    assert torch.equal(linear_map(once, batchnorm=batchnorm), linear_map(twice, batchnorm=batchnorm))


# --- the networks of torchvision -------------------------------------------------------------------------------------


@contextmanager
def linear_functions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An independent way to make a network linear: the functions that layers call, replaced while it runs."""

    def average(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
        return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode)

    with monkeypatch.context() as patch:
        patch.setattr(F, "relu", lambda x, inplace=False: x)
        patch.setattr(F, "batch_norm", lambda x, *_, **__: x)
        patch.setattr(F, "max_pool2d", average)
        yield


FAMILIES = {
    "resnet18": (32, {}),
    "densenet121": (32, {}),
    "googlenet": (32, {"aux_logits": True, "transform_input": True, "init_weights": False}),
    "inception_v3": (75, {"aux_logits": True, "transform_input": True, "init_weights": False}),
    "alexnet": (63, {}),
    "vgg11": (32, {}),
    "vgg11_bn": (32, {}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_of_torchvision(name, monkeypatch):
    size, options = FAMILIES[name]
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(num_classes=7, **options)
        model = slim(model) if name.startswith(("alexnet", "vgg")) else model
    model = lively(model).train()
    W, b = affine_map(model, (3, size, size))
    x = images(1, 3, size, size).requires_grad_()
    with linear_functions(monkeypatch):
        z = model.eval()(x)
        (row,) = torch.autograd.grad(z[0, 3], x)
    assert_close(apply(W, x) + b, z)
    assert_close(W[3], row[0])


# --- every form of an operation --------------------------------------------------------------------------------------

IDENTITIES = {
    "module": Net(lambda m, x: m.act(x), act=nn.ReLU()),
    "in-place module": Net(lambda m, x: m.act(x * 1), act=nn.ReLU(inplace=True)),
    "function": Net(lambda m, x: F.relu(x)),
    "in-place function": Net(lambda m, x: F.relu(x * 1, inplace=True)),
    "function with underscore": Net(lambda m, x: F.relu_(x * 1)),
    "torch function": Net(lambda m, x: torch.relu(x)),
    "method": Net(lambda m, x: x.relu()),
    "in-place method": Net(lambda m, x: (x * 1).relu_()),
    "named argument": Net(lambda m, x: F.leaky_relu(input=x, negative_slope=0.2)),
    "twice the same module": Net(lambda m, x: m.act(m.act(x) - 1) + 1, act=nn.ReLU()),
    "other activations": nn.Sequential(nn.GELU(), nn.SiLU(), nn.Tanh(), nn.PReLU(), nn.Hardswish(), nn.Softplus()),
    "dropout": nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout()),
    "functional dropout": Net(lambda m, x: F.dropout(x, 0.5, training=m.training)),
    "dropout that is always on": Net(lambda m, x: F.dropout(x, 0.5)),
    "batch norm": nn.BatchNorm2d(3),
    "functional batch norm": Net(lambda m, x: F.batch_norm(x, m.n.running_mean, m.n.running_var), n=nn.BatchNorm2d(3)),
    "in-place call without its result": Net(lambda m, x: [x := x * 1, F.relu_(x), x][-1]),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_forms_of_operations_that_become_the_identity(name):
    x = images(2, 3, 4, 4) - 0.5
    assert_close(linearize(IDENTITIES[name].double())(x), x, 1e-15)


def iadd(m: Net, x: Tensor) -> Tensor:
    y = F.relu(x)  # a tensor of its own, so x stays as it is
    y += 1
    return x + y


def iadd_alias(m: Net, x: Tensor) -> Tensor:
    x = x * 2
    y = x
    x += 1
    return x + y


def statement(m: Net, x: Tensor) -> Tensor:
    x = x * 2
    x.add_(1).mul_(3)
    return x


def after_in_place_relu(m: Net, x: Tensor) -> Tensor:
    x = x * 2
    y = m.act(x)
    y -= 1
    return x


def filled(m: Net, x: Tensor) -> Tensor:
    threes, zeros, means = torch.zeros_like(x), torch.ones_like(x), torch.empty_like(x)
    threes.fill_(3)
    zeros.zero_()
    means.fill_(value=x.mean())
    return x * threes + zeros + means


def on_constants(m: Net, x: Tensor) -> Tensor:
    mask, weight, made = torch.ones_like(x), m.c.weight * 1, torch.ones(4)
    mask.mul_(2).triu_()
    weight *= 3
    made.add_(x.new_ones(4))  # of a tensor that is none of the stand-ins, used twice
    F.relu_(weight)
    return x * mask * weight[0, 0] + made + x.new_zeros(4).masked_fill_(torch.tensor([True, False] * 2), 5) - made


ARITHMETIC = {
    "filled in place": (Net(filled), lambda x: 3 * x + x.mean()),
    "constants changed in place": (Net(on_constants, c=nn.Linear(1, 1)), None),
    "in place on what nothing uses later": (Net(lambda m, x: [torch.empty_like(x).copy_(x.exp()), 2 * x][1]), None),
    "in place on the result of an activation": (Net(iadd), lambda x: x + (x + 1)),
    "in place on a tensor of two names": (Net(iadd_alias), lambda x: 2 * (2 * x + 1)),
    "in place without using the result": (Net(statement), lambda x: 3 * (2 * x + 1)),
    "in place behind an in-place activation": (Net(after_in_place_relu, act=nn.ReLU(True)), lambda x: 2 * x - 1),
    "in place on the input": (Net(lambda m, x: x.sub_(0.5).div_(2)), lambda x: (x - 0.5) / 2),
    "constants on the left": (Net(lambda m, x: 1 - 2 * x), lambda x: 1 - 2 * x),
    "shapes": (Net(lambda m, x: x.view(x.size(0), -1) / x.shape[2] ** 0.5), lambda x: x.flatten(1) / 2),
    "slices and concatenation": (Net(lambda m, x: torch.cat([x[:, 1:], x[:, :1]], 1)), lambda x: x.roll(-1, 1)),
    "chunks": (Net(lambda m, x: x.chunk(2, dim=2)[1] - x.chunk(2, dim=2)[0]), lambda x: x[:, :, 2:] - x[:, :, :2]),
    "a tensor made in forward": (Net(lambda m, x: x * torch.tensor([1.0, 2.0, 3.0])[:, None, None]), None),
    "a function of the weights": (Net(lambda m, x: x * m.c.weight.abs().sum().sqrt(), c=nn.Linear(1, 1)), None),
    "statistics": (Net(lambda m, x: x - x.mean((2, 3), keepdim=True)), lambda x: x - x.mean((2, 3), keepdim=True)),
    "einsum": (Net(lambda m, x: torch.einsum("nchw,oc->nohw", x, m.c.weight), c=nn.Linear(3, 2)), None),
    "dead branch": (Net(lambda m, x: [x.softmax(1).max(), x * 2][1]), lambda x: 2 * x),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_stays(name):
    model, expected = ARITHMETIC[name]
    model.double()
    x = images(2, 3, 4, 4)
    before = x.clone()
    out = linearize(model)(x)
    assert torch.equal(x, before)
    assert_close(out, (expected or model)(x.clone()), 1e-12)


POOLS = {
    "padded module": nn.MaxPool2d(3, 2, 1),
    "ceiling": nn.MaxPool2d(3, 2, ceil_mode=True),
    "ceiling and padded": nn.MaxPool2d((3, 2), (2, 2), (1, 0), ceil_mode=True),
    "padded function": Net(lambda m, x: F.max_pool2d(x, 3, 2, 1)),
    "padded function with names": Net(lambda m, x: F.max_pool2d(kernel_size=3, input=x, padding=1, stride=2)),
    "function with the default stride": Net(lambda m, x: F.max_pool2d(x, 2)),
    "padded torch function": Net(lambda m, x: torch.max_pool2d(x, [3, 3], [2, 2], [1, 1])),
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("pooling", ["average", "average_inside"])
def test_average_pooling_has_the_geometry_of_max_pooling(name, pooling):
    model, x = POOLS[name], images(2, 3, 8, 8)
    out = linearize(model, pooling=pooling)(x)
    assert out.shape == model(x).shape
    ones = linearize(model, pooling=pooling)(torch.ones_like(x))
    assert torch.allclose(ones[:, :, 1:-1, 1:-1], torch.ones(()).double())
    assert torch.allclose(ones, torch.ones(()).double()) == (pooling == "average_inside" or "padded" not in name)


def test_padding_counts_as_zeros_or_not_at_all():
    x, pool = images(1, 1, 4, 4), nn.MaxPool2d(3, 2, 1)
    corner = x[0, 0, :2, :2].sum()
    assert_close(linearize(pool)(x)[0, 0, 0, 0], corner / 9)
    assert_close(linearize(pool, pooling="average_inside")(x)[0, 0, 0, 0], corner / 4)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_pooling_in_one_two_and_three_dimensions(dims):
    x = images(2, 3, *[6] * dims)
    module, function = getattr(nn, f"MaxPool{dims}d")(2), getattr(F, f"max_pool{dims}d")
    expected = getattr(F, f"avg_pool{dims}d")(x, 2)
    assert torch.equal(linearize(module)(x), expected)
    assert torch.equal(linearize(Net(lambda m, x: function(x, 2)))(x), expected)
    adaptive = getattr(F, f"adaptive_avg_pool{dims}d")(x, 4)
    assert torch.equal(linearize(getattr(nn, f"AdaptiveMaxPool{dims}d")(4))(x), adaptive)


# --- what cannot be linearized is named ------------------------------------------------------------------------------

REFUSED = {
    "softmax": (nn.Sequential(nn.Linear(4, 4), nn.Softmax(1)), r"'model_1' \(Softmax in 1\): no rule"),
    "functional softmax": (
        nn.Sequential(nn.Linear(4, 4), Net(lambda m, x: F.softmax(x, 1))),
        r"\(softmax in 1\): no rule",
    ),
    "method": (Net(lambda m, x: x.exp()), r"'exp' \(exp\): no rule"),
    "in-place method without its result": (Net(lambda m, x: [x.exp_(), x][1]), r"\(exp\): no rule"),
    "normalization by its own sum": (Net(lambda m, x: x / x.sum()), r"'truediv'.* first argument, but 'sum_1'"),
    "reciprocal": (Net(lambda m, x: 1 / x), r"first argument, but 'x' depends"),
    "product of branches": (
        Net(lambda m, x: x * m.fc(x), fc=nn.Linear(4, 4)),
        r"'mul'.* multiplies 'x' and 'model_fc'",
    ),
    "square": (Net(lambda m, x: torch.mul(x, x)), r"multiplies 'x' and 'x'"),
    "product of matrices": (Net(lambda m, x: x @ x.T), r"multiplies 'x' and 'getattr_1'"),
    "power": (Net(lambda m, x: x**3), r"'pow_1'.*no rule"),
    "power of two": (Net(lambda m, x: x**2), r"'mul'.* multiplies 'x' and 'x'"),
    "weights from the image": (Net(lambda m, x: F.linear(x, x)), r"first argument, but 'x' depends"),
    "recurrence": (nn.Sequential(nn.Sequential(nn.LSTM(4, 4))), r"LSTM in 0\.0\)"),
    "detach": (Net(lambda m, x: x.detach()), r"\(detach\)"),
    "noise": (Net(lambda m, x: x + torch.randn_like(x)), r"\(randn_like\)"),
    "place of the maximum": (Net(lambda m, x: x.max(1).indices), r"'max_1' \(max\): the image decides which indices"),
    "no statistics": (nn.BatchNorm1d(4, track_running_stats=False), r"no running statistics"),
    "batch statistics": (Net(lambda m, x: F.batch_norm(x, None, None, training=True)), r"no running statistics"),
    "dilation": (nn.MaxPool1d(2, dilation=2), r"dilation"),
    "indices": (Net(lambda m, x: F.max_pool1d(x, 2, return_indices=True)[0]), r"indices"),
    "adaptive indices": (Net(lambda m, x: F.adaptive_max_pool1d(x, 2, return_indices=True)[0]), r"indices"),
    "in place on dropout, which is its input": (
        Net(lambda m, x: [x := x * 2, y := F.dropout(x, 0.5, m.training), operator.iadd(y, 1), x + y][3]),
        r"'iadd' \(iadd\): it changes in place what is used later",
    ),
    "in place without another form": (
        Net(lambda m, x: [y := torch.empty_like(x), y.set_(x), y][2]),
        r"\(set_\): it changes in place a tensor, and has no form that does not",
    ),
    "rounded quotient": (Net(lambda m, x: torch.div(x, 2, rounding_mode="floor")), r"'div' .*a rounded quotient"),
    "product, and no rule for all products": (
        Net(lambda m, x: x * m.fc(x), fc=nn.Linear(4, 4)),
        r"make it a module of its own and give that a rule, or keep it non-linear: keep=\(operator\.mul,\)",
    ),
    "in place under two names": (Net(lambda m, x: [y := x.view(-1), y.add_(1), x][2]), r"'add_'.*through a view"),
    "branch on values": (Net(lambda m, x: x if x.sum() > 0 else -x), r"cannot trace Net \(.*control flow"),
    "constant": (Net(lambda m, x: torch.ones(2, 3)), r"does not depend on its input"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_linearized_is_named(name):
    model, message = REFUSED[name]
    model.train()
    with pytest.raises(lrc.InputError, match=message) as caught:
        linearize(model, batchnorm="fold")
    assert "\n" not in str(caught.value)
    assert all(m.training for m in model.modules())


def test_choices_that_do_not_exist():
    with pytest.raises(lrc.InputError, match="batchnorm must be one of 'remove', 'fold', not 'drop'"):
        inspect.unwrap(linearize)(nn.Linear(2, 2), batchnorm="drop")  # without the type checks of the tests
    with pytest.raises(lrc.InputError, match="pooling must be one of 'average', 'average_inside', not 'max'"):
        inspect.unwrap(linearize)(nn.Linear(2, 2), pooling="max")


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def test_a_rule_of_ones_own(monkeypatch):
    model, x = nn.Sequential(nn.Linear(4, 3), Square()).double(), images(2, 4)
    with pytest.raises(lrc.InputError, match=r"'mul' \(mul in 1\)"):
        linearize(model)
    monkeypatch.setitem(RULES, Square, RULES[nn.ReLU])
    assert torch.equal(linearize(model)(x), model[0](x))


# --- the model stays as it was ---------------------------------------------------------------------------------------


def test_the_model_stays_as_it_was():
    model = resnet().train()
    model.stages[1].eval()
    model.fc.weight.requires_grad_(False)
    model.stem.weight.grad = torch.full_like(model.stem.weight, 7)
    calls: list[str] = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: calls.append("forward"))
        module.register_forward_pre_hook(lambda *_: calls.append("before"))
        module.register_full_backward_hook(lambda *_: calls.append("backward"))

    def state() -> dict[str, object]:
        return {
            "modes": [m.training for m in model.modules()],
            "attributes": [sorted(vars(m)) for m in model.modules()],
            "hooks": [
                len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()
            ],
            "parameters": [
                (id(p), p._version, p.requires_grad, None if p.grad is None else p.grad.sum())
                for p in model.parameters()
            ],
            "buffers": [(id(b), b._version) for b in model.buffers()],
        }

    before, values = state(), copy.deepcopy(model.state_dict())
    linear = linearize(model, batchnorm="fold")
    linear.train()(images(2, 3, 32, 32))
    affine_map(model)
    linear_map(model, batchnorm="fold")
    assert state() == before and calls == []
    assert all(torch.equal(a, b) for a, b in zip(values.values(), model.state_dict().values(), strict=True))


def test_constants_of_forward_do_not_land_on_the_model():
    model, _ = ARITHMETIC["a tensor made in forward"]
    linearize(model)
    assert not any(name.startswith("_tensor") for m in model.modules() for name in vars(m))


def test_parameters_are_shared_and_learn_together():
    model, x = resnet(), images(2, 3, 32, 32)
    linear = linearize(model)
    assert {id(p) for p in linear.parameters()} <= {id(p) for p in model.parameters()}
    linear(x).sum().backward()
    assert model.stem.weight.grad.abs().max() > 0
    before = linear_map(model)
    with torch.no_grad():
        model.fc.weight.mul_(2)
    assert_close(linear_map(model), 2 * before)
    assert_close(linear(x) - linear(0 * x), apply(2 * before, x))
    apart = copy.deepcopy(linear).float()
    assert apart(x.float()).dtype == torch.float32 and linear(x).dtype == torch.float64


def test_training_frozen_no_grad_inference_and_autocast_give_the_same():
    model = resnet()
    expected = linear_map(model.eval())
    assert torch.equal(linear_map(model.train()), expected)
    with torch.no_grad():
        assert torch.equal(linear_map(model), expected)
    with torch.inference_mode():
        assert torch.equal(linear_map(model), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear_map(model).dtype == torch.float64
    assert torch.equal(linear_map(model.requires_grad_(False)), expected)
    assert torch.equal(linear_map(model.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_rows_do_not_depend_on_the_chunk(chunk):
    assert_close(linear_map(resnet(), chunk=chunk), linear_map(resnet()), 1e-13)


def test_weights_that_are_computed():
    def layers() -> tuple[nn.Module, ...]:
        return nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4)

    new = lively(nn.Sequential(*layers()))
    nn.utils.parametrizations.weight_norm(new[0])
    nn.utils.parametrizations.spectral_norm(new[3])
    with torch.no_grad():
        new[0].parametrizations.weight.original0.mul_(3)
    plain = nn.Sequential(*layers()).double()
    plain.load_state_dict(
        {"0.weight": new[0].weight, "0.bias": new[0].bias, "3.weight": new.eval()[3].weight, "3.bias": new[3].bias}
    )
    new.train()
    assert_close(linear_map(new, (3, 8, 8)), linear_map(plain, (3, 8, 8)))
    assert all(m.training for m in new.modules())


def test_pruned_weights_are_those_of_the_state_that_was_loaded():
    pruned, loaded = (lively(nn.Sequential(nn.Flatten(), nn.Linear(48, 5))) for _ in range(2))
    prune.l1_unstructured(pruned[1], "weight", 0.5)
    prune.identity(loaded[1], "weight")
    loaded.load_state_dict(pruned.state_dict())  # the attribute `weight` is made when the module runs
    assert_close(linear_map(loaded, (3, 4, 4)).flatten(1), pruned[1].weight.detach())
    assert (pruned[1].weight == 0).sum() == 120


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_input_shape():
    model = resnet()
    assert_close(linear_map(model), linear_map(model, (3, 32, 32)))
    assert linear_map(model, (3, 16, 20)).shape == (4, 3, 16, 20)
    assert torch.equal(linear_map(linearize(model)), linear_map(model))
    with pytest.raises(
        lrc.InputError, match=r"Linear does not say what it takes: .*linear_map\(model, \(3, 32, 32\)\)"
    ):
        linear_map(nn.Linear(3, 2))
    with pytest.raises(lrc.InputError, match=r"does not take images of shape \(4, 32, 32\)"):
        linear_map(model, (4, 32, 32))
    with pytest.raises(lrc.InputError, match="chunk"):
        linear_map(model, chunk=0)


@pytest.mark.parametrize(
    ("function", "got"),
    [(lambda m, x: x, r"\(1, 3, 4, 4\)"), (lambda m, x: (x, x), "tuple"), (lambda m, x: x[0, 0], r"\(4, 4\)")],
)
def test_output_that_is_not_logits(function, got):
    with pytest.raises(lrc.InputError, match=rf"expected logits of shape \(1, classes\) for one image, got {got}"):
        linear_map(Net(function), (3, 4, 4))


def test_inputs_that_are_not_images():
    model = lively(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))
    assert_close(linear_map(model, (5,)), model[2].weight @ model[0].weight)
    line = lively(nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(9, 4)))
    W, b = affine_map(line, (2, 8))
    x = images(3, 2, 8)
    assert_close(apply(W, x) + b, linearize(line)(x))
