"""The maps of a network and how its classes cluster in them: what an inspection shows and an export writes."""

import copy
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lrc.clustering import PermutationTest, class_correlation, contrast, cut, mantel_test, permutation_test, tree
from lrc.data import Images, as_images, named
from lrc.evaluation import logits
from lrc.hierarchy import Hierarchy, wordnet_distance
from lrc.inspection.architectures import data_of
from lrc.inspection.networks import Subject, device_of, load, subject
from lrc.inspection.verdict import reference_applies
from lrc.linearization import linear_map, linearize, mean_local_map
from lrc.linearization.surgery import Change
from lrc.utils.checks import check_choice, check_whole
from lrc.utils.errors import InputError
from lrc.utils.networks import untouched
from lrc.utils.typed import typed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PIXELS", "Clusters", "Maps", "class_means", "maps", "measured", "own_data", "prepared"]

LEAST = 2  # images that the Jacobian is averaged over
WORK = 20_000 * 32**2  # rows of Jacobians, times pixels: what they take at 32 x 32 with 100 classes and 200 images
PIXELS = 400_000  # in a batch: 250 images of CIFAR, and seven of 224 x 224, whose activations take a gigabyte
MANY = 50_000_000  # numbers in a map: 200 MB in float32
DRAWS = 5  # of random weights, where maps are cheap
PAIRS = 50_000_000  # of classes, over all permutations of the partial test
LOG_SOFTMAX: tuple[Any, ...] = (nn.LogSoftmax, F.log_softmax, torch.log_softmax, Tensor.log_softmax)
NAMES = {"W": "linear sub-network W", "local": "mean local map", "means": "mean images (no network)"}
"""What each map is called on pages, by its name in files and options."""


@dataclass(frozen=True)
class Clusters:
    """How the classes of one map cluster.

    Attributes:
        rows: the map, [classes, channels, height, width]; in bfloat16 where it has more than 50 million numbers.
        C: correlation of its rows, centred over the classes.
        contrast: mean of C within the groups less the mean between them; None without groups.
        test: that contrast among those of other groups of the same sizes; None without groups.
        partial: whether C follows the groups beyond what both share with C of the class means (a Mantel test, given
            the latter); None without groups or class means, or of these themselves.
        found: the tree of C, cut into as many clusters as there are groups, or into two.
        random: the contrast of the same map where the network has random weights, a number a draw, in order; empty
            where the recorded networks are the reference, and without a test.
    """

    rows: Float[Tensor, "classes channels height width"]
    C: Float[Tensor, "classes classes"]
    contrast: float | None
    test: PermutationTest | None
    partial: PermutationTest | None
    found: tuple[tuple[int, ...], ...]
    random: tuple[float, ...] = ()


