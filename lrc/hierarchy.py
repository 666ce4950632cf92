"""Which classes belong together by meaning: the groups that clusters of class rows are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass

from lrc.errors import InputError


@dataclass(frozen=True)
class Level:
    """One way of grouping classes: class `i` belongs to the group `names[of[i]]`."""

    name: str
    names: tuple[str, ...]
    of: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises InputError unless every group exists and has a class."""
        if set(self.of) != set(range(len(self.names))):
            raise InputError(f"level {self.name!r}: every entry of `of` must name a group, and every group a class")


@dataclass(frozen=True)
class Hierarchy:
    """Classes and their groups, level by level; `source` says who grouped them so.

    >>> CIFAR10.groups()
    [[2, 3, 4, 5, 6, 7], [0, 1, 8, 9]]
    >>> CIFAR10.select([0, 9]).levels[0].names
    ('vehicles',)
    """

    classes: tuple[str, ...]
    levels: tuple[Level, ...]
    source: str

    def __post_init__(self) -> None:
        """Raises InputError unless each level groups each class."""
        for level in self.levels:
            if len(level.of) != len(self.classes):
                raise InputError(f"level {level.name!r} groups {len(level.of)} classes, there are {len(self.classes)}")

    def groups(self, level: int = 0) -> list[list[int]]:
        """Indices of the classes of each group, in the order of the names: a partition of all classes."""
        of = self.levels[level].of
        return [[i for i, g in enumerate(of) if g == group] for group in range(len(self.levels[level].names))]

    def select(self, indices: Sequence[int]) -> "Hierarchy":
        """The same hierarchy over some of the classes, in the order given; groups left empty are dropped."""
        levels = tuple(_select(level, indices) for level in self.levels)
        return Hierarchy(tuple(self.classes[i] for i in indices), levels, self.source)


def _select(level: Level, indices: Sequence[int]) -> Level:
    of = [level.of[i] for i in indices]
    kept = sorted(set(of))
    return Level(level.name, tuple(level.names[g] for g in kept), tuple(kept.index(g) for g in of))


def _hierarchy(name: str, members: dict[str, str], source: str) -> Hierarchy:
    """A hierarchy of one level from a table group -> classes; classes in alphabetical order."""
    group_of = {c: g for g, (_, text) in enumerate(members.items()) for c in text.split()}
    classes = tuple(sorted(group_of))
    return Hierarchy(classes, (Level(name, tuple(members), tuple(group_of[c] for c in classes)),), source)


CIFAR10 = _hierarchy(
    "kind",
    {
        "animals": "bird cat deer dog frog horse",
        "vehicles": "airplane automobile ship truck",
    },
    "Bai et al., Clustering Effect of (Linearized) Adversarial Robust Models, NeurIPS 2021, arXiv:2111.12922",
)

CIFAR100 = _hierarchy(
    "superclass",
    {
        "aquatic_mammals": "beaver dolphin otter seal whale",
        "fish": "aquarium_fish flatfish ray shark trout",
        "flowers": "orchid poppy rose sunflower tulip",
        "food_containers": "bottle bowl can cup plate",
        "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
        "household_electrical_devices": "clock keyboard lamp telephone television",
        "household_furniture": "bed chair couch table wardrobe",
        "insects": "bee beetle butterfly caterpillar cockroach",
        "large_carnivores": "bear leopard lion tiger wolf",
        "large_man-made_outdoor_things": "bridge castle house road skyscraper",
        "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
        "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
        "medium_mammals": "fox porcupine possum raccoon skunk",
        "non-insect_invertebrates": "crab lobster snail spider worm",
        "people": "baby boy girl man woman",
        "reptiles": "crocodile dinosaur lizard snake turtle",
        "small_mammals": "hamster mouse rabbit shrew squirrel",
        "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
        "vehicles_1": "bicycle bus motorcycle pickup_truck train",
        "vehicles_2": "lawn_mower rocket streetcar tank tractor",
    },
    "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009: superclasses of CIFAR-100",
)
