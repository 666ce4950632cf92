"""Sub-populations: which subclasses are seen, which are held out, and that nothing is seen of these."""

from itertools import product

import numpy as np
import pytest
import torch

from lrc.data import Images, as_superclasses, cifar20, named, shapes, subpopulations
from lrc.data.parts import OFFICIAL
from lrc.hierarchy import CIFAR100
from lrc.utils.errors import InputError


@pytest.fixture
def cifar100(monkeypatch):
    """CIFAR-100 of two images a class, each filled with the number of its class."""
    y = torch.arange(100).repeat(2)
    x = y.to(torch.uint8)[:, None, None, None].expand(200, 3, 32, 32).contiguous()
    images = Images(x, y, CIFAR100.classes, CIFAR100)
    monkeypatch.setattr("lrc.data.parts.cifar100", lambda split, root=None: images)
    return images


def kinds(images):
    """The class of CIFAR-100 that each image shows, by its pixels."""
    return [CIFAR100.classes[int(v)] for v in images.x[:, 0, 0, 0]]


def test_official_split_of_cifar20(cifar100):
    coarse = {name: number for number, name in enumerate(CIFAR100.levels[0].names)}
    assert [coarse[name] for name in OFFICIAL] == [1, 2, 5, 14]
    source, target = (cifar20(part, "train") for part in ("source", "target"))
    assert target.classes == ("trout", "tulip", "television", "woman")
    assert source.classes == (
        "aquarium_fish", "flatfish", "ray", "shark", "orchid", "poppy", "rose", "sunflower",
        "clock", "keyboard", "lamp", "telephone", "baby", "boy", "girl", "man",
    )  # fmt: skip
    assert source.hierarchy.groups() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert source.hierarchy.levels[0].names == target.hierarchy.levels[0].names == OFFICIAL
    for part in (source, target):  # labels still say what the picture shows
        assert kinds(part) == [part.classes[k] for k in part.y]


@pytest.mark.parametrize(("held_out", "choice"), list(product([1, 2, 4], [None, 0, 1, 7])))
def test_all_superclasses_are_parted_without_overlap(cifar100, held_out, choice):
    source, target = subpopulations(cifar100, held_out=held_out, choice=choice)
    assert sorted(source.classes + target.classes) == sorted(CIFAR100.classes)
    assert not set(source.classes) & set(target.classes)
    assert len(source) + len(target) == len(cifar100)
    of = dict(zip(CIFAR100.classes, CIFAR100.levels[0].of, strict=True))
    for part, size in ((source, 5 - held_out), (target, held_out)):
        assert [len(g) for g in part.hierarchy.groups()] == [size] * 20
        assert [CIFAR100.levels[0].names[of[c]] for c in part.classes] == [
            part.hierarchy.levels[0].names[g] for g in part.hierarchy.levels[0].of
        ]
        assert set(kinds(part)) == set(part.classes)


def test_a_choice_is_a_seed(cifar100):
    chosen = {c: subpopulations(cifar100, choice=c)[1].classes for c in range(20)}
    assert chosen[3] == subpopulations(cifar100, choice=3)[1].classes
    assert len(set(chosen.values())) == 20
    held = [CIFAR100.groups()[0].index(CIFAR100.classes.index(classes[0])) for classes in chosen.values()]
    assert set(held) == set(range(5))  # each subclass has its chance


def test_cifar20_takes_any_superclasses(cifar100):
    assert len(cifar20("source", superclasses="all").classes) == 80
    some = cifar20("target", superclasses=("trees", "fish"), held_out=2)
    assert some.classes == ("shark", "trout", "pine_tree", "willow_tree")  # in the order of the superclasses
    assert some.hierarchy.levels[0].names == ("fish", "trees")


def test_labelled_by_superclass():
    images = shapes("test", n=160)
    found = as_superclasses(images)
    assert np.array_equal(found.y, images.y // 4) and found.hierarchy is None
    assert found.classes == images.hierarchy.levels[0].names
    assert torch.equal(found.x, images.x)


def test_by_name():
    whole = shapes("test", n=160)
    target = named("shapes", "test", n=160, part="target", held_out=2)
    assert torch.equal(target.x, subpopulations(whole, held_out=2)[1].x)
    assert named("shapes", "test", n=160, part="target", labels="superclasses").y.bincount().tolist() == [10] * 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"held_out": 0}, "0 subclasses to hold out of the 4"),
        ({"held_out": 4}, "leave at least one"),
        ({"superclasses": ["fish", "boat"]}, "expected some of house, tree, fish, car"),
        ({"superclasses": ["fish", "fish"]}, "each once"),
        ({"superclasses": []}, "each once"),
        ({"superclasses": "fish"}, "each once"),
        ({"superclasses": 3}, "each once"),
        ({"superclasses": [["fish"]]}, "each once"),
        ({"held_out": "x"}, "held_out 'x' and choice None, expected whole numbers"),
        ({"held_out": 1.5}, "held_out 1.5 and"),
        ({"held_out": True}, "held_out True and"),
        ({"choice": "abc"}, "choice 'abc', expected whole numbers"),
        ({"choice": 1.5}, "choice 1.5,"),
        ({"choice": -1}, "not below 0"),
        ({"choice": 10**30}, "expected whole numbers"),
    ],
)
def test_what_cannot_be_parted_is_refused(unchecked, options, words):
    with pytest.raises(InputError, match=words):
        subpopulations(shapes("test", n=16), **options)


def test_other_refusals(cifar100):
    plain = as_superclasses(shapes("test", n=16))
    for function in (subpopulations, as_superclasses):
        with pytest.raises(InputError, match="no superclasses: give them a hierarchy"):
            function(plain)
    with pytest.raises(InputError, match="no part 'middle'"):
        cifar20("middle")
    with pytest.raises(InputError, match="labels 'fine', expected 'classes' or 'superclasses'"):
        named("shapes", "test", labels="fine")
