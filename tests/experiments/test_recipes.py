"""Recipes: every one that is written down can be read; what is wrong is one line that names the place."""

import inspect
from dataclasses import fields

import pytest

import lrc
from lrc.experiments.recipe import Training, checked, names, read, recipe, recipes

NAME = "cifar10-small-at"
ELSEWHERE = {"model", "data", "objective", "validation", "attack", "schedule", "watch", "stop", "out", "progress"}


@pytest.mark.parametrize("name", names())
def test_every_recipe_is_right_and_is_read_as_it_is_written(name):
    assert recipe(name) == recipes()[name] == read(recipe(name).written(), where=name)


def test_the_training_of_a_recipe_has_the_arguments_of_the_loop():
    possible = inspect.signature(lrc.train).parameters
    own = {f.name: f for f in fields(Training)}
    assert {*own} - {"milestones"} == {*possible} - ELSEWHERE
    for name in ("momentum", "precision", "augment", "ema", "compile", "checkpoint_every", "tensorboard"):
        assert own[name].default == possible[name].default


@pytest.mark.parametrize(
    ("section", "entries", "says"),
    [
        (
            "training",
            {"epoch": 3},
            r"training.epoch is unknown \(did you mean epochs\?\); there are epochs, batch_size",
        ),
        ("training", {"epochs": 2.5}, "training.epochs = 2.5, expected a whole number"),
        ("training", {"epochs": True}, "training.epochs = True, expected a whole number"),
        ("training", {"lr": -1}, "training.lr = -1, expected at least 0"),
        ("training", {"lr": "fast"}, "training.lr = 'fast', expected a number such as 0.03 or 8/255"),
        ("training", {"augment": "no"}, "training.augment = 'no', expected true or false"),
        ("training", {"milestones": [0.5, "late"]}, "training.milestones = .*, expected a list of numbers"),
        ("data", {"validation": 0}, "data.validation = 0, expected at least 1"),
        ("data", {"limt": 9}, r"data.limt is unknown"),
        ("data", {"name": 3}, "data.name = 3, expected text"),
        ("network", {"widht": 8}, r"network.widht is unknown \(did you mean width\?\)"),
        ("network", {"width": -1}, "network.width = -1, expected at least 1"),
        ("network", {"name": "resnet9"}, "no network is called 'resnet9'; there are resnet18, resnet8"),
        ("objective", {"stps": 3}, r"objective.stps is unknown \(did you mean steps\?\)"),
        ("objective", {"step": [1]}, r"objective.step = \[1\], expected a number"),
        ("objective", {"name": "trade"}, "no method is called 'trade'; there are standard"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(section, entries, says):
    with pytest.raises(lrc.InputError, match=f"^recipe {NAME}: {says}") as caught:
        recipe(NAME, change={section: entries})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": None}, "here is no recipe, it has no section 'data': there are data, network, objective, training"),
        ({"objective": []}, "here is no recipe, it has no section 'objective'"),
        ({"dat": {}}, r"here: dat is unknown \(did you mean data\?\)"),
        ({"eps": "wide"}, "here: eps = 'wide', expected a number such as 0.03 or 8/255"),
        ({"training": {"epochs": 3}}, "here: training.batch_size is missing: give it"),
        ({"network": {"width": 3}}, "here: network.name is missing"),
    ],
)
def test_a_file_that_is_no_recipe_says_why(change, says):
    with pytest.raises(lrc.InputError, match=says):
        checked(read(recipe(NAME).written() | change, where="here"), where="here")
