"""What can be said of a network by looking: how robust it is, whether that is masking, how its classes cluster."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from lrc.clustering import PermutationTest, class_correlation, contrast, cut, permutation_test, tree
from lrc.data import Images
from lrc.evaluation import Report, evaluate
from lrc.inspection.verdict import Verdict, verdict
from lrc.linearization import linear_map, mean_local_map
from lrc.utils.checks import check_flag, check_whole
from lrc.utils.errors import InputError

if TYPE_CHECKING:
    from lrc.hierarchy import Hierarchy

__all__ = ["Clusters", "Comparison", "Inspection", "class_means", "compare", "inspect"]

PGD = "pgd"


@dataclass(frozen=True)
class Clusters:
    """How the classes of one map cluster.

    Attributes:
        rows: the map, [classes, channels, height, width].
        C: correlation of its rows, centred over the classes.
        contrast: mean of C within the groups less the mean between them; None without groups.
        test: that contrast among those of other groups of the same sizes; None without groups.
        found: the tree of C, cut into as many clusters as there are groups, or into two.
    """

    rows: Float[Tensor, "classes channels height width"]
    C: Float[Tensor, "classes classes"]
    contrast: float | None
    test: PermutationTest | None
    found: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, repr=False)
class Inspection:
    """What `lrc.inspect` found. In a notebook it shows itself as a page.

    Attributes:
        name, source: of the network and of the images.
        report: accuracies under attack and signs of masking.
        groups, group_names: superclasses as indices of classes, and their names; empty without any.
        W: the linear sub-network; None where the network cannot be linearized.
        local: the mean Jacobian of the whole network over some images; None where it is zero, as rounding makes it.
        means: the mean images of the classes, no network involved: the baseline.
        images: number of images that `local` is the mean over.
        shape: of an image.
        explored: the groups were found in the network's own tree, so that no test of them means anything.
        notes: what was done to the network that nobody asked for, and what could not be had, a sentence each.
        verdict: see `lrc.inspection.verdict`.
    """

    name: str
    source: str
    report: Report
    groups: tuple[tuple[int, ...], ...]
    group_names: tuple[str, ...]
    W: Clusters | None
    local: Clusters | None
    means: Clusters | None
    images: int
    shape: tuple[int, ...]
    explored: bool
    notes: tuple[str, ...]
    verdict: Verdict

    def __repr__(self) -> str:
        return f"Inspection({self.name}: {self.verdict.word}; {self.report!r})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.report.classes

    @property
    def maps(self) -> dict[str, Clusters]:
        """The maps that there are by what they are called, W first."""
        every = {"linear sub-network W": self.W, "mean local map": self.local, "mean images (no network)": self.means}
        return {name: found for name, found in every.items() if found is not None}

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
                "likeness": self.likeness(found),
                "found": [[self.classes[k] for k in cluster] for cluster in found.found],
            }
            for name, found in self.maps.items()
        }

    def to_json(self) -> str:
        """All numbers, classes by index."""
        return json.dumps(
            {
                "network": self.name,
                "data": self.source,
                "verdict": {"word": self.verdict.word, "reasons": list(self.verdict.reasons)},
                "groups": [list(group) for group in self.groups],
                "group_names": list(self.group_names),
                "maps": self.figures(),
                "C": {name: found.C.tolist() for name, found in self.maps.items()},
                "notes": list(self.notes),
                "evaluation": json.loads(self.report.to_json()),
            },
            indent=1,
        )

    def to_html(self) -> str:
        """One self-contained page."""
        from lrc.inspection.page import page

        return page([self])

    def _repr_html_(self) -> str:
        from lrc.inspection.page import body

        return body(self)


def inspect(
    model: nn.Module,
    data: Images,
    *,
    name: str = "the network",
    source: str = "the images given",
    groups: str = "data",
    eps: float = 8 / 255,
    norm: str = "linf",
    attack: bool = False,
    masking: int = 200,
    local: int = 200,
    notes: Sequence[str] = (),
    generator: Generator | None = None,
    progress: bool = False,
) -> Inspection:
    """Is the network robust, or does it only look so, and do its classes cluster as those of robust networks do?

    Args:
        model: images in [0, 1] to logits (n, classes); left as it was. `lrc.inspection.load` makes one of a file.
        data: labelled test images.
        name, source: what to call network and images.
        groups: "data" for the superclasses of the data, if they have any; "found" for those that the tree of the mean
            local map gives: explored, not tested; "none".
        eps, norm: of the attacks, as in `lrc.evaluate`.
        attack: run AutoAttack beside PGD-20; it takes minutes to hours.
        masking: images on which signs of gradient masking are looked for.
        local: images over which the Jacobian is averaged; with many classes fewer.
        notes: what is to be said of the network, as `lrc.inspection.load` gives it.
        generator: of the attacks' random choices; a new one with seed 0 if absent.
        progress: show a progress bar.

    Raises:
        InputError: images that do not fit the network, another word for the groups, or as `lrc.evaluate`.
    """
    check_flag("attack", attack)
    check_whole("masking", masking)
    check_whole("local", local, 1)
    if not isinstance(groups, str) or groups not in ("data", "found", "none"):
        raise InputError(f'groups must be "data", "found" or "none", not {groups!r}')
    generator = generator or Generator().manual_seed(0)
    report = evaluate(
        model, data, attacks=(PGD, "autoattack") if attack else (PGD,), eps=eps, norm=norm,
        generator=generator, masking=masking > 0, progress=progress,
    )  # fmt: skip
    some = data.subset(min(len(data), local, max(8, 20_000 // len(data.classes))))
    x = some.float().to(next((p.device for p in model.parameters()), torch.device("cpu")))
    J = mean_local_map(model, x, batch_size=min(50, max(1, 500 // len(data.classes)))).cpu()
    names, members = _groups(data.hierarchy if groups == "data" else None)
    said = list(notes)
    if groups == "found" and _directed(J):
        members = tuple(map(tuple, cut(tree(class_correlation(J, centre=True)), 2)))
        names = tuple(f"cluster {i + 1}" for i in range(len(members)))
    shape = tuple(data.x.shape[1:])
    W = _linear(model, shape, said)
    maps = {"linear sub-network": W, "mean local map": J, "mean images": class_means(data)}
    said += [
        f"the {key} has classes without a row of their own" for key, m in maps.items() if not _directed(m, none=True)
    ]
    linear, jacobian, means = (_clusters(rows, members, tested=groups == "data") for rows in maps.values())
    given = jacobian.contrast if jacobian is not None and groups == "data" else None
    return Inspection(
        name, source, report, members, names, linear, jacobian, means, len(some), shape, groups == "found",
        tuple(said), verdict(report, given, shape=shape),
    )  # fmt: skip


def _directed(rows: Tensor | None, *, none: bool = False) -> bool:
    """Whether each row differs from their mean, so that there is a C; `none` where there are no rows."""
    if rows is None:
        return none
    centred = (rows - rows.mean(0)).flatten(1)
    return bool(centred.isfinite().all() and (centred.abs().amax(1) > 0).all())


@dataclass(frozen=True)
class Comparison:
    """Inspections side by side; in a notebook it shows itself as a table."""

    inspections: tuple[Inspection, ...]

    def to_html(self) -> str:
        """One self-contained page: the table, then each inspection."""
        from lrc.inspection.page import page

        return page(self.inspections)

    def _repr_html_(self) -> str:
        from lrc.inspection.page import comparison

        return comparison(self.inspections)


def compare(*inspections: Inspection) -> Comparison:
    """Several networks side by side.

    Raises:
        InputError: fewer than two.
    """
    if len(inspections) < 2:
        raise InputError(f"a comparison needs two inspections or more, not {len(inspections)}")
    return Comparison(inspections)


def class_means(data: Images) -> Float[Tensor, "classes channels height width"]:
    """The mean image of each class, in [0, 1]; 0 for a class without images."""
    total = torch.zeros(len(data.classes), *data.x.shape[1:], dtype=torch.float64)
    for start in range(0, len(data), 500):
        y = data.y[start : start + 500]
        total.index_add_(0, y, data.x[start : start + 500].double())
    count = torch.bincount(data.y, minlength=len(data.classes)).clamp(min=1)
    return (total / (255 * count.view(-1, 1, 1, 1))).float()


def _groups(hierarchy: "Hierarchy | None") -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    if hierarchy is None:
        return (), ()
    return hierarchy.levels[0].names, tuple(map(tuple, hierarchy.groups()))


def _linear(model: nn.Module, shape: tuple[int, ...], notes: list[str]) -> Tensor | None:
    """W, or None and a note that says why there is none."""
    try:
        return linear_map(model, shape).cpu()
    except InputError as error:
        notes.append(f"the linear sub-network cannot be had: {error}")
        return None


def _clusters(rows: Tensor | None, groups: tuple[tuple[int, ...], ...], *, tested: bool) -> Clusters | None:
    if rows is None or not _directed(rows):
        return None
    C, members = class_correlation(rows, centre=True), [list(group) for group in groups]
    compared = len(groups) > 1 and any(len(group) > 1 for group in groups)
    found = cut(tree(C), min(max(len(groups), 2), len(C)))
    return Clusters(
        rows,
        C,
        float(contrast(C, members)) if compared else None,
        permutation_test(C, members) if compared and tested else None,
        tuple(map(tuple, found)),
    )
