import json
import os
from pathlib import Path

import pytest
import torch

from lrc.hierarchy import CIFAR10, CIFAR100, STL10, Hierarchy, Level, wordnet_distance
from lrc.utils.errors import InputError

CROSSED = (Level("row", ("a", "b"), (0, 0, 1, 1)), Level("column", ("c", "d"), (0, 1, 0, 1)))


def test_cifar10_groups_are_those_of_the_paper():
    animals, vehicles = CIFAR10.groups()
    assert (animals, vehicles) == ([2, 3, 4, 5, 6, 7], [0, 1, 8, 9])
    assert [CIFAR10.classes[i] for i in vehicles] == ["airplane", "automobile", "ship", "truck"]


@pytest.mark.parametrize("hierarchy", [CIFAR10, STL10, CIFAR100])
def test_groups_are_a_partition_of_alphabetical_classes(hierarchy):
    assert list(hierarchy.classes) == sorted(hierarchy.classes)
    assert hierarchy.nested
    for level in range(len(hierarchy.levels)):
        assert sorted(sum(hierarchy.groups(level), [])) == list(range(len(hierarchy.classes)))


def test_stl10_classes_are_those_of_the_data_set():
    assert STL10.classes == tuple("airplane bird car cat deer dog horse monkey ship truck".split())
    assert STL10.groups() == [[1, 3, 4, 5, 6, 7], [0, 2, 8, 9]]


def test_cifar100_has_twenty_superclasses_of_five():
    level = CIFAR100.levels[0]
    assert len(CIFAR100.classes) == 100
    assert list(level.names) == sorted(level.names)
    assert [len(group) for group in CIFAR100.groups()] == [5] * 20


def test_cifar100_kinds_hold_whole_superclasses():
    superclass, kind = CIFAR100.levels
    assert superclass.nests_in(kind) and not kind.nests_in(superclass)
    sizes = dict(zip(kind.names, map(len, CIFAR100.groups(1)), strict=True))
    assert sizes == {
        "animals": 45,
        "household_things": 15,
        "outdoor_scenes": 10,
        "people": 5,
        "plants": 15,
        "vehicles": 10,
    }
    of = {name: kind.names[g] for name, g in zip(CIFAR100.classes, kind.of, strict=True)}
    named = [of[name] for name in ("trout", "worm", "woman", "rose", "lamp", "castle", "tank")]
    assert named == ["animals", "animals", "people", "plants", "household_things", "outdoor_scenes", "vehicles"]


def test_cifar100_superclasses_of_the_papers_split():
    names = [[CIFAR100.classes[i] for i in CIFAR100.groups()[g]] for g in (1, 2, 5, 14)]
    assert [members[-1] for members in names] == ["trout", "tulip", "television", "woman"]


def test_select_relabels_and_drops_empty_groups():
    chosen = CIFAR10.select([9, 3, 0])
    assert chosen.classes == ("truck", "cat", "airplane")
    assert chosen.groups() == [[1], [0, 2]]
    assert CIFAR10.select([1, 8]).levels == (Level("kind", ("vehicles",), (0, 0)),)


@pytest.mark.parametrize("of", [(0, 0), (0, 2), (0, -1)])
def test_level_refuses_groups_that_are_not_there_or_empty(of):
    with pytest.raises(InputError, match="'pairs'"):
        Level("pairs", ("a", "b"), of)


def test_names_are_there_once():
    with pytest.raises(InputError, match="group 0 and 1 are both called 'bird'"):
        Level("kind", ("bird", "bird"), (0, 1))
    with pytest.raises(InputError, match="class 0 and 2 are both called 'crane'"):
        Hierarchy(("crane", "dog", "crane"), (), "made up")


def test_hierarchy_refuses_a_level_of_other_length():
    with pytest.raises(InputError, match="groups 2 classes, there are 3"):
        Hierarchy(("x", "y", "z"), (Level("pairs", ("a", "b"), (0, 1)),), "made up")


def test_levels_go_from_fine_to_coarse():
    fine, coarse = Level("fine", tuple("abc"), (0, 0, 1, 2)), Level("coarse", tuple("de"), (0, 0, 1, 1))
    assert Hierarchy(tuple("wxyz"), (fine, coarse), "made up").nested
    for levels in ((coarse, fine), CROSSED):
        with pytest.raises(InputError, match="give levels from fine to coarse, or say nested=False"):
            Hierarchy(tuple("wxyz"), levels, "made up")
    crossed = Hierarchy(tuple("wxyz"), CROSSED, "made up", nested=False)
    assert not crossed.select([0, 1, 3]).nested


