"""Which classes belong together by meaning: the groups that clusters of class rows are compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lrc.utils.errors import InputError
from lrc.utils.tensors import Matrix

WORDNET = Path(__file__).parent / "wordnet.txt"


def check_names(what: str, names: tuple[str, ...]) -> None:
    """Raises InputError unless these are texts, each once: tables, files and users go by the names."""
    if not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"names of each {what} are {names!r}, expected at least one text, in a tuple")
    if again := next((i for i, name in enumerate(names) if name in names[:i]), None):
        first = names.index(names[again])
        raise InputError(
            f"{what} {first} and {again} are both called {names[again]!r}: make the names differ, as in 'crane (bird)'"
        )


@dataclass(frozen=True)
class Level:
    """One way of grouping classes: class `i` belongs to the group `names[of[i]]`."""

    name: str
    names: tuple[str, ...]
    of: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises InputError unless every group exists, has a class and a name of its own."""
        check_names("group", self.names)
        if not isinstance(self.of, tuple) or not all(isinstance(number, int) for number in self.of):
            raise InputError(f"level {self.name!r}: `of` must be a tuple of numbers of groups, not {self.of!r:.80}")
        if set(self.of) != set(range(len(self.names))):
            raise InputError(f"level {self.name!r}: every entry of `of` must name a group, and every group a class")

    def nests_in(self, coarser: "Level") -> bool:
        """Whether each group lies within one group of the other level."""
        return len(set(zip(self.of, coarser.of, strict=True))) == len(self.names)


@dataclass(frozen=True)
class Hierarchy:
    """Classes and their groups, level by level from fine to coarse; `source` says who grouped them so.

    Attributes:
        classes: names, in the order of the data set's labels.
        levels: groupings of all classes.
        source: who made them.
        nested: whether each group lies within one of the next level, which is checked. False for levels that cut
            through each other.

    >>> CIFAR10.groups()
    [[2, 3, 4, 5, 6, 7], [0, 1, 8, 9]]
    >>> CIFAR10.select([0, 9]).levels[0].names
    ('vehicles',)
    """

    classes: tuple[str, ...]
    levels: tuple[Level, ...]
    source: str
    nested: bool = True

    def __post_init__(self) -> None:
        """Raises InputError for a class that is there twice or not in a level, or levels that do not nest."""
        check_names("class", self.classes)
        if not isinstance(self.levels, tuple) or not all(isinstance(level, Level) for level in self.levels):
            raise InputError(f"levels of a hierarchy must be Levels, in a tuple, not {self.levels!r:.80}")
        for level in self.levels:
            if len(level.of) != len(self.classes):
                raise InputError(f"level {level.name!r} groups {len(level.of)} classes, there are {len(self.classes)}")
        for fine, coarse in pairwise(self.levels):
            if self.nested and not fine.nests_in(coarse):
                raise InputError(
                    f"a group of level {fine.name!r} is not within one of {coarse.name!r}: "
                    "give levels from fine to coarse, or say nested=False"
                )

    @classmethod
    def of(
        cls, groups: Mapping[str, Sequence[str]], classes: Sequence[str], *, source: str = "the user"
    ) -> "Hierarchy":
        """The hierarchy of one level that these groups make: names of classes by the name of their group.

        Raises:
            InputError: a class in no group, in two, or that there is not.

        >>> Hierarchy.of({"animals": ["cat", "dog"], "vehicles": ["car"]}, ["car", "cat", "dog"]).groups()
        [[1, 2], [0]]
        """
        names, members = tuple(groups), [m for group in groups.values() for m in group]
        if unknown := [m for m in members if m not in classes]:
            raise InputError(f"groups name {unknown[0]!r}, which is no class; the classes are {', '.join(classes)}")
        if wrong := [c for c in classes if members.count(c) != 1]:
            raise InputError(f"class {wrong[0]!r} is in {members.count(wrong[0])} groups: each class belongs to one")
        of = tuple(next(g for g, name in enumerate(names) if c in groups[name]) for c in classes)
        return cls(tuple(classes), (Level("groups", names, of),), source)

    def groups(self, level: int = 0) -> list[list[int]]:
        """Indices of the classes of each group, in the order of the names: a partition of all classes."""
        of = self.levels[level].of
        return [[i for i, g in enumerate(of) if g == group] for group in range(len(self.levels[level].names))]

    def distance(self) -> Matrix:
        """How far up two classes have to go to meet: 0 for one class, 1 if they share a group of the first level.

        Otherwise 2 if they share one of the second level, and so on; one more than there are levels if they share none.

        >>> CIFAR100.distance()[:3, :3]  # apple, aquarium fish, baby
        tensor([[0., 3., 3.],
                [3., 0., 3.],
                [3., 3., 0.]], dtype=torch.float64)
        """
        distance = torch.full((len(self.classes),) * 2, len(self.levels) + 1.0, dtype=torch.float64)
        for number, level in reversed([*enumerate(self.levels)]):
            of = torch.tensor(level.of)
            distance[of[:, None] == of] = number + 1.0
        return distance.fill_diagonal_(0)

    def select(self, indices: Sequence[int]) -> "Hierarchy":
        """The same hierarchy over some of the classes, in the order given; groups left empty are dropped."""
        levels = tuple(_select(level, indices) for level in self.levels)
        return Hierarchy(tuple(self.classes[i] for i in indices), levels, self.source, self.nested)


