"""Networks: sizes from the literature, shapes, seeds, normalization inside."""

import pytest
import torch
from torch import Generator

from lrc import models
from lrc.utils.errors import InputError


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_resnet18_has_the_published_size():
    """11,173,962 parameters with 10 classes: the usual CIFAR ResNet-18."""
    assert parameters(models.resnet18()) == 11_173_962


@pytest.mark.parametrize("name", models.BUILDERS)
def test_logits_and_features(name):
    model = models.build(name, classes=7, width=8).eval()
    x = torch.rand(2, *model.input_shape)
    assert model(x).shape == (2, 7)
    torch.testing.assert_close(model.fc(model.features(x)), model(x))


def test_small_networks_are_small():
    assert 250_000 < parameters(models.vgg6()) < 1_000_000
    assert 250_000 < parameters(models.resnet8()) < 1_000_000


def test_a_generator_fixes_the_weights_and_the_global_one_is_left_alone():
    state = torch.get_rng_state()
    first = models.resnet8(width=8, generator=Generator().manual_seed(1)).state_dict()
    again = models.resnet8(width=8, generator=Generator().manual_seed(1)).state_dict()
    other = models.resnet8(width=8, generator=Generator().manual_seed(2)).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in first.items())
    assert not torch.equal(first["stem.weight"], other["stem.weight"])
    assert torch.equal(torch.get_rng_state(), state)


def test_normalization_is_inside():
    """Same as normalizing outside and giving the result to the network without normalization."""
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    inside = models.resnet8(width=8, mean=mean, std=std, generator=Generator().manual_seed(1)).eval()
    plain = models.resnet8(width=8, generator=Generator().manual_seed(1)).eval()
    x = torch.rand(2, 3, 32, 32)
    outside = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(inside(x), plain(outside))


def test_unknown_network_lists_those_there_are():
    with pytest.raises(InputError, match="resnet18, resnet8, vgg6, alexnet, densenet12"):
        models.build("googlenet")
