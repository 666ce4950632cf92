"""What cannot be trained is refused in one line, before anything is written or changed."""

import inspect
import math
import warnings

import pytest
import torch
from torch import Generator, nn

from lrc.data import Images
from lrc.training import averaging, train
from lrc.training.objectives import standard
from lrc.utils.errors import InputError


def network():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    for p in model.parameters():
        nn.init.normal_(p, std=0.1, generator=Generator().manual_seed(p.numel()))
    return model


def noise(n=16, *, channels=3, size=8, classes=("cat", "dog")):
    x = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=Generator().manual_seed(n))
    return Images(x, torch.arange(n) % len(classes), classes)


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch advises other ways
        return torch.jit.script(network())


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, x):
        return self.network(x), x


REFUSED = {
    "a list for a network": ({"model": []}, "the network must be a torch.nn.Module, not list"),
    "all frozen": ({"model": network().requires_grad_(False)}, "no weights to train: .*requires_grad_"),
    "no parameters": ({"model": nn.Flatten()}, "no weights to train"),
    "a lazy layer": ({"model": nn.Sequential(nn.Flatten(), nn.LazyLinear(2))}, "lazy layers .*: run it on one first"),
    "TorchScript": ({"model": scripted()}, "TorchScript networks cannot be trained here: give the nn"),
    "half precision": ({"model": network().half()}, r"the network is torch\.float16, the images torch\.float32: "),
    "double precision": ({"model": network().double()}, r"the network is torch\.float64, the images torch\.float32: "),
    "several outputs": ({"model": TwoOutputs()}, r"must give logits \(n, classes\) .*not tuple"),
    "feature maps": ({"model": nn.Conv2d(3, 2, 3)}, r"must give logits \(2, classes\) .*not \(2, 2, 6, 6\)"),
    "greyscale images": ({"data": noise(channels=1)}, r"fails on images \(2, 1, 8, 8\)"),
    "another size": ({"data": noise(size=9)}, r"fails on images \(2, 3, 9, 9\)"),
    "a class too many": ({"data": noise(classes=("a", "b", "c"))}, r"label 2 where the network has classes 0\.\.1"),
    "a tensor for images": ({"data": torch.rand(16, 3, 8, 8)}, r"must be lrc\.Images, not Tensor"),
    "validation of other classes": ({"validation": noise(classes=("ship", "dog"))}, "other classes or another size"),
    "validation of another size": ({"validation": noise(size=9)}, "other classes or another size"),
    "an empty validation part": ({"validation": noise(0)}, "the validation part has no images: give some, or None"),
    "a step upwards": ({"lr": -1}, "lr must be >= 0 and finite, not -1"),
    "no rate": ({"lr": math.nan}, "lr must be >= 0 and finite, not nan"),
    "an endless rate": ({"lr": math.inf}, "lr must be >= 0 and finite, not inf"),
    "a text for a rate": ({"lr": "0.1"}, "lr must be >= 0 and finite, not '0.1'"),
    "momentum": ({"momentum": -0.9}, "momentum must be >= 0 and finite, not -0.9"),
    "weight decay": ({"weight_decay": math.nan}, "weight_decay must be >= 0 and finite, not nan"),
    "a schedule upwards": ({"schedule": lambda done: 1 - 2 * done}, "schedule's factor of epoch 4 must be >= 0"),
    "a schedule of nothing": ({"schedule": lambda done: None}, "schedule's factor of epoch 1 must be >= 0 .*not None"),
    "no epochs": ({"epochs": 0}, "epochs must be a whole number >= 1, not 0"),
    "half an epoch": ({"epochs": 2.5}, "epochs must be a whole number >= 1, not 2.5"),
    "an empty batch": ({"batch_size": 0}, "batch_size must be a whole number >= 1, not 0"),
    "a batch too large": ({"batch_size": 17}, r"batch_size must be in 1\.\.16, the number of images, not 17"),
    "a seed": ({"seed": -1}, "seed must be a whole number >= 0, not -1"),
    "an average": ({"ema": math.nan}, r"must be in \[0, 1\), not nan"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_trained_is_refused_in_a_line(tmp_path, what):
    changed, says = REFUSED[what]
    out = tmp_path / "out"
    arguments = {"model": network(), "data": noise(), "epochs": 4, "batch_size": 8, "out": out} | changed
    before = averaging.copied(network())
    with pytest.raises(InputError, match=says) as caught:
        inspect.unwrap(train)(objective=standard, **arguments)  # without the tests' checks of types, as users call it
    assert "\n" not in str(caught.value) and not out.exists()
    if "model" not in changed:
        assert all(torch.equal(value, before[name]) for name, value in arguments["model"].state_dict().items())


def test_of_a_network_with_frozen_layers_the_others_are_trained():
    model, before = network(), network()
    model[0].requires_grad_(False)
    train(model, noise(), standard, epochs=1, batch_size=8)
    assert torch.equal(model[0].weight, before[0].weight) and not torch.equal(model[3].weight, before[3].weight)
