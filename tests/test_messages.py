# ruff: noqa: E501 (a line of the table is one message)
"""What a refusal says: the name of what is wrong, what it is, and how to mend it. One line a message."""

from functools import partial

import pytest
import torch
from test_fuzz import IMAGES_OF_FOUR, SHAPE, Net, NoWayBack, correlation, plain_training, scripted
from torch import nn

import lrc
from lrc import attacks, clustering, data, evaluation, hierarchy, models, objectives, plots
from lrc.cli.inspection import _groups
from lrc.experiments.studies import records
from lrc.inspection.architectures import Built
from lrc.utils.files import write_lines

C, X, Y = correlation(4), torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
W = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
GROUPS = [[0, 1], [2, 3]]
Level, Hierarchy = hierarchy.Level, hierarchy.Hierarchy
train = partial(lrc.train, epochs=1, batch_size=4, augment=False)


def compiled():
    (model := Net()).compile()
    return model


CASES = [
    (lambda: lrc.contrast(C[:3], GROUPS), r"matrix of classes must be a matrix \(classes, classes\), not \(3, 4\)"),
    (lambda: lrc.contrast(C.tolist(), GROUPS), "must be a torch.Tensor, not list: torch.as_tensor makes one"),
    (lambda: lrc.contrast(C * torch.nan, GROUPS), "matrix of classes holds values that are not finite"),
    (lambda: lrc.contrast(C, "ab"), r"groups must be lists of class indices, as \[\[0, 1\], \[2, 3\]\], not 'ab'"),
    (lambda: lrc.contrast(C, [[0], [1]]), "groups must hold each class from 0 to 3 once"),
    (lambda: lrc.agreement([], []), "no classes in the groups: give at least one"),
    (lambda: lrc.tree(C + torch.arange(4.0)), "symmetric matrix, such as C"),
    (lambda: lrc.tree(C[:1, :1]), "at least two classes, not 1"),
    (lambda: lrc.cut([[0, 1]], 2), r"this is no tree .*: lrc.tree\(C\) makes one"),
    (lambda: lrc.cut(lrc.tree(C), 5), "4 classes can be cut into 1 to 4 groups, not 5"),
    (lambda: lrc.class_correlation(W.long()), r"W must be floating-point numbers, not torch.int64: W.float\(\)"),
    (lambda: lrc.class_correlation(W[0, 0, 0]), r"W must be rows \(n, ...\) of one number or more, not \(4,\)"),
    (lambda: lrc.alignment(W, W), r"local maps of shape .* do not go with a W of shape .*mean_local_map\(...\)\[None\]"),
    (lambda: clustering.holm("ab"), "p values must be a list of numbers, not 'ab'"),
    (lambda: clustering.holm([[0.1]]), r"one list of numbers, not of shape \(1, 1\)"),
    (lambda: clustering.p_value(0.1, W), "null distribution must be a vector of finite numbers"),
    (lambda: clustering.t_interval(W), r"values must be real numbers \(n,\), not torch.float32"),
    (lambda: clustering.bootstrap(torch.linalg.inv, X.flatten(1).repeat(3, 1)), "statistic gives no number of samples"),
    (lambda: lrc.permutation_tests(C, GROUPS), "hierarchy must be an lrc.hierarchy.Hierarchy, not list"),
    (lambda: lrc.permutation_tests(C, Hierarchy(tuple("abcd"), (Level("one", ("x",), (0, 0, 0, 0)),), "")), "level 'one': "),
    (lambda: evaluation.wilson(3, 2), "3 of 2 trials cannot have come true"),
    (lambda: evaluation.confusions(X, Y, GROUPS), r"predictions must be whole numbers \(n,\), not torch.float32"),
    (lambda: Level("kind", ("a", "b"), (0, 5)), "every entry of `of` must name a group"),
    (lambda: Level("kind", ("a", "b"), 3), "`of` must be a tuple of numbers of groups, not 3"),
    (lambda: Hierarchy(("a", "b"), "kind", ""), "levels of a hierarchy must be Levels, in a tuple, not 'kind'"),
    (lambda: hierarchy.wordnet_distance("cat"), "classes must be a list of names, not 'cat'"),
    (lambda: lrc.Images(IMAGES_OF_FOUR.x, IMAGES_OF_FOUR.y, tuple("abcd"), "kinds"), "hierarchy must be an .*not str"),
    (lambda: IMAGES_OF_FOUR.subset([9]), "go beyond the 8 images"),
    (lambda: IMAGES_OF_FOUR.select("cat"), "classes to select: 'cat', expected a list of names or indices"),
    (lambda: data.class_means([X, Y]), "images must be lrc.Images, not list: Images.from_arrays makes them"),
    (lambda: [*data.batches(IMAGES_OF_FOUR, 2, share=(2, 2))], r"share must be \(i, n\), the i-th of n processes"),
    (lambda: data.named(3, "test"), "name of a data set must be a text, not int"),
    (lambda: data.folder(3), "path must be that of a folder, not int"),
    (lambda: models.build("resnet8", width="wide"), "width must be a whole number >= 0, not 'wide'"),
    (lambda: models.build("resnet8", depth=3), r"network resnet8 cannot be built with {'depth': 3}: .*unexpected"),
    (lambda: models.resnet8(stem=[3]), r"stem must be the size of a kernel and its stride, as \(3, 1\), not \[3\]"),
    (lambda: models.Normalize("ab", (1.0,)), "mean must be finite numbers, one a channel, not 'ab'"),
    (lambda: models.Normalize((0.5,), (0.0,)), "std must be > 0 and of as many channels as mean"),
    (lambda: lrc.local_map(Net(lambda z: z.to(torch.cfloat)), X), "must give real logits, not torch.complex64"),
    (lambda: lrc.local_map(Net(before=NoWayBack.apply), X), "has a part without a derivative"),
    (lambda: lrc.linearize(Net(), rules=[1]), "rules must be a mapping of operations to rules, not list"),
    (lambda: lrc.linearize(Net(), keep=3), "keep must be a name, a layer or several of these, not int"),
    (lambda: lrc.linearize(Net(), start=3), "start must be the name of a module, not int"),
    (lambda: attacks.pgd(Net(), X, Y, eps=0.1, steps=1, loss=lambda z, y: z.missing), r"loss fails on logits \(3, 4\)"),
    (lambda: train(Net(), IMAGES_OF_FOUR, "trades"), "objective must be a function, not 'trades'"),
    (lambda: train(Net(), IMAGES_OF_FOUR, plain_training, stop=3), "stop must be a function, not 3"),
    (lambda: train(Net(), IMAGES_OF_FOUR, plain_training, stop=lambda: None), r"stop must take \(history\): too many"),
    (lambda: train(Net(), IMAGES_OF_FOUR, lambda x: x), r"objective must take \(model, x, y, generator=...\): "),
    (lambda: train(Net(lambda z: z.detach()), IMAGES_OF_FOUR, plain_training), "number that depends on the weights"),
    (lambda: lrc.training.milestones(1.5), r"a milestone, a fraction of the training, must be in \[0, 1\], not 1.5"),
    (lambda: objectives.clustering_term(X.flatten(1)[:, :4], GROUPS, reduction="max"), 'reduction must be "sum" or "mean"'),
    (lambda: lrc.claim("one", "two", at_least=1), "claim 'one': value and bound must be numbers"),
    (lambda: plots.matrix(C, ("a", "b")), "2 names for 4 classes: give one for each"),
    (lambda: plots.matrix(C, tuple("abcd"), groups=[[0, 7]]), "groups must hold classes from 0 to 3"),
    (lambda: plots.images(X[0]), r"images must be \(n, 3, h, w\)"),
    (lambda: plots.images(X, titles=["a"]), "are titles for 3 images: give one for each"),
    (lambda: plots.curves({"a": []}), "series must be a mapping of names to numbers"),
    (lambda: plots.curves({"a": [1, 2]}, x=[1]), "x has 1 numbers: each series must have as many"),
    (lambda: plots.ink(3), "names must be a list, not 3"),
    (lambda: attacks.pgd(Net(), X, Y, eps=0.1, steps=1, loss=lambda z, y: z.mean()), r"one value an image, \(\d,\), not \(\): reduction"),
    (lambda: clustering.random_contrasts(lambda: 0, GROUPS, n=2), "build must take a generator, and fails on one: .*argument"),
    (lambda: Hierarchy.of({"a": ["cat"], "b": ["cat", "dog"]}, ["cat", "dog"]), "class 'cat' is in 2 groups: each class .* one"),
    (lambda: data.named("cifar10", "test", sise=32), "data set cifar10 has no such option: .*sise"),
    (lambda: data.named("living17", "test", sise=32), "data set living17 has no such option: .*sise"),
    (lambda: lrc.inspect(Net()), "nobody knows on which images .* trained: give labelled ones of its classes"),
    (lambda: lrc.inspection.subject(Net(), SHAPE, normalization=((0.5,), (0.2,))), "a number for each channel: the images have 3"),
    (lambda: lrc.linear_map(scripted(), input_shape=SHAPE), "holds TorchScript, which cannot be traced: give the Python code"),
    (lambda: lrc.evaluate(Net(), IMAGES_OF_FOUR, fabric=3), "fabric must be what .*join gives, not int"),
    (lambda: lrc.compare(3, 4), r"two inspections or more, as lrc.inspect gives them, not \(3, 4\)"),
    (lambda: lrc.zoo.recipe("shapes-resnet8-at", change=[1]), r"change must be a mapping of sections .*, not \[1\]"),
    (lambda: lrc.zoo.recipe("shapes-resnet8-at", limit=0.5), "limit must be a number of images >= 1, not 0.5"),
    (lambda: objectives.named(3), "name must be a text, not 3"),
    (lambda: objectives.named("trades", beta="6"), "beta must be >= 0 and finite, not '6'"),
    (lambda: objectives.named("fast", random_start="no"), "random_start must be True or False, not 'no'"),
    (lambda: objectives.named("trades", clustering=0.1, groups=[[0, 1.5]]), "each of each of groups must be a whole number >= 0, not 1.5"),
    (lambda: objectives.clustr(compiled(), X, Y, X), "looks inside the network, which torch.compile hides: train without"),
    (lambda: objectives.named("standard")(Net(), X, Y + 9), r"label 11 among the labels, where the network has classes 0..3"),
    (lambda: objectives.named("standard")(Net(lambda z: (z,)), X, Y), "must give logits .*, not tuple: return one tensor"),
    (lambda: objectives.named("trades", steps=1)(Net(), X.double(), Y), "network is torch.float32, the images torch.float64"),
    (lambda: objectives.named("distillation", teacher=Net(), temperature=0)(Net(), X, Y), r"temperature must be > 0"),
    (lambda: plots.rows(W * torch.inf), "W holds values that are not finite"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "says"), CASES, ids=[says[:40] for _, says in CASES])