@dataclass(frozen=True, repr=False)
class Maps:
    """The maps of one network, and how its classes cluster in each.

    Attributes:
        name, source: of the network and of the images.
        classes: their names.
        groups, group_names: superclasses as indices of classes, and their names; empty without any.
        W: the linear sub-network; None where the network cannot be linearized.
        local: the mean Jacobian of the whole network over some images; None where it is zero, as rounding makes it, or
            there is none.
        means: the mean images of the classes, no network involved: the baseline.
        images: number of images that `local` is the mean over.
        averaged: number of images that `means` are over.
        shape: of an image.
        taken_out: what became of each operation that `lrc.linearize` changed; empty where there is no W.
        comparable: the recorded networks are a reference for it: small ones for CIFAR-10.
        explored: the groups were found in the network's own tree, so that no test of them means anything.
        notes: what was done to the network that nobody asked for, and what could not be had, a sentence each.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    group_names: tuple[str, ...]
    W: Clusters | None
    local: Clusters | None
    means: Clusters | None
    images: int
    averaged: int
    shape: tuple[int, ...]
    taken_out: tuple[Change, ...]
    comparable: bool
    explored: bool
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}: {', '.join(self.maps)})"

    @property
    def maps(self) -> dict[str, Clusters]:
        """The maps that there are by what they are called, W first."""
        every = {called: getattr(self, key) for key, called in NAMES.items()}
        return {called: found for called, found in every.items() if found is not None}

    def likeness(self, of: Clusters) -> float | None:
        """Correlation of the entries of C, off the diagonal, with those of C of the mean images; in [-1, 1]."""
        if self.means is None or of is self.means or len(of.C) < 3:
            return None
        above = torch.triu_indices(len(of.C), len(of.C), 1).unbind()
        return float(torch.corrcoef(torch.stack([of.C[above], self.means.C[above]]).double())[0, 1])

    def figures(self) -> dict[str, dict[str, Any]]:
        """The numbers of each map, by its name."""
        return {
            name: {
                "contrast": found.contrast,
                "rank": found.test and found.test.rank,
                "n_splits": found.test and found.test.n_splits,
                "p_value": found.test and found.test.p_value,
                "smallest_p_value": found.test and 1 / found.test.n_splits,
                "given_class_means": found.partial and {"rho": found.partial.statistic, "p": found.partial.p_value},
                "likeness": self.likeness(found),
                "permuted_groups": found.test and list(found.test.quantiles),
                "random_weights": list(found.random),
                "found": [[self.classes[k] for k in cluster] for cluster in found.found],
            }
            for name, found in self.maps.items()
        }

    def rows(self) -> list[list[str]]:
        """These numbers as a table, its head first; "-" for what there is not."""
        table = [["", "contrast", "rank", "p", "p given means", "likeness"]]
        for name, f in self.figures().items():
            rank = "-" if f["rank"] is None else f"{f['rank']}/{f['n_splits']}"
            given = f["given_class_means"] and f["given_class_means"]["p"]
            shown = ("-" if v is None else f"{v:.3g}" for v in (f["p_value"], given, f["likeness"]))
            table.append([name, "-" if f["contrast"] is None else f"{f['contrast']:.2f}", rank, *shown])
        return table

    def record(self) -> dict[str, Any]:
        """All numbers but the maps themselves, as JSON has them; groups by index of class."""
        return {
            "network": self.name,
            "data": self.source,
            "classes": list(self.classes),
            "groups": [list(group) for group in self.groups],
            "group_names": list(self.group_names),
            "maps": self.figures(),
            "C": {name: found.C.tolist() for name, found in self.maps.items()},
            "taken_out": [asdict(change) for change in self.taken_out],
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """`record` as a text."""
        return json.dumps(self.record(), indent=1)

    def plot(self) -> "Figure":
        """C of each map side by side, classes in the order of the groups."""
        import matplotlib.pyplot as plt

        from lrc.plots import matrix

        figure, axes = plt.subplots(
            1, len(self.maps), figsize=(4.5 * len(self.maps), 4), layout="constrained", squeeze=False
        )
        for ax, (name, found) in zip(axes[0], self.maps.items(), strict=True):
            said = "" if found.contrast is None else f", contrast {found.contrast:.2f}"
            matrix(found.C, self.classes, groups=self.groups or None, title=name + said, ax=ax)
        return figure


@typed
def maps(
    model: nn.Module | str,
    data: Any = None,
    *,
    name: str = "",
    source: str = "the images given",
    groups: str | Mapping[str, Sequence[str]] = "data",
    local: int = 200,
    notes: Sequence[str] = (),
    only: Collection[str] = tuple(NAMES),
) -> Maps:
    """The maps of a network, and how its classes cluster in them: what `lrc.inspect` shows of it besides attacks.

    Args:
        model, data, name, source, groups, local, notes: as in `lrc.inspect`.
        only: of "W", "local" and "means" those that are wanted.

    Raises:
        InputError: as `lrc.inspect`; a map of another name.
    """
    for key in only:
        check_choice("map", key, NAMES)
    found, images, tested = prepared(model, data, groups)
    said = [*notes, *found.notes]
    return measured(
        found.model, images, name=name or found.name, source=source, groups=groups, tested=tested, local=local,
        notes=said, only=only,
    )  # fmt: skip


def prepared(
    model: nn.Module | str, data: Any, groups: str | Mapping[str, Sequence[str]]
) -> tuple[Subject, Images, bool]:
    """The network with logits, its images with the groups that were asked for, and whether these are to be tested."""
    images = as_images(own_data(model) if data is None else data, count=lambda some: _count(model, some))
    shape = tuple(images.x.shape[1:])
    found = load(model, shape=shape) if isinstance(model, str) else subject(model, shape)
    return found, *_grouped(images, groups)


def measured(
    model: nn.Module, images: Images, *, name: str, source: str, groups: str | Mapping[str, Sequence[str]],
    tested: bool, local: int, notes: Sequence[str], only: Collection[str] = tuple(NAMES),
) -> Maps:  # fmt: skip
    """The maps of what `prepared` gave."""
    check_whole("local", local, 1)
    shape, said = tuple(images.x.shape[1:]), list(notes)
    some = images.subset(
        min(len(images), max(LEAST, min(local, WORK // (len(images.classes) * max(shape[-1] ** 2, 1024)))))
    )
    J = _mean_local_map(model, some, said) if groups == "found" else None
    names, members = _groups(images.hierarchy if tested else None)
    if groups == "found" and J is not None and _directed(J):
        members = tuple(map(tuple, cut(tree(class_correlation(J, centre=True)), 2)))
        names = tuple(f"cluster {i + 1}" for i in range(len(members)))
    M = class_means(images) if "means" in only else None
    means = _clusters(M, members, tested=tested, given=None)
    directed = {"class means": M is None or _directed(M)}
    del M  # a gigabyte, where classes and pixels are many: only one map is there at a time
    if groups != "found" and "local" in only:
        J = _mean_local_map(model, some, said)
    jacobian = _clusters(J, members, tested=tested, given=means) if "local" in only else None
    directed = {"mean local map": J is None or _directed(J)} | directed
    del J
    W, changes = _linear(model, shape, said) if "W" in only else (None, ())
    linear = _clusters(W, members, tested=tested, given=means)
    directed = {"linear sub-network": W is None or _directed(W)} | directed
    del W
    said += [f"the {what} has classes without a row of their own" for what, whole in directed.items() if not whole]
    comparable = reference_applies(model, images)
    if not comparable and any(found is not None and found.test for found in (linear, jacobian)):
        linear, jacobian = _by_chance(model, some, members, linear, jacobian)
    return Maps(
        name, source, images.classes, members, names, linear, jacobian, means, len(some), len(images), shape, changes,
        comparable, groups == "found", tuple(said),
    )  # fmt: skip


def own_data(model: nn.Module | str) -> Images:
    """The test images of the recipe of a network that has one."""
    options = data_of(model) if isinstance(model, str) else {}
    if not options:
        raise InputError("nobody knows on which images this network was trained: give labelled ones of its classes")
    return named(options.pop("name"), "test", **options)


def _count(model: nn.Module | str, images: Images) -> int:
    """Of the classes that the network knows."""
    shape = tuple(images.x.shape[1:])
    network = (load(model, shape=shape) if isinstance(model, str) else subject(model, shape)).model
    return logits(network, images.subset(1)).shape[1]


def _grouped(images: Images, groups: str | Mapping[str, Sequence[str]]) -> tuple[Images, bool]:
    """The images with the superclasses that were asked for, and whether these are to be tested."""
    if groups == "wordnet":
        distance = wordnet_distance(images.classes)
        found = cut(tree(1 - distance / distance.max()), max(2, len(distance) // 5))
        groups = {" ".join(images.classes[k] for k in members[:3]): [images.classes[k] for k in members]
                  for members in found}  # fmt: skip
    if isinstance(groups, Mapping):
        return replace(images, hierarchy=Hierarchy.of(groups, images.classes)), True
    check_choice("grouping", groups, ("data", "wordnet", "found", "none"))
    return images, groups == "data"


def _directed(rows: Tensor) -> bool:
    """Whether each row differs from their mean, so that there is a C."""
    mean = rows.mean(0)
    return all(bool((apart := (row - mean).abs().amax()).isfinite() and apart > 0) for row in rows)


def class_means(data: Images) -> Float[Tensor, "classes channels height width"]:
    """The mean image of each class, in [0, 1]; 0 for a class without images."""
    total = torch.zeros(len(data.classes), *data.x.shape[1:])  # of whole numbers: exact up to 65,000 images a class
    for x, y in data.read([slice(start, start + 100) for start in range(0, len(data), 100)]):
        total.index_add_(0, y.cpu(), x.cpu().float())
    count = torch.bincount(data.y.cpu(), minlength=len(data.classes)).clamp(min=1)
    return total.div_(255 * count.view(-1, 1, 1, 1))


def _groups(hierarchy: Hierarchy | None) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    if hierarchy is None:
        return (), ()
    return hierarchy.levels[0].names, tuple(map(tuple, hierarchy.groups()))


def _linear(model: nn.Module, shape: tuple[int, ...], notes: list[str]) -> tuple[Tensor | None, tuple[Change, ...]]:
    """W and what was taken out for it, or None and a note that says why there is none.

    A log-softmax at the end is taken out too: it shifts all logits of an image alike, and C is centred over classes.
    """
    last = [None, *LOG_SOFTMAX] if _log_probabilities(model, shape) else [None]
    said = ""
    for operation in last:
        try:
            linear: Any = linearize(model, input_shape=shape, rules=operation and {operation: "identity"})
            return linear_map(linear, shape).cpu(), linear.report.changes
        except InputError as error:
            said = said or f"the linear sub-network cannot be had: {error}"
    notes.append(said)
    return None, ()


@torch.no_grad()
def _log_probabilities(model: nn.Module, shape: tuple[int, ...]) -> bool:
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(device_of(model))
    with untouched(model):
        return bool(torch.allclose(model(x).exp().sum(1), torch.ones(2, device=x.device), atol=1e-4))


def _mean_local_map(model: nn.Module, some: Images, notes: list[str]) -> Tensor | None:
    """The mean local map, or None and a note that says why there is none."""
    batch = max(1, min(50, 500 // len(some.classes), PIXELS // some.x[0, 0].numel()))
    try:
        return mean_local_map(model, some.float().to(device_of(model)), batch_size=batch).cpu()
    except InputError as error:
        notes.append(f"the mean local map cannot be had: {error}")
        return None


def _by_chance(
    model: nn.Module, some: Images, groups: tuple[tuple[int, ...], ...], *own: Clusters | None
) -> list[Clusters | None]:
    """The same W and mean local map, if there are any, with their contrasts where the network has random weights.

    The maps of all draws take about half of the work of those of the network itself. Where that is not enough for one
    local map a draw, as for 1,000 classes at 224 pixels, there are two draws and of W alone.
    """
    count = min(len(some), WORK // (2 * DRAWS * len(some.classes) * max(some.x[0, 0].numel(), 1024)))
    draws = DRAWS if count else LEAST
    found: list[list[float]] = [[] for _ in own]
    for seed in range(draws):
        twin = random_weights(model, seed).to(device_of(model))
        W = None if own[0] is None else _linear(twin, tuple(some.x.shape[1:]), [])[0]
        J = None if own[1] is None or not count else _mean_local_map(twin, some.subset(count), [])
        for values, rows in zip(found, (W, J), strict=True):
            chance = _clusters(rows, groups, tested=False, given=None)
            values += [] if chance is None or chance.contrast is None else [chance.contrast]
    return [c and replace(c, random=tuple(sorted(values))) for c, values in zip(own, found, strict=True)]


def random_weights(model: nn.Module, seed: int) -> nn.Module:
    """A copy on the CPU with random weights: each layer's as PyTorch begins it.

    What no layer's `reset_parameters` draws (tokens, layers of one's own, TorchScript) keeps its entries, in random
    order.
    """
    twin = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        drawn = {id(p) for module in twin.modules() if _begun(module) for p in module.parameters(recurse=False)}
        for p in twin.parameters():
            if id(p) not in drawn:
                p.copy_(p.flatten()[torch.randperm(p.numel())].view_as(p))
    return twin


def _begun(module: Any) -> bool:
    """Whether the module's own method drew its weights anew."""
    begin = None if isinstance(module, torch.jit.ScriptModule) else getattr(module, "reset_parameters", None)
    try:
        return callable(begin) and begin() is None
    except Exception:  # one's own, which may want arguments
        return False


def _clusters(
    rows: Tensor | None, groups: tuple[tuple[int, ...], ...], *, tested: bool, given: Clusters | None
) -> Clusters | None:
    if rows is None or not _directed(rows):
        return None
    C, members = class_correlation(rows, centre=True), [list(group) for group in groups]
    compared = len(groups) > 1 and any(len(group) > 1 for group in groups)
    found = cut(tree(C), min(max(len(groups), 2), len(C)))
    return Clusters(
        rows.bfloat16() if rows.numel() > MANY else rows,
        C,
        float(contrast(C, members)) if compared else None,
        permutation_test(C, members) if compared and tested else None,
        _partial(C, members, given) if compared and tested and given is not None else None,
        tuple(map(tuple, found)),
    )


def _partial(C: Tensor, groups: list[list[int]], given: Clusters) -> PermutationTest | None:
    """Whether C follows the groups beyond what it shares with the class means; None where these leave nothing."""
    apart = torch.ones(len(C), len(C), dtype=torch.float64)
    for group in groups:
        apart[torch.tensor(group)[:, None], torch.tensor(group)] = 0
    try:
        return mantel_test(C, apart, given=1 - given.C, samples=max(99, min(9999, PAIRS // len(C) ** 2)))
    except InputError:
        return None
