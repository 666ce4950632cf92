"""LinBP and SGM by graph rewriting against networks differentiated by hand."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from attacking import Linear
from torch import Generator, nn

from lrc.attacks import linbp, linear_backward, mifgsm, sgm, skip_gradient
from lrc.attacks.threat_model import ball
from lrc.models import resnet8, vgg6
from lrc.utils.errors import InputError


def random_statistics(model, seed=0):
    """Batch norm with statistics and weights that matter; in eval mode."""
    generator = Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
            for tensor in (module.running_var, module.weight.data):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model.eval()


def images(seed=1, n=3):
    return torch.rand(n, 3, 32, 32, generator=Generator().manual_seed(seed))


def gradient(model, x, *, logit=0):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x)[:, logit].sum(), x)[0]


def pulled_back(function, x, g):
    """The gradient g at function(x), taken back to x."""
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(x), x, g)[0]


def by_hand(model, x, *, start=0, gamma=1.0, linear=False):
    """Gradient of logit 0 of a `ResNet` of basic blocks, block by block from the end.

    With `linear`, from block `start` on: the branch's ReLU has derivative 1, its gradient the norm of the true one.
    """
    with torch.no_grad():
        h = [F.relu(model.bn(model.stem(model.normalize(x))))]
        for block in model.stages:
            h.append(block(h[-1]))
    g = pulled_back(lambda v: model.fc(model.pool(v).flatten(1))[:, 0].sum(), h[-1], None)
    for i, block in reversed(list(enumerate(model.stages))):

        def before(v, block=block):
            return block.bn1(block.conv1(v))

        def after(v, block=block):
            return block.bn2(block.conv2(v))

        with torch.no_grad():
            inner = before(h[i])
            total = after(F.relu(inner)) + block.shortcut(h[i])
        g = g * (total > 0)
        at_relu = pulled_back(after, F.relu(inner), g)
        branch = pulled_back(before, h[i], at_relu * (inner > 0))
        if linear and i >= start:
            straight = pulled_back(before, h[i], at_relu)
            norm = lambda v: v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)  # noqa: E731
            branch = straight * norm(branch) / norm(straight)
        g = pulled_back(block.shortcut, h[i], g) + gamma * branch
    return pulled_back(lambda v: F.relu(model.bn(model.stem(model.normalize(v)))), x, g)


def small():
    generator = Generator().manual_seed(0)
    return random_statistics(resnet8(width=6, mean=(0.5,) * 3, std=(0.25,) * 3, generator=generator))


def test_by_hand_is_the_gradient_when_nothing_is_changed():
    torch.testing.assert_close(by_hand(small(), images()), gradient(small(), images()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("start", [0, 1, 2])
def test_linbp_of_a_residual_network_is_that_by_hand(start):
    model, x = small(), images()
    ours = gradient(linear_backward(model, start=f"stages.{start}"), x)
    torch.testing.assert_close(ours, by_hand(model, x, start=start, linear=True), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(ours, gradient(model, x), rtol=1e-2)
    counted = gradient(linear_backward(model, start=1 + 2 * start), x)  # a ReLU in the stem, two a block
    torch.testing.assert_close(counted, ours)


@pytest.mark.parametrize("gamma", [0.2, 0.5])
def test_sgm_of_a_residual_network_is_that_by_hand(gamma):
    model, x = small(), images()
    ours = gradient(skip_gradient(model, gamma=gamma), x)
    torch.testing.assert_close(ours, by_hand(model, x, gamma=gamma), rtol=1e-4, atol=1e-6)


def test_gamma_one_changes_nothing():
    torch.testing.assert_close(gradient(skip_gradient(small(), gamma=1.0), images()), gradient(small(), images()))


class Dense(nn.Module):
    """A dense block of two layers, concatenating; `gamma` scales what comes back through them, by hand."""

    def __init__(self, gamma=1.0):
        super().__init__()
        generator = Generator().manual_seed(0)
        self.gamma = gamma
        self.layers = nn.ModuleList([nn.Linear(6, 4), nn.Linear(10, 4)])
        self.fc = nn.Linear(14, 3)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator)

    def forward(self, x):
        features = x
        for layer in self.layers:
            new = torch.relu(layer(features))
            if self.gamma != 1.0:
                new = self.gamma * new + (1 - self.gamma) * new.detach()
            features = torch.cat([features, new], 1)
        return self.fc(features)


def test_sgm_of_a_dense_network_is_that_by_hand():
    x = torch.rand(4, 6, generator=Generator().manual_seed(3))
    torch.testing.assert_close(gradient(skip_gradient(Dense(), gamma=0.5), x), gradient(Dense(gamma=0.5), x))


def test_without_residual_branches_all_relus_from_the_start_on_are_linear():
    """By hand: x + (relu(x) - x) without gradient of the latter."""

    class Straight(nn.Module):
        def forward(self, x):
            return x + (torch.relu(x) - x).detach()

    model, x = random_statistics(vgg6(width=4, generator=Generator().manual_seed(0))), images()
    relus = [i for i, layer in enumerate(model.stack) if isinstance(layer, nn.ReLU)]
    for start in (0, 2, 4):
        twin = copy.deepcopy(model)
        for i in relus[start:]:
            twin.stack[i] = Straight()
        ours = linear_backward(model, start=start)
        torch.testing.assert_close(gradient(ours, x), gradient(twin, x), rtol=1e-4, atol=1e-7)
        assert torch.equal(ours(x), model(x))


class Forms(nn.Module):
    """The ways there are to write a ReLU and an addition."""

    def __init__(self, form):
        super().__init__()
        self.form, self.a, self.b, self.relu = form, nn.Linear(6, 6), nn.Linear(6, 3), nn.ReLU(inplace=True)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=Generator().manual_seed(0))

    def forward(self, x):
        h = self.a(x)
        if self.form == "module":
            h = self.relu(h)
        elif self.form == "method":
            h = h.relu()
        elif self.form == "in-place method":
            h.relu_()
        elif self.form == "in-place function":
            F.relu(h, inplace=True)
        else:
            h = torch.relu(h)
        h = torch.add(x, h) if self.form == "function" else x.add(h) if self.form == "method" else h.add_(x)
        return self.b(h)


@pytest.mark.parametrize("form", ["module", "method", "in-place method", "in-place function", "function"])
def test_all_forms_of_a_residual_branch(form):
    model, reference = Forms(form), Forms("function")
    x = torch.randn(4, 6, generator=Generator().manual_seed(0))
    for rewritten in (partial(linear_backward), partial(skip_gradient, gamma=0.3)):
        assert torch.equal(rewritten(model)(x), reference(x))
        torch.testing.assert_close(gradient(rewritten(model), x), gradient(rewritten(reference), x))


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet", "vgg11_bn", "alexnet"])
def test_networks_of_torchvision(name):
    options = {"init_weights": False} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(num_classes=10, **options).eval()
    x = torch.rand(1, 3, 64, 64, generator=Generator().manual_seed(0))
    rewritten = [linear_backward(model)]
    if name in ("resnet18", "densenet121"):
        rewritten.append(skip_gradient(model, gamma=0.5))
    for network in rewritten:
        assert torch.equal(network(x), model(x))
        assert gradient(network, x).isfinite().all() and not torch.allclose(gradient(network, x), gradient(model, x))


@pytest.mark.parametrize("attack", [linbp, partial(sgm, gamma=0.5)])
@pytest.mark.parametrize("options", [{}, {"decay": 1.0}, {"diversity": 0.5}, {"norm": "l2"}])
def test_the_attacks_are_iterative_fgsm_on_the_rewritten_network(attack, options):
    model, x = small(), images()
    y = model(x).argmax(1)
    rewritten = linear_backward(model) if attack is linbp else skip_gradient(model, gamma=0.5)
    found = attack(model, x, y, eps=0.03, generator=Generator().manual_seed(0), **options)
    expected = mifgsm(rewritten, x, y, eps=0.03, generator=Generator().manual_seed(0), **{"decay": 0.0} | options)
    assert torch.equal(found, expected) and ball(x, 0.03, options.get("norm", "linf")).contains(found).all()
    assert (model(found).softmax(1).gather(1, y[:, None]) < model(x).softmax(1).gather(1, y[:, None])).all()


def test_hooks_are_neither_needed_nor_left_nor_called_by_the_tracer():
    model, calls = small(), []
    model.bn.register_forward_hook(lambda *a: calls.append(1))
    linear_backward(model)
    assert not calls and len(model.bn._forward_hooks) == 1 and not model.bn._backward_hooks


def test_the_rewritten_network_shares_its_layers_and_leaves_the_mode_alone():
    model = small().train()
    rewritten = linear_backward(model)
    assert model.training and model.bn.training
    assert {id(p) for p in rewritten.parameters()} == {id(p) for p in model.parameters()}


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("rewrite", "says"),
    [
        (lambda: linear_backward(Branching()), "torch.fx cannot trace Branching"),
        (lambda: linear_backward(Linear(2, (5,))), "no ReLU"),
        (lambda: linear_backward(small(), start=99), "no ReLU from 99 on"),
        (lambda: linear_backward(small(), start=6), "no residual branch of the network has a ReLU"),
        (lambda: linear_backward(small(), start="stages.7"), "no module 'stages.7'"),
        (lambda: skip_gradient(vgg6(width=4), gamma=0.5), "VGG has no residual branch"),
        (lambda: skip_gradient(small(), gamma=0.0), "gamma must be in"),
    ],
)
def test_what_cannot_be_rewritten_is_named(rewrite, says):
    with pytest.raises(InputError, match=says):
        rewrite()