def test_a_refusal_says_what_is_wrong(unchecked, call, says):
    with pytest.raises(lrc.InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [data.cifar10, data.stl10])
def test_data_that_are_not_there_are_named_with_what_is_looked_for(tmp_path, source):
    with pytest.raises(lrc.InputError, match=r"is not in .*: it should hold .*"):
        source("test", root=tmp_path)


def test_a_folder_that_is_a_file_is_no_place_for_a_training(tmp_path):
    (place := tmp_path / "file").write_text("")
    with pytest.raises(lrc.InputError, match=r"file cannot be written \(.*\): name another folder"):
        train(Net(), IMAGES_OF_FOUR, plain_training, out=place)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("cifar10-resnet18-at", "is not shipped, and training it takes hours: lrc zoo make cifar10-resnet18-at"),
        ("timm:resnet18", "timm is not installed: pip install timm"),
    ],
)
def test_networks_that_cannot_be_had_are_named_with_the_command_that_gets_them(monkeypatch, tmp_path, spec, says):
    monkeypatch.setenv("LRC_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(lrc.InputError, match=says):
        lrc.inspection.usual_side(spec)


def test_a_network_for_images_of_another_size_says_which(monkeypatch):
    built = Built(lambda _: Net(), usual=(3, 4, 4))
    monkeypatch.setattr("lrc.inspection.networks.architecture", lambda *_, **__: built)
    with pytest.raises(lrc.InputError, match="does not take images of 3x8x8: .*; it was made for --size 4"):
        lrc.inspection.load("own:net", shape=(3, 8, 8))


@pytest.mark.parametrize("content", ["[1]", '{"animals": "cat"}'])
def test_groups_in_a_file_are_lists_of_names(tmp_path, content):
    (path := tmp_path / "groups.json").write_text(content)
    with pytest.raises(
        lrc.InputError, match=r"--groups .*: expected names of groups with lists of classes, animals = "
    ):
        _groups(str(path))


def test_a_record_without_a_recipe_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RECORDS", tmp_path)
    write_lines(tmp_path / "palettes.jsonl", [{"row": "one"}])
    with pytest.raises(lrc.InputError, match=r"palettes.jsonl is damaged \(KeyError\): install the package again"):
        records.recorded("palettes")


def test_networks_without_logits_are_told_what_to_give():
    with pytest.raises(lrc.InputError, match="flatten"):
        lrc.accuracy(nn.Sequential(nn.AdaptiveAvgPool2d(1)), IMAGES_OF_FOUR)
