"""Pictures of what the package computes: each function draws on one Axes and returns it."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from scipy.cluster.hierarchy import dendrogram
from torch import Tensor

from lrc.clustering import cophenetic
from lrc.clustering.contrasts import listed
from lrc.evaluation import Report
from lrc.hierarchy import check_names
from lrc.plots.style import GROUPS, ink
from lrc.utils.checks import check_matrix, check_rows, check_whole
from lrc.utils.errors import InputError

__all__ = ["curves", "images", "matrix", "report", "rows", "tree"]


def matrix(
    C: Float[Tensor, "classes classes"],
    classes: Sequence[str],
    *,
    groups: Sequence[Sequence[int]] | None = None,
    title: str = "",
    label: str = "correlation of class rows",
    ax: Axes | None = None,
) -> Axes:
    """C as a coloured matrix on the scale -1 to 1, its classes reordered and framed by `groups` where given."""
    check_matrix("C", C)
    _check_names(classes, len(C))
    groups = None if groups is None else listed(groups)
    order = list(range(len(C))) if groups is None else [i for group in groups for i in group]
    if not set(order) <= set(range(len(C))):
        raise InputError(f"groups must hold classes from 0 to {len(C) - 1}, not {groups}")
    ax = ax or plt.subplots(figsize=(4.5, 4), layout="constrained")[1]
    shown = ax.imshow(C.detach().float().cpu().numpy()[np.ix_(order, order)], vmin=-1, vmax=1, cmap="RdBu_r")
    ax.set_xticks(range(len(order)), [classes[i] for i in order], rotation=90)
    ax.set_yticks(range(len(order)), [classes[i] for i in order])
    ax.tick_params(length=0, labelsize="small")
    first = 0
    for group in groups or []:
        corner, size = first - 0.5, len(group)
        ax.add_patch(Rectangle((corner, corner), size, size, fill=False, edgecolor="black", lw=1.5))
        first += size
    ax.figure.colorbar(shown, ax=ax, fraction=0.046, label=label)
    ax.set_title(title)
    return ax


def tree(
    linkage: Float[np.ndarray, "merges 4"],
    classes: Sequence[str],
    *,
    groups: Sequence[Sequence[int]] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Dendrogram of `lrc.tree(C)`; class names coloured by the true `groups` where given."""
    _check_names(classes, len(cophenetic(linkage)))
    groups = None if groups is None else listed(groups)
    if not {i for group in groups or [] for i in group} <= {*range(len(classes))}:
        raise InputError(f"groups must hold classes from 0 to {len(classes) - 1}, not {groups}")
    ax = ax or plt.subplots(figsize=(4.5, 4), layout="constrained")[1]
    dendrogram(
        linkage,
        labels=list(classes),
        orientation="right",
        ax=ax,
        color_threshold=0,
        above_threshold_color="0.3",
    )
    colour = {classes[i]: GROUPS[g % len(GROUPS)] for g, group in enumerate(groups or []) for i in group}
    for label in ax.get_yticklabels():
        label.set_color(colour.get(label.get_text(), "black"))
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_xlabel("distance 1 - C at which classes join")
    ax.set_title(title)
    return ax


