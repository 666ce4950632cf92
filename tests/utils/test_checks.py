"""Checks of what a user gives: what is refused, what is let through, and that each message says how to mend it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Generator, nn

from lrc.utils import checks
from lrc.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("unchecked")
X, Y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (lambda: checks.check_images(X.numpy()), r"not numpy.ndarray: torch.as_tensor"),
        (lambda: checks.check_images([[0.5]]), "not list"),
        (lambda: checks.check_images(None), "not None"),
        (lambda: checks.check_images("cat.png"), "not 'cat.png'"),
        (lambda: checks.check_images((255 * X).byte()), r"torch.uint8: x.float\(\) / 255"),
        (lambda: checks.check_images(X.half()), "torch.autocast"),
        (lambda: checks.check_images(X[0, 0, 0]), r"x\[None\]"),
        (lambda: checks.check_images(X[0], dims=4), r"\(n, c, h, w\), not \(3, 4, 4\)"),
        (lambda: checks.check_images(X[:, :, :0]), "no pixels"),
        (lambda: checks.check_images(X.to_sparse()), "dense"),
        (lambda: checks.check_images(torch.full((1, 2), 1.0000001)), r"1.00000012\]: x.clamp\(0, 1\)"),
        (lambda: checks.check_images(torch.full((1, 2), 200.0)), "divide by 255"),
        (lambda: checks.check_images(torch.full((1, 2), torch.nan)), "nan"),
        (lambda: checks.check_labels(Y[:, None], 2), r"not \(2, 1\): y.squeeze\(1\)"),
        (lambda: checks.check_labels(nn.functional.one_hot(Y), 2), r"y.argmax\(1\) of one-hot"),
        (lambda: checks.check_labels(Y + 0.5, 2), r"torch.float32: y.long\(\)"),
        (lambda: checks.check_labels(Y > 0, 2), "torch.bool"),
        (lambda: checks.check_labels(Y, 3), "3 images with 2 labels"),
        (lambda: checks.check_labels(Y - 1, 2, name="targets"), "targets must be >= 0, not -1"),
        (lambda: checks.check_labels(Y, 2, classes=1), "label 1 among the labels, where the network has classes 0..0"),
        (lambda: checks.check_radius(8, "linf", X), "eps = 8 is too large.*did you mean 8/255"),
        (lambda: checks.check_radius(7.0, "l2", X), "within 6.9282 of each other"),
        (lambda: checks.check_radius("8/255", "linf", X), "eps must be >= 0 and finite, not '8/255'"),
        (lambda: checks.check_radius(-0.1, "linf", X), "eps must be >= 0"),
        (lambda: checks.check_radius(0.1, "l1", X), "no norm is called 'l1'; there are linf, l2"),
        (lambda: checks.check_whole("steps", 1.0), "steps must be a whole number >= 0, not 1.0"),
        (lambda: checks.check_whole("steps", True, 1), "not True"),
        (lambda: checks.check_number("step", float("nan")), "step must be >= 0 and finite, not nan"),
        (lambda: checks.check_number("rate", 0, "(0, inf)"), "rate must be > 0 and finite, not 0"),
        (lambda: checks.check_number("momentum", 1.0, "[0, 1)"), r"momentum must be in \[0, 1\), not 1.0"),
        (lambda: checks.check_number("step", 10**400), "finite"),
        (lambda: checks.check_flag("random_start", "no"), "random_start must be True or False, not 'no'"),
        (lambda: checks.check_generator(0), "generator must be a torch.Generator, not 0"),
        (lambda: checks.check_network(torch.relu), "must be a torch.nn.Module"),
        (lambda: checks.check_network(nn.LazyLinear(2)), "run it on one first"),
        (lambda: checks.check_network(nn.Linear(2, 2, device="meta")), "load them first"),
        (lambda: checks.check_logits(torch.rand(2, 3, 1, 1), 2), r"not \(2, 3, 1, 1\): flatten\(1\)"),
        (lambda: checks.check_logits(torch.rand(2, 1), 2), "two classes or more"),
        (lambda: checks.check_logits(torch.rand(2, 1000), 2, classes=10), r"of 10 classes, not \(2, 1000\)"),
        (lambda: checks.check_logits((torch.rand(2, 3),), 2), "not tuple: return one tensor"),
        (lambda: checks.check_logits(SimpleNamespace(logits=1), 2), "return the .logits of it"),
        (lambda: checks.check_logits(torch.rand(2, 3) * 1j, 2), "real logits"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(check, says):
    with pytest.raises(InputError, match=says) as error:
        check()
    assert "\n" not in str(error.value)


def test_what_can_be_used_is_let_through():
    for x in (X, X.double(), X[:0], X.transpose(2, 3), X[:1].expand(5, -1, -1, -1), 0 * X, X.flatten(1)):
        checks.check_images(x)
    for y in (Y, Y.int(), Y.byte(), Y.to(torch.uint16)):
        checks.check_labels(y, 2, classes=2)
    for eps, norm in ((0, "linf"), (1, "linf"), (8 / 255, "l2"), (48**0.5, "l2"), (np.float32(0.1), "linf")):
        checks.check_radius(eps, norm, X)
    checks.check_whole("steps", np.int64(3), 3)
    checks.check_generator(Generator())
    assert checks.check_number("share", np.float64(1), "(0, 1]") == 1.0
    assert checks.check_logits(z := torch.randn(2, 3), 2, classes=3) is z


def test_probabilities_are_noticed_and_logits_are_not():
    z = torch.randn(5, 3, generator=Generator().manual_seed(0))
    with pytest.warns(RuntimeWarning, match="leave out the softmax"):
        checks.check_logits(z.softmax(1), 5)
    for logits in (z, z.log_softmax(1), z.softmax(1)[:1], torch.eye(3)):  # one row, or zeros and ones, by chance
        checks.check_logits(logits, len(logits))


@pytest.mark.parametrize(
    ("model", "x", "says"),
    [
        (nn.Linear(4, 2).double(), torch.rand(1, 4), r"is torch.float64, the images torch.float32: model.to\(torch.fl"),
        (nn.Linear(4, 2).half(), torch.rand(1, 4), "is torch.float16, the images torch.float32"),
        (nn.Linear(4, 2), torch.rand(1, 4, device="meta"), r"is on cpu, the images on meta: model.to\('meta'\)"),
        (nn.Linear(4, 2), torch.rand(1, 5), r"fails on images \(1, 5\) of torch.float32: .*mat1 and mat2"),
        (nn.Conv2d(3, 4, 3), torch.rand(1, 1, 8, 8), r"fails on images \(1, 1, 8, 8\).*channels"),
    ],
)
def test_why_a_network_fails_is_said_in_one_line(model, x, says):
    with pytest.raises(InputError, match=says) as error, checks.explained(model, x):
        if x.is_meta:
            raise RuntimeError("a tensor of one device met one of another")
        model(x)
    assert "\n" not in str(error.value) and error.value.__cause__ is not None


def test_what_is_no_mistake_of_the_network_passes():
    class Killed(Exception):
        """From outside."""

    for error in (Killed, torch.OutOfMemoryError, KeyboardInterrupt, MemoryError):
        with pytest.raises(error), checks.explained(nn.Identity(), X):
            raise error
    with pytest.raises(RuntimeError, match="memory") as error, checks.explained(nn.Identity(), X):
        torch.empty(2**55)
    assert checks.out_of_memory(error.value) and not checks.out_of_memory(RuntimeError("no memory of that"))