def _select(level: Level, indices: Sequence[int]) -> Level:
    of = [level.of[i] for i in indices]
    kept = sorted(set(of))
    return Level(level.name, tuple(level.names[g] for g in kept), tuple(kept.index(g) for g in of))


def wordnet_distance(classes: Sequence[str]) -> Matrix:
    """Path distance in WordNet 3.0: the fewest is-a links from one class up to a common ancestor and down to the other.

    The table has the classes of CIFAR-10, STL-10 and CIFAR-100, with the links of the noun senses that fit the picture
    and, in CIFAR-100, the superclass: nearly always the first sense that is not a food, a fur, a person or the like.
    Two choices are ours: an aquarium fish is a fish, a keyboard is that of a computer. A sense may have several
    parents; that is how a dog (a domestic animal) is nearer to a bird than a cat is.

    Raises:
        InputError: a class that is not in the table.

    Source: Fellbaum (ed.), *WordNet: An Electronic Lexical Database* (1998); Rada et al., *Development and application
    of a metric on semantic nets* (1989).

    >>> wordnet_distance(["cat", "dog", "bird", "truck"])
    tensor([[ 0.,  4.,  6., 17.],
            [ 4.,  0.,  5., 12.],
            [ 6.,  5.,  0., 13.],
            [17., 12., 13.,  0.]], dtype=torch.float64)
    """
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise InputError(f"classes must be a list of names, not {classes!r:.80}")
    place, up = _wordnet()
    if missing := [name for name in classes if name not in place]:
        raise InputError(f"no WordNet senses are kept for {missing}: give a distance of your own, or a Hierarchy's")
    rows = up[[place[name] for name in classes]]
    return (rows[:, None] + rows).amin(-1)


@cache
def _wordnet() -> tuple[dict[str, int], Float[Tensor, "senses senses"]]:
    """Places of classes, and the number of is-a links from each sense up to each (infinite if it is no ancestor)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import shortest_path

    lines = [line for line in WORDNET.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    chains = [line.split(": ")[-1].split(" < ") for line in lines]
    senses = {sense: n for n, sense in enumerate(dict.fromkeys(sense for chain in chains for sense in chain))}
    links = [(senses[low], senses[high]) for chain in chains for low, high in pairwise(chain)]
    graph = coo_array(([1] * len(links), tuple(zip(*links, strict=True))), shape=(len(senses),) * 2)
    place = {line.split(": ")[0]: senses[chain[0]] for line, chain in zip(lines, chains, strict=True) if ": " in line}
    return place, torch.from_numpy(shortest_path(graph, unweighted=True))


def _hierarchy(source: str, **levels: dict[str, str]) -> Hierarchy:
    """A hierarchy from tables group -> members: classes at the first level, groups of the level before at others.

    Classes are in alphabetical order, as in the data sets.
    """
    made: list[Level] = []
    members = classes = tuple(sorted(" ".join(next(iter(levels.values())).values()).split()))
    for name, table in levels.items():
        group_of = {member: g for g, text in enumerate(table.values()) for member in text.split()}
        below = made[-1].of if made else range(len(classes))
        made.append(Level(name, tuple(table), tuple(group_of[members[g]] for g in below)))
        members = tuple(table)
    return Hierarchy(classes, tuple(made), source)


PAPER = "Bai et al., Clustering Effect of (Linearized) Adversarial Robust Models, NeurIPS 2021, arXiv:2111.12922"

CIFAR10 = _hierarchy(
    PAPER,
    kind={
        "animals": "bird cat deer dog frog horse",
        "vehicles": "airplane automobile ship truck",
    },
)

STL10 = _hierarchy(
    "classes: Coates et al., An Analysis of Single-Layer Networks in Unsupervised Feature Learning, AISTATS 2011; "
    "animals and vehicles as for CIFAR-10",
    kind={
        "animals": "bird cat deer dog horse monkey",
        "vehicles": "airplane car ship truck",
    },
)

CIFAR100 = _hierarchy(
    "superclasses: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; their kinds are our own",
    superclass={
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
    kind={  # fungi go with plants here, as mushrooms are among the vegetables
        "animals": "aquatic_mammals fish insects large_carnivores large_omnivores_and_herbivores medium_mammals "
        "non-insect_invertebrates reptiles small_mammals",
        "household_things": "food_containers household_electrical_devices household_furniture",
        "outdoor_scenes": "large_man-made_outdoor_things large_natural_outdoor_scenes",
        "people": "people",
        "plants": "flowers fruit_and_vegetables trees",
        "vehicles": "vehicles_1 vehicles_2",
    },
)