def images(
    x: Float[Tensor, "n c h w"],
    *,
    titles: Sequence[str] | None = None,
    columns: int = 8,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Images in [0, 1] side by side, row by row, with an optional title under each row's images."""
    check_rows("images", x)
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise InputError(f"images must be (n, 3, h, w) or (n, 1, h, w), not {tuple(x.shape)}")
    check_whole("columns", columns, 1)
    if titles is not None and (not isinstance(titles, Sequence) or len(titles) != len(x)):
        raise InputError(f"{titles!r:.80} are titles for {len(x)} images: give one for each")
    n, _, h, w = x.shape
    count = -(-n // columns)
    ax = ax or plt.subplots(figsize=(1.1 * columns, 1.25 * count), layout="constrained")[1]
    gap, text = 2, 9 if titles is not None else 0
    sheet = np.ones((count * (h + gap + text), columns * (w + gap), 3))
    for i, image in enumerate(x.detach().float().cpu().permute(0, 2, 3, 1).numpy()):
        top, left = i // columns * (h + gap + text), i % columns * (w + gap)
        sheet[top : top + h, left : left + w] = image
        if titles is not None:
            ax.text(left + w / 2, top + h + 1, titles[i], ha="center", va="top", fontsize=7)
    ax.imshow(sheet, interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(title)
    return ax


def _check_names(classes: Sequence[str], count: int) -> None:
    if not isinstance(classes, Sequence):
        raise InputError(f"classes must be a list of names, not {type(classes).__name__}")
    check_names("class", tuple(classes))
    if len(classes) != count:
        raise InputError(f"{len(classes)} names for {count} classes: give one for each")


def rows(W: Float[Tensor, "classes c h w"]) -> Float[Tensor, "classes c h w"]:
    """Class rows of a linear map as images in [0, 1]: zero is grey, each row scaled by its own largest value."""
    check_rows("W", W)
    if not W.isfinite().all():
        raise InputError("W holds values that are not finite: see where they come from")
    largest = W.abs().flatten(1).amax(1).view(-1, 1, 1, 1)
    return 0.5 + 0.5 * W / largest.clamp(min=1e-12)


def curves(
    series: Mapping[str, Sequence[float]],
    *,
    x: Sequence[float] | None = None,
    xlabel: str = "epoch",
    ylabel: str = "",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """One line for each named series, over `x` (1, 2, ... by default), its name at its end.

    A series called after a kind of network ("standard", "adversarially trained") has the colour of that kind.

    Raises:
        InputError: no such series, one without numbers, or not as many as `x` has.
    """
    if not isinstance(series, Mapping) or not all(isinstance(n, str) and _count(series[n]) for n in series):
        raise InputError("series must be a mapping of names to numbers, one or more each")
    if x is not None and any(_count(values) != _count(x) for values in series.values()):
        raise InputError(f"x has {_count(x)} numbers: each series must have as many")
    ax = ax or plt.subplots(figsize=(5.5, 3.2), layout="constrained")[1]
    colours = ink(series)
    for name, values in series.items():
        at = x if x is not None else range(1, len(values) + 1)
        ax.plot(at, values, marker=".", color=colours[name], label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ax.spines[["top", "right"]].set_visible(False)
    _name_lines(ax)
    return ax


def _count(values: object) -> int:
    """How many numbers there are in a row of them; 0 for what is none."""
    try:
        row = np.asarray(values, dtype=float)
        return len(row) if row.ndim == 1 else 0
    except (TypeError, ValueError, RuntimeError):  # the last of a tensor with a graph
        return 0


def _name_lines(ax: Axes) -> None:
    """Writes the name of each line at its right end, moved up or down where two would lie over each other."""
    low, high = ax.get_ylim()
    gap, place = (high - low) / 14, -np.inf
    for line in sorted(ax.lines, key=lambda line: np.asarray(line.get_ydata())[-1]):
        right, height = (np.asarray(v)[-1] for v in line.get_data())
        place = max(place + gap, height)
        ax.annotate(
            f" {line.get_label()}",
            (right, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=line.get_color(),
            fontsize="small",
            annotation_clip=False,
        )


def report(
    found: Report,
    *,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A bar for the accuracy as it is, under each attack and in the worst case, with its 95 % interval.

    Dots are the superclasses, where there are any.
    """
    ax = ax or plt.subplots(figsize=(5, 0.8 + 0.4 * len(found.names)), layout="constrained")[1]
    for place, name in enumerate(found.names):
        rate = found.accuracy(name)
        low, high = rate.interval
        error = [[100 * (rate.value - low)], [100 * (high - rate.value)]]
        ax.barh(place, 100 * rate.value, xerr=error, height=0.6, color="0.8", ecolor="0.3", capsize=3)
        for group, part in enumerate(found.by_superclass(name)):
            colour, label = GROUPS[group % len(GROUPS)], "" if place else found.superclasses[group]
            ax.plot(100 * part.value, place, "o", ms=4, color=colour, label=label)
    ax.set_yticks(range(len(found.names)), found.names)
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel="images classified rightly, %", title=title)
    ax.spines[["top", "right"]].set_visible(False)
    if 0 < len(found.superclasses) <= len(GROUPS):
        ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
