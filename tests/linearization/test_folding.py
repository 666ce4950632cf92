"""Batch norm folded into convolutions: the same logits and gradients, the network as it was, and where it stays."""

import copy

import pytest
import torch
from torch import Generator, nn

from lrc.linearization.folding import folding
from lrc.models import densenet12, resnet8, resnet18, vgg6


def lively(model):
    """The network with running statistics and affine parameters that are not those of a new one."""
    generator = Generator().manual_seed(3)
    for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        if norm.track_running_stats:
            norm.running_mean.normal_(generator=generator).mul_(0.1)
            norm.running_var.uniform_(0.5, 2, generator=generator)
        if norm.affine:
            nn.init.normal_(norm.weight, 1, 0.2, generator=generator)
            nn.init.normal_(norm.bias, 0, 0.2, generator=generator)
    return model.eval()


def answers(model, x):
    x = x.clone().requires_grad_()
    z = model(x)
    return z.detach(), torch.autograd.grad(z.square().sum(), x)[0]


class Block(nn.Module):
    """A convolution and a batch norm, and what may stand between and beside them."""

    def __init__(self, between=None, beside=False, again=False, conv=None, norm=None):
        super().__init__()
        self.conv, self.norm = conv or nn.Conv2d(3, 6, 3), norm or nn.BatchNorm2d(6)
        self.between, self.beside, self.again = between, beside, again

    def forward(self, x):
        y = self.conv(x)
        z = self.norm(self.between(y) if self.between else y)
        z = self.norm(z) if self.again else z
        return (z + y if self.beside else z).mean((2, 3))


def wrapped(model):
    return nn.Sequential(nn.Identity(), model)


FOLDED = {  # the network, its pairs
    "resnet8": (lambda: resnet8(width=4), 9),
    "resnet18": (lambda: resnet18(width=4), 20),
    "vgg": (lambda: vgg6(width=4), 5),
    "bias": (Block, 1),
    "wrapped": (lambda: wrapped(Block()), 1),
    "plain norm": (lambda: Block(norm=nn.BatchNorm2d(6, affine=False)), 1),
    "strides, groups, padding": (
        lambda: Block(conv=nn.Conv2d(3, 6, 3, stride=2, padding=2, groups=3, padding_mode="circular", bias=False)),
        1,
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_folded_is_the_same_but_for_rounding_and_leaves_the_network(name):
    make, pairs = FOLDED[name]
    model, x = lively(make()).double(), torch.rand(3, 3, 32, 32, dtype=torch.float64)
    before, expected = copy.deepcopy(model.state_dict()), answers(model, x)
    found = folding(model, x)
    assert len(found.pairs) == pairs
    with found.folded():
        norm_free = answers(model, x)
        assert not torch.equal(norm_free[0], expected[0])  # it is another computation
        with found.undone():
            assert all(torch.equal(*pair) for pair in zip(answers(model, x), expected, strict=True))
        assert torch.equal(answers(model, x)[0], norm_free[0])
    torch.testing.assert_close(norm_free, expected, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(*pair) for pair in zip(answers(model, x), expected, strict=True))
    assert all("forward" not in vars(m) for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def hooked():
    model = Block()
    model.conv.register_forward_hook(lambda module, inputs, output: output + 1)
    return model


def tied():
    conv = nn.Conv2d(3, 3, 3)
    return nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.Flatten())


class Branching(Block):
    def forward(self, x):
        return super().forward(x if x.mean() > 0.5 else 1 - x)


class Freak(Block):
    """Gives the tracer another graph than it runs."""

    def forward(self, x):
        return super().forward(x) if isinstance(x, torch.fx.Proxy) else self.conv(x).mean((2, 3))


UNFOLDED = {
    "no norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()),
    "something between": lambda: Block(between=nn.ReLU()),
    "the convolution's output is used again": lambda: Block(beside=True),
    "the norm is called twice": lambda: Block(again=True),
    "the convolution is called twice": tied,
    "batch statistics": lambda: Block(norm=nn.BatchNorm2d(6, track_running_stats=False)),
    "hook": hooked,
    "parametrized": lambda: Block(conv=nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3))),
    "cannot be traced": Branching,
    "traced as another": Freak,
    "norm before convolution": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Flatten()),
}


@pytest.mark.parametrize("name", UNFOLDED)
def test_what_cannot_be_folded_stays_as_it_is(name):
    model, x = lively(UNFOLDED[name]()), torch.rand(2, 3, 8, 8)
    expected, found = answers(model, x), folding(model, x)
    assert not found
    with found.folded():
        assert all(torch.equal(*pair) for pair in zip(answers(model, x), expected, strict=True))


def test_dense_blocks_fold_where_a_convolution_comes_first():
    """Batch norm before the activation and the convolution: few pairs, and the same logits."""
    model, x = lively(densenet12()), torch.rand(2, 3, 32, 32)
    with folding(model, x).folded():
        found = model(x)
    torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-4)


def test_what_is_known_of_a_network_follows_its_modules_settings_and_weights():
    model, x = lively(Block()), torch.rand(2, 3, 8, 8)
    assert folding(model, x)
    model.beside = True
    assert not folding(model, x)
    model.beside = False
    nn.init.constant_(model.conv.weight, 0.25)
    with folding(model, x).folded():
        found = model(x)
    torch.testing.assert_close(found, model(x))
    model.norm = nn.GroupNorm(2, 6)
    assert not folding(model, x)


def test_an_error_inside_leaves_the_network_as_it_was():
    model, x = lively(Block()), torch.rand(2, 3, 8, 8)
    with pytest.raises(ZeroDivisionError), folding(model, x).folded():
        raise ZeroDivisionError
    assert all("forward" not in vars(m) for m in model.modules())