def test_distance_is_the_level_at_which_classes_meet():
    distance = CIFAR100.distance()
    i = {name: n for n, name in enumerate(CIFAR100.classes)}
    assert (distance == distance.T).all() and (distance.diagonal() == 0).all()
    for pair, expected in {("trout", "shark"): 1, ("trout", "bee"): 2, ("trout", "rose"): 3}.items():
        assert distance[i[pair[0]], i[pair[1]]] == expected
    assert [int((distance == d).sum()) for d in (1, 2, 3)] == [
        20 * 5 * 4,
        sum(n * n for n in (45, 15, 10, 5, 15, 10)) - 20 * 25,
        100**2 - sum(n * n for n in (45, 15, 10, 5, 15, 10)),
    ]
    assert (distance[:, None] <= distance[:, :, None].maximum(distance)).all()  # ultrametric, as of any tree
    assert (CIFAR10.distance()[0] == torch.tensor([0, 1, 2, 2, 2, 2, 2, 2, 1, 1])).all()


def test_distance_of_levels_that_cut_through_each_other():
    expected = [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    assert Hierarchy(tuple("wxyz"), CROSSED, "made up", nested=False).distance().tolist() == expected


def test_wordnet_distances_counted_in_the_database():
    names = "airplane automobile bird cat deer dog frog horse monkey ship truck".split()
    expected = [  # shortest paths in the files of WordNet 3.0, found by another program
        [0, 8, 14, 18, 19, 13, 15, 19, 17, 5, 8],
        [8, 0, 13, 17, 18, 12, 14, 18, 16, 7, 2],
        [14, 13, 0, 6, 7, 5, 3, 7, 5, 13, 13],
        [18, 17, 6, 0, 7, 4, 7, 7, 5, 17, 17],
        [19, 18, 7, 7, 0, 7, 8, 6, 6, 18, 18],
        [13, 12, 5, 4, 7, 0, 6, 7, 5, 12, 12],
        [15, 14, 3, 7, 8, 6, 0, 8, 6, 14, 14],
        [19, 18, 7, 7, 6, 7, 8, 0, 6, 18, 18],
        [17, 16, 5, 5, 6, 5, 6, 6, 0, 16, 16],
        [5, 7, 13, 17, 18, 12, 14, 18, 16, 0, 7],
        [8, 2, 13, 17, 18, 12, 14, 18, 16, 7, 0],
    ]
    assert wordnet_distance(names).tolist() == expected


@pytest.mark.parametrize("hierarchy", [CIFAR10, STL10, CIFAR100])
def test_wordnet_distance_has_all_classes(hierarchy):
    distance = wordnet_distance(hierarchy.classes)
    assert distance.isfinite().all() and (distance == distance.T).all() and (distance == distance.round()).all()
    assert ((distance == 0) == torch.eye(len(distance), dtype=torch.bool)).all()
    near, far = (distance[hierarchy.distance() == d].mean() for d in (1, len(hierarchy.levels) + 1))
    assert near + 3 < far


def test_wordnet_distance_of_unknown_classes():
    with pytest.raises(InputError, match=r"no WordNet senses are kept for \['unicorn'\]"):
        wordnet_distance(["cat", "unicorn"])


@pytest.mark.skipif("LRC_DATA" not in os.environ, reason="LRC_DATA is not set")
@pytest.mark.parametrize("split", ["train-00000-of-00002", "test-00000-of-00001"])
def test_cifar100_agrees_with_the_published_labels(split):
    parquet = pytest.importorskip("pyarrow.parquet")
    file = Path(os.environ["LRC_DATA"], "cifar100", f"{split}.parquet")
    if not file.exists():
        pytest.skip("no CIFAR-100 in LRC_DATA")
    table = parquet.read_table(file, columns=["fine_label", "coarse_label"])
    fine, coarse = (column.to_pylist() for column in table.columns)
    assert dict(zip(fine, coarse, strict=True)) == dict(enumerate(CIFAR100.levels[0].of))
    names = json.loads((table.schema.metadata or {}).get(b"lrc", b"{}"))
    assert tuple(names.get("classes", CIFAR100.classes)) == CIFAR100.classes
    assert tuple(names.get("superclasses", CIFAR100.levels[0].names)) == CIFAR100.levels[0].names
