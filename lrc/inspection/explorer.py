"""An explorer for notebooks with a kernel: the classes of a network as matrix and tree, and an image under attack.

`Explorer.clusters` and `Explorer.attacked` compute what is shown; the widgets choose and show, and need no front end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.cluster import hierarchy
from torch import Generator, Tensor, nn

from lrc.attacks import pgd
from lrc.attacks.common import ascent, attacked
from lrc.attacks.losses import cross_entropy
from lrc.clustering import class_correlation, cut, tree
from lrc.data import Images, as_images
from lrc.evaluation import logits
from lrc.evaluation.accuracy import check_classes
from lrc.inspection.clusters import own_data
from lrc.inspection.networks import device_of, load, subject
from lrc.inspection.page import READABLE, STYLE, dendrogram, figures, matrix, png, sheet
from lrc.linearization import linear_map
from lrc.plots import rows as as_pictures
from lrc.plots import table
from lrc.utils.checks import check_whole
from lrc.utils.errors import InputError

if TYPE_CHECKING:
    from ipywidgets import VBox

__all__ = ["Attacked", "Explorer", "explore"]

NEIGHBOURS = 5


@dataclass(frozen=True)
class Attacked:
    """An image as it is and after an attack, and what the network makes of both.

    Attributes:
        images: [2, channels, height, width], in [0, 1].
        logits: [2, classes].
        saliency: gradient of the cross-entropy of the true class by each pixel, [2, channels, height, width].
        neighbours: other images whose logits are most like those after the attack (their correlation), nearest first.
    """

    images: Float[Tensor, "2 c h w"]
    logits: Float[Tensor, "2 classes"]
    saliency: Float[Tensor, "2 c h w"]
    neighbours: tuple[int, ...]


class _Seen:
    """A network, and what is the same at each step."""

    def __init__(self, model: nn.Module, images: Images) -> None:
        self.model, self.logits = model, logits(model, images)
        check_classes(self.logits, images)
        try:
            self.C = class_correlation(linear_map(model, tuple(images.x.shape[1:])), centre=True).cpu()
            self.merges, self.why = tree(self.C), ""
        except InputError as error:
            self.why = str(error)


class Explorer:
    """What `lrc.explore` gives; the last thing in a cell of a notebook, it shows itself.

    Attributes:
        controls: the widgets that choose, by name: network, order, height, image, eps (in 1/255), steps. To set the
            `value` of one is to move it.
        widget: all of it.
    """

    def __init__(self, networks: Mapping[str, nn.Module], images: Images) -> None:
        import ipywidgets as w

        self.images = images
        self._seen = {name: _Seen(model, images) for name, model in networks.items()}
        orders = ["tree", *(["superclasses"] if images.hierarchy else []), "as numbered"]
        self.controls: dict[str, Any] = {
            "network": w.Dropdown(options=[*networks], description="network"),
            "order": w.ToggleButtons(options=orders, description="order"),
            "height": w.FloatSlider(value=1.0, min=0.0, max=2.0, step=0.01, description="cut at"),
            "image": w.IntSlider(max=len(images) - 1, description="image"),
            "eps": w.IntSlider(value=8, max=32, description="eps, 1/255"),
            "steps": w.IntSlider(value=5, min=1, max=20, description="steps"),
        }
        self._classes, self._attack = w.HTML(), w.HTML()
        network, order, height, *attack = self.controls.values()
        self.widget: VBox = w.VBox([network, w.HBox([order, height]), self._classes, w.HBox(attack), self._attack])
        for show, moved in ((self._show_classes, [network, order, height]), (self._show_attack, [network, *attack])):
            for control in moved:
                control.observe(show, names="value")
            show()

    def __repr__(self) -> str:
        return f"Explorer({', '.join(self._seen)}; {len(self.images)} images)"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return self.widget._repr_mimebundle_(**options) | {"text/plain": repr(self)}

    @property
    def _chosen(self) -> _Seen:
        return self._seen[self.controls["network"].value]

    @property
    def clusters(self) -> list[list[int]]:
        """The classes that join, in the tree of C of the network's W, at a distance of at most the height chosen.

        Raises:
            InputError: the network has no W.
        """
        if self._chosen.why:
            raise InputError(self._chosen.why)
        merges = self._chosen.merges
        return cut(merges, 1 + int((merges[:, 2] > self.controls["height"].value).sum()))

    @property
    def attacked(self) -> Attacked:
        """The image chosen under PGD with the radius and steps chosen; its random start is the same each time."""
        i, eps, steps = (self.controls[name].value for name in ("image", "eps", "steps"))
        model, one = self._chosen.model, self.images.subset([i])
        x, y = one.float().to(device_of(model)), one.y.to(device_of(model))
        both = torch.cat([x, pgd(model, x, y, eps=eps / 255, steps=steps, generator=Generator().manual_seed(0))])
        with attacked(model, both, y.expand(2)) as (victim, images, labels):
            saliency, _, z = ascent(victim, images, labels, loss=cross_entropy)
        known, own = (v - v.mean(1, keepdim=True) for v in (self._chosen.logits, z[1:]))
        alike = F.cosine_similarity(known, own)
        alike[i] = -torch.inf
        nearest = alike.topk(min(NEIGHBOURS, len(alike) - 1)).indices
        return Attacked(both.cpu(), z.cpu(), saliency.cpu(), tuple(nearest.tolist()))

    def _show_classes(self, _: object = None) -> None:
        if self._chosen.why:
            self._classes.value = f"<p>This network has no W: {escape(self._chosen.why)}</p>"
            return
        C, merges, clusters = self._chosen.C, self._chosen.merges, self.clusters
        names, order, at = self.images.classes, self.controls["order"].value, self.controls["height"].value
        framed = cut(merges, len(C)) if order == "as numbered" else _along(merges, clusters)
        if order == "superclasses" and self.images.hierarchy:
            framed = self.images.hierarchy.groups()
        shown = {"C of the linear sub-network": matrix(C, names, framed)}
        if len(C) <= READABLE:
            shown["its tree, and where it is cut"] = dendrogram(merges, names, clusters, at=at)
        said = "; ".join(", ".join(names[c] for c in group) for group in clusters)
        self._classes.value = _page(f"{figures(shown)}<p>Clusters: {escape(said)}</p>")

    def _show_attack(self, _: object = None) -> None:
        found, eps, names = self.attacked, self.controls["eps"].value / 255, self.images.classes
        true, near = int(self.images.y[self.controls["image"].value]), self.images.subset([*found.neighbours])
        before, after = found.logits
        top = {true, *found.logits.topk(min(6, len(names))).indices.flatten().tolist()}
        rows = {
            names[c] + " (true)" * (c == true): {"logit": before[c], "attacked": after[c]}
            for c in sorted(top, key=lambda c: -float(after[c]))
        }
        apart = 0.5 + (found.images[1:] - found.images[:1]) / max(2 * eps, 1e-12)
        pictures = {
            "as it is, attacked, and the difference": torch.cat([found.images, apart]),
            "saliency, as it is and attacked": as_pictures(found.saliency),
            "most alike: " + ", ".join(names[c] for c in near.y.tolist()): near.float(),
        }
        shown = {name: png(sheet(x), name) for name, x in pictures.items()}
        self._attack.value = _page(figures({"": table(rows, name="class")._repr_html_()} | shown))


def _along(merges: Any, clusters: list[list[int]]) -> list[list[int]]:
    """The clusters in the order of the leaves of the tree."""
    place = {int(c): r for r, c in enumerate(hierarchy.leaves_list(merges))}
    return sorted((sorted(g, key=place.__getitem__) for g in clusters), key=lambda g: place[g[0]])


def _page(html: str) -> str:
    return f'<div class="lrc"><style>{STYLE}</style>{html}</div>'


def explore(
    networks: Mapping[str, nn.Module | str] | Sequence[str] | nn.Module | str, data: Any = None, *, images: int = 200
) -> Explorer:
    """Sliders for a network in a notebook: order and cut its classes, attack an image and see what becomes of it.

    Args:
        networks: one network from images in [0, 1] to logits, or the name of one of the zoo, or whatever else
            `lrc.inspection.load` takes; or several by name, to choose from. They are left as they are.
        data: labelled images, or what `lrc.data.as_images` makes them of, for all the networks; absent, those of the
            recipe of the first.
        images: the first so many can be chosen, and neighbours are looked for among them.

    Raises:
        InputError: no network, fewer than two images, or a network that does not take them.
    """
    check_whole("images", images, 2)
    if isinstance(networks, str | nn.Module):
        networks = {networks if isinstance(networks, str) else "network": networks}
    if not isinstance(networks, Mapping | list | tuple) or not networks:
        raise InputError(f"no network to explore in {networks!r:.80}: give one, or several by name")
    given = dict(networks) if isinstance(networks, Mapping) else {name: name for name in networks}
    few = own_data(next(iter(given.values()))) if data is None else as_images(data)
    few = few.subset(min(len(few), images))
    if len(few) < 2:
        raise InputError(f"{len(few)} images to explore: give two or more")
    shape = tuple(few.x.shape[1:])
    ready = {
        name: (load(model, shape=shape) if isinstance(model, str) else subject(model, shape, name=name)).model
        for name, model in given.items()
    }
    return Explorer(ready, few)
