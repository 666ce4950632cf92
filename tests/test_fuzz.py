"""Calls of every public function with arguments as users get them wrong: a right answer, or one line that says why not.

LRC_FUZZ=2000 makes that many calls instead of the suite's few.
"""

import copy
import inspect
import os
import types
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Generator, nn

from lrc import attacks
from lrc.attacks.threat_model import ball
from lrc.utils.errors import InputError

EXAMPLES = int(os.environ.get("LRC_FUZZ", 150))
SHAPE, CLASSES = (3, 4, 4), 4


class Net(nn.Module):
    """A residual network of two layers, and what may be odd about it."""

    def __init__(self, odd=lambda z: z, before=lambda x: x, seed=0):
        super().__init__()
        generator = Generator().manual_seed(seed)
        self.odd, self.before = odd, before
        self.first, self.second = nn.Linear(48, 48), nn.Linear(48, CLASSES)
        for p in self.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=generator)

    def forward(self, x):
        h = self.before(x).flatten(1)
        return self.odd(self.second(h + torch.relu(self.first(h))))


class NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES)), torch.rand(2, *SHAPE))


def tuple_of(z):
    return (z,)


NETWORKS = {
    "none": lambda: None,
    "function": lambda: torch.relu,
    "name": lambda: "resnet8",
    "tuple": lambda: Net(tuple_of),
    "object": lambda: Net(lambda z: types.SimpleNamespace(logits=z)),
    "nothing": lambda: Net(lambda z: None),
    "map": lambda: Net(lambda z: z[:, :, None, None]),
    "one logit": lambda: Net(lambda z: z[:, :1]),
    "summed": lambda: Net(lambda z: z.sum(0, keepdim=True)),
    "flat": lambda: Net(lambda z: z.sum(1)),
    "complex": lambda: Net(lambda z: z.to(torch.cfloat)),
    "whole numbers": lambda: Net(lambda z: z.long()),
    "detached": lambda: Net(lambda z: z.detach()),
    "nan": lambda: Net(lambda z: z * torch.nan),
    "infinite": lambda: Net(lambda z: z / 0),
    "huge": lambda: Net(lambda z: 1e30 * z),
    "constant": lambda: Net(lambda z: torch.zeros_like(z)),
    "probabilities": lambda: Net(lambda z: z.softmax(1)),
    "raises": lambda: Net(lambda z: z + torch.ones(3, 3, 3)),
    "double": lambda: Net().double(),
    "half": lambda: Net().half(),
    "meta": lambda: Net().to("meta"),
    "writes": lambda: Net(before=lambda x: x.clamp_(0.2, 0.8)),
    "no way back": lambda: Net(before=NoWayBack.apply),
    "numpy": lambda: Net(before=lambda x: torch.from_numpy(x.numpy())),
    "greyscale": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES)),
    "other size": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, CLASSES)),
    "batch norm": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, CLASSES)).train(),
    "lazy": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES)),
    "scripted": scripted,
    "frozen": lambda: Net().requires_grad_(False),
    "random": lambda: Net(lambda z: z + 1e-3 * torch.randn_like(z)),
}
IMAGES = {
    "list": lambda x: x.tolist(),
    "array": lambda x: x.numpy(),
    "none": lambda x: None,
    "text": lambda x: "cat.png",
    "bytes": lambda x: (255 * x).byte(),
    "whole": lambda x: x.round().long(),
    "half": lambda x: x.half(),
    "complex": lambda x: x.to(torch.cfloat),
    "double": lambda x: x.double(),
    "of 255": lambda x: 255 * x,
    "normalized": lambda x: (x - 0.5) / 0.25,
    "just above": lambda x: x.clamp(0.5) / x.amax() * (1 + 2e-7),
    "nan": lambda x: x.where(x < 0.9, torch.nan),
    "infinite": lambda x: x.where(x < 0.9, torch.inf),
    "no images": lambda x: x[:0],
    "no pixels": lambda x: x[:, :, :0],
    "one image": lambda x: x[0],
    "flat": lambda x: x[0, 0, 0],
    "number": lambda x: x[0, 0, 0, 0],
    "greyscale": lambda x: x[:, :1],
    "larger": lambda x: x.repeat(1, 1, 2, 2),
    "rows": lambda x: x.flatten(1),
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "strided": lambda x: x.transpose(2, 3),
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every other": lambda x: x.repeat(1, 1, 1, 2)[:, :, :, ::2],
    "with a graph": lambda x: x.clone().requires_grad_() * 1.0,
    "parameter": lambda x: nn.Parameter(x.clone()),
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "black": lambda x: 0 * x,
}
LABELS = {
    "list": lambda y: y.tolist(),
    "array": lambda y: y.numpy(),
    "none": lambda y: None,
    "number": lambda y: 1,
    "column": lambda y: y[:, None],
    "one-hot": lambda y: nn.functional.one_hot(y, CLASSES),
    "fractional": lambda y: y + 0.5,
    "as floats": lambda y: y.float(),
    "truths": lambda y: y > 0,
    "complex": lambda y: y.to(torch.cfloat),
    "int32": lambda y: y.int(),
    "uint8": lambda y: y.byte(),
    "uint16": lambda y: y.to(torch.uint16),
    "negative": lambda y: y - 5,
    "too large": lambda y: y + 900,
    "too few": lambda y: y[:2],
    "too many": lambda y: y.repeat(2),
    "none of them": lambda y: y[:0],
    "scalar": lambda y: y[0],
    "meta": lambda y: y.to("meta"),
    "sparse": lambda y: y.to_sparse(),
}
NUMBERS = [0, 1, 2, -1, 8, 0.5, 1.5, -0.1, 1e-30, 1e30, float("nan"), float("inf"), "3", "", None, True, [1]]
NUMBERS += [np.float32(0.1), np.int64(2), np.array(0.1), torch.tensor(0.1), 2**70, 1j]
THINGS = ["l1", "l2", "linf", "ce", "dlr", "margin", "hinge", None, 2, (), [], {}, "", True, torch.relu, object()]
THINGS += [
    lambda z, y: z.mean(),
    lambda z, y: z,
    lambda z, y: -z[:, 0],
    lambda z: z,
    Generator(),
    np.random.default_rng(0),
]
NAMED = ("norm", "loss", "generator", "start", "target", "random_start", "until_fooled", "version", "progress")

