import json
import os
from pathlib import Path

import pytest

from lrc.errors import InputError
from lrc.hierarchy import CIFAR10, CIFAR100, Hierarchy, Level


def test_cifar10_groups_are_those_of_the_paper():
    animals, vehicles = CIFAR10.groups()
    assert (animals, vehicles) == ([2, 3, 4, 5, 6, 7], [0, 1, 8, 9])
    assert [CIFAR10.classes[i] for i in vehicles] == ["airplane", "automobile", "ship", "truck"]


@pytest.mark.parametrize("hierarchy", [CIFAR10, CIFAR100])
def test_groups_are_a_partition_of_alphabetical_classes(hierarchy):
    assert list(hierarchy.classes) == sorted(hierarchy.classes)
    assert sorted(sum(hierarchy.groups(), [])) == list(range(len(hierarchy.classes)))


def test_cifar100_has_twenty_superclasses_of_five():
    (level,) = CIFAR100.levels
    assert len(CIFAR100.classes) == 100
    assert list(level.names) == sorted(level.names)
    assert [len(group) for group in CIFAR100.groups()] == [5] * 20


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


def test_hierarchy_refuses_a_level_of_other_length():
    with pytest.raises(InputError, match="groups 2 classes, there are 3"):
        Hierarchy(("x", "y", "z"), (Level("pairs", ("a", "b"), (0, 1)),), "made up")


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
