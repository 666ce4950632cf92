"""Accuracy against counting by hand."""

from functools import partial

import pytest
import torch
from torch import Generator, nn

from lrc.attacks import autoattack, pgd
from lrc.data import Images
from lrc.evaluation import accuracy, evaluate, logits
from lrc.utils.errors import InputError


class Brightest(nn.Module):
    """The class is the brightest channel."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x.mean((2, 3))


@pytest.fixture
def images():
    g = Generator().manual_seed(0)
    return Images(
        torch.randint(0, 256, (37, 3, 8, 8), generator=g).to(torch.uint8), torch.arange(37) % 3, ("r", "g", "b")
    )


@pytest.mark.parametrize("batch_size", [1, 10, 37, 500])
def test_accuracy_is_the_fraction_right(images, batch_size):
    by_hand = sum(int(x.float().mean((1, 2)).argmax() == y) for x, y in zip(images.x, images.y, strict=True)) / 37
    assert accuracy(Brightest(), images, batch_size=batch_size) == by_hand


class Overflowing(nn.Module):
    """No number for every image; the largest by argmax is then the first class."""

    def forward(self, x):
        return Brightest()(x) * torch.nan


def test_logits_that_are_no_numbers_are_right_of_no_image(images):
    assert accuracy(Overflowing(), images) == 0


def test_logits_keep_the_order(images):
    torch.testing.assert_close(logits(Brightest(), images, batch_size=10), images.float().mean((2, 3)))


def test_the_attack_is_applied(images):
    attack = partial(pgd, eps=1.0, steps=20)
    assert accuracy(Brightest(), images, attack=attack, generator=Generator().manual_seed(0)) == 0


def test_no_images_are_named(images):
    with pytest.raises(InputError, match="no images"):
        accuracy(Brightest(), images.subset(0))


class Gives(nn.Module):
    """What it is told to give, of the logits of three classes."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x.mean((2, 3)))


@pytest.mark.parametrize("entrance", [accuracy, logits])
@pytest.mark.parametrize(
    "what",
    [
        lambda z: z[:, :, None, None],
        lambda z: z[:, 0],
        lambda z: z[:, :1],
        lambda z: (z, z),
        lambda z: {"logits": z},
        lambda z: z[:1],
        lambda z: z.missing,
        lambda z: None,
    ],
)
def test_what_is_no_logits_is_one_line(entrance, what, images, unchecked):
    with pytest.raises(InputError) as error:
        entrance(Gives(what), images)
    assert "the network" in str(error.value) and "\n" not in str(error.value)


def test_other_classes_than_the_images_have_no_accuracy(images):
    """Of the logits nothing is asked: a network's features may serve another set."""
    wide = Gives(lambda z: z.repeat(1, 300))
    with pytest.raises(InputError, match="the network has 900 classes, the data 3"):
        accuracy(wide, images)
    assert logits(wide, images).shape == (37, 900)


@pytest.mark.parametrize("entrance", [accuracy, logits, lambda *args: evaluate(*args, attacks=(), masking=False)])
def test_probabilities_are_noticed(entrance, images):
    with pytest.warns(RuntimeWarning, match="probabilities"):
        entrance(Gives(lambda z: z.softmax(1)), images)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(model=None), "the network must be a torch.nn.Module"),
        (dict(images=[1]), "images must be lrc.Images, not list"),
        (dict(batch_size=0), "batch_size must be a whole number >= 1"),
        (dict(generator=7), "generator must be a torch.Generator"),
        (dict(attack=lambda model, x, y: None), "gave NoneType, not images"),
        (dict(attack=partial(pgd, eps=0.1, queries=1)), "cannot be called as an attack .*queries"),
    ],
)
def test_bad_input_is_named_in_one_line(change, says, images, unchecked):
    with pytest.raises(InputError, match=says) as error:
        accuracy(**dict(model=Brightest(), images=images) | change)
    assert "\n" not in str(error.value)


def test_an_ensemble_serves_as_an_attack_too(images):
    attack = partial(autoattack, eps=1.0, version={"pgd": partial(pgd, steps=20)})
    assert accuracy(Brightest(), images, attack=attack, generator=Generator().manual_seed(0)) == 0


def test_the_model_is_left_as_it_was(images):
    model = Brightest().train()
    accuracy(model, images)
    assert model.training and model.scale.requires_grad


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_network_is_evaluated_as_the_one_it_was_made_of(images):
    plain = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())
    found = [evaluate(net, images, attacks="fgsm", masking=False) for net in (plain, torch.jit.script(plain))]
    assert found[0].results["fgsm"].predictions == found[1].results["fgsm"].predictions
    assert found[0].results["fgsm"].cost.forward == found[1].results["fgsm"].cost.forward > 0


def test_a_network_whose_answers_depend_on_neighbours_is_refused(images):
    """Its accuracy would be another with another batch size."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    model = nn.Sequential(norm, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3, 3))
    for ask in (accuracy, partial(evaluate, attacks="fgsm", masking=False)):
        with pytest.raises(InputError, match="depends on the others in its batch"):
            ask(model, images)