tiny = {"apgd": partial(attacks.apgd, steps=2)}
CALLS = {
    "pgd": partial(attacks.pgd, steps=2),
    "fgsm": attacks.fgsm,
    "mifgsm": partial(attacks.mifgsm, steps=2),
    "apgd": partial(attacks.apgd, steps=3),
    "fab": partial(attacks.fab, steps=2),
    "cw": partial(attacks.cw, steps=2, searches=2),
    "square": partial(attacks.square, queries=3),
    "nes": partial(attacks.nes, queries=10, samples=4),
    "nattack": partial(attacks.nattack, queries=8, samples=4),
    "linbp": partial(attacks.linbp, steps=2),
    "sgm": partial(attacks.sgm, steps=2),
    "autoattack": partial(attacks.autoattack, version=tiny),
}
COSTLY = (
    "steps",
    "searches",
    "queries",
    "samples",
    "restarts",
    "horizon",
)  # as many as asked for would be right, and slow


def options_of(name):
    """The options that the attack has; those of LinBP and SGM with those of MI-FGSM."""
    parameters = dict(inspect.signature(getattr(attacks, name)).parameters)
    if "options" in parameters:
        parameters |= inspect.signature(attacks.mifgsm).parameters
    return sorted(set(parameters) - {"model", "x", "y", "options", "out"})


@st.composite
def calls(draw):
    """An attack, and a call of it with one or two things changed."""
    name = draw(st.sampled_from(sorted(CALLS)))
    changed = draw(st.lists(st.sampled_from(["model", "x", "y", "option", "option"]), min_size=1, max_size=2))
    network = draw(st.sampled_from(sorted(NETWORKS))) if "model" in changed else None
    image = draw(st.sampled_from(sorted(IMAGES))) if "x" in changed else None
    label = draw(st.sampled_from(sorted(LABELS))) if "y" in changed else None
    options = {}
    for _ in range(changed.count("option")):
        option = draw(st.sampled_from(options_of(name)))
        values = THINGS if option in NAMED else NUMBERS
        value = values[draw(st.integers(0, len(values) - 1))]
        if not (option in COSTLY and isinstance(value, int) and value > 10):
            options[option] = value
    return name, network, image, label, options


def judged(name, network, image, label, options):
    """Makes the call: "right" or "refused", or raises what no user should see."""
    x = torch.rand(3, *SHAPE, generator=Generator().manual_seed(1))
    y = torch.tensor([0, 1, 2])
    model = NETWORKS[network]() if network else Net()
    images, labels = IMAGES[image](x) if image else x, LABELS[label](y) if label else y
    before = copy.deepcopy(images.detach()) if isinstance(images, torch.Tensor) else None
    options = {"eps": 0.1} | options
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = CALLS[name](model, images, labels, **options)
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        return "refused"
    found = found.x_adv if name == "autoattack" else found
    assert found.shape == images.shape and found.dtype == images.dtype and not found.requires_grad
    assert torch.equal(before, images.detach()), "the user's images were changed"
    eps, norm = options["eps"], "l2" if name == "cw" else options.get("norm", "linf")
    inside = ball(images.detach(), 1.0 if eps is None else float(eps), norm) if eps is not None else None
    assert inside.contains(found).all() if inside else ((found >= 0) & (found <= 1)).all()
    return "right"


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(call=calls())
def test_a_call_is_right_or_refused_in_one_line(unchecked, call):
    judged(*call)


@pytest.mark.parametrize("rewrite", [attacks.linear_backward, partial(attacks.skip_gradient, gamma=0.5)])
@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.filterwarnings("ignore")
def test_a_network_is_rewritten_or_refused_in_one_line(unchecked, rewrite, network):
    model = NETWORKS[network]()
    try:
        rewritten = rewrite(model)
    except InputError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert isinstance(rewritten, nn.Module)


@pytest.mark.parametrize("value", [0, 1.5, -1, None, True, "0", float("nan")])
def test_options_of_the_rewriting_are_right_or_refused(unchecked, value):
    for rewrite, option in ((attacks.linear_backward, "start"), (attacks.skip_gradient, "gamma")):
        try:
            assert isinstance(rewrite(Net(), **{option: value}), nn.Module)
        except InputError as error:
            assert "\n" not in str(error)
