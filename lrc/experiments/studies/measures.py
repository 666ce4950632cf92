"""What is measured of the networks of a study."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Generator, Tensor, nn

from lrc.attacks import pgd
from lrc.clustering import class_correlation, contrast, effective_rank, permutation_test
from lrc.data import Images, as_superclasses, class_means, named
from lrc.evaluation import Attack, Superclasses, accuracy, confusions, evaluate, logits, per_superclass
from lrc.evaluation.report import WORST
from lrc.experiments import fitting
from lrc.experiments.recipe import Recipe, without_groups
from lrc.linearization import linear_map, mean_local_map
from lrc.training.heads import with_new_head
from lrc.utils.errors import InputError

__all__ = [
    "MEASURES",
    "alike",
    "boosting",
    "clusters",
    "colour_energy",
    "groupings",
    "maps",
    "matrices",
    "subpopulations",
    "verdicts",
]

Figures = dict[str, Any]


def subpopulations(model: nn.Module, recipe: Recipe, *, images: int = 500, out: Path | None = None) -> Figures:
    """How well a network tells superclasses, by subclasses that it was trained on and by others of the same.

    Protocols: "max" and "sum" as in `lrc.evaluation.Superclasses`; "head" and "all" as in
    `lrc.training.heads.with_new_head`, fitted to the superclasses of the training images, "all" by the recipe's
    objective without any term on groups. The attack is PGD-10 at the recipe's radius, steps of a quarter of it, and
    aims at the superclass.

    Args:
        model: made by the recipe, which has held-out subclasses.
        images: of each part that are attacked, at most.
        out: unused, as all this takes less than a minute.

    Returns:
        Accuracies in [0, 1], called `PART_PROTOCOL` and `PART_PROTOCOL_attacked`. The source are test
        images; the target all images of the held-out subclasses, of which none was trained on, "official" those of
        the test set alone. For each superclass, by "max": `by_superclass` of both parts; `cohesion`, by how much its
        classes are more alike in the centred C than like others; `contrast` of all; None for labels of superclasses.

    Raises:
        InputError: a recipe that trains on the subclasses of the target too.
    """
    source, parts = _parts(recipe)
    groups = _groups(recipe, parts["source"])
    new_head = partial(
        with_new_head, model, as_superclasses(source),
        **{k: getattr(recipe.training, k) for k in ("batch_size", "augment", "precision", "seed")},
    )  # fmt: skip
    plain = fitting.objective(without_groups(recipe), None)
    protocols = {
        "max": Superclasses(model, groups),
        "sum": Superclasses(model, groups, by="sum"),
        "head": new_head(layers="head"),
        "all": new_head(layers="all", objective=plain),
    }
    attack = _attack(recipe, steps=10)
    figures: Figures = {}
    for name, network in protocols.items():
        for part, shown in parts.items():
            some = as_superclasses(shown)
            figures[f"{part}_{name}"] = accuracy(network, some)
            if part != "official":
                few = some.subset(min(images, len(some)))
                figures[f"{part}_{name}_attacked"] = accuracy(network, few, attack=attack, generator=_generator())
    return figures | _by_superclass(protocols["max"], parts) | _cohesion(model, groups)


def boosting(
    model: nn.Module,
    recipe: Recipe,
    *,
    attacks: Sequence[str] = ("pgd", "apgd-ce", "apgd-t"),
    images: int = 500,
    out: Path | None = None,
) -> Figures:
    """How robust a network is, and whether its errors stay within superclasses.

    Args:
        attacks: by their names, see `lrc.evaluate`.
        images: of the test set, at most.
        out: folder for verdicts.

    Returns:
        `clean` and for each attack, and for the `worst` of all but "autoattack", the accuracy in [0, 1]; with
        `_within` and `_across` the parts of the images that are taken for another class of the superclass, and for
        another superclass. `superclass_attacked`: the part whose superclass is right under PGD-20 that aims at it.
        `spread`: mean standard deviation of an image's logits. `contrast`, of the centred C.

    Raises:
        InputError: images without superclasses.
    """
    _, _, test = fitting.split_images(recipe)
    some = test.subset(min(images, len(test)))
    if some.hierarchy is None:
        raise InputError("images without superclasses: errors cannot be parted into within and across")
    report = evaluate(model, some, attacks=attacks, **_options(recipe, out))
    groups = some.hierarchy.groups()
    said = {name: report.predictions(name) for name in ("clean", *report.attacks)}
    others = torch.stack([said[name] for name in said if name != "autoattack"])
    said["worst"] = others.gather(0, (others != some.y.cpu()).int().argmax(0)[None])[0]
    attacked = accuracy(
        Superclasses(model, groups), as_superclasses(some), attack=_attack(recipe, steps=20), generator=_generator()
    )
    figures = {k: v for name, found in said.items() for k, v in _split(name, found, some.y.cpu(), groups).items()}
    spread = float(logits(model, some).std(1).mean())
    return figures | {"superclass_attacked": attacked, "spread": spread, "images": len(some)} | _contrast(model, groups)


def verdicts(
    model: nn.Module,
    recipe: Recipe,
    *,
    attacks: Sequence[str] = ("autoattack",),
    images: int = 10_000,
    out: Path | None = None,
) -> Figures:
    """On which images a network is right under attack, so that networks can be compared image by image.

    Args:
        attacks: by their names, see `lrc.evaluate`.
        images: of the test set, at most.
        out: folder for verdicts.

    Returns:
        `clean`, for each attack, and for the `worst` of all, the accuracy in [0, 1]; `right`, a bit an image in
        hexadecimal: whether it is told rightly in the worst case, see `lrc.studies.paired`.
    """
    _, _, test = fitting.split_images(recipe)
    some = test.subset(min(images, len(test)))
    report = evaluate(model, some, attacks=attacks, **_options(recipe, out))
    accuracies = {name: report.accuracy(name).value for name in ("clean", *report.attacks)}
    return accuracies | {"worst": report.accuracy().value, "images": len(some), "right": packed(report.right(WORST))}


def packed(right: Bool[Tensor, " n"]) -> str:
    """A bit an image, in hexadecimal; the last byte is filled up with zeros.

    >>> packed(torch.tensor([True, False, False, False, False, False, False, False, True]))
    '8080'
    """
    return np.packbits(right.cpu()).tobytes().hex()


def unpacked(text: str, n: int) -> Bool[Tensor, " n"]:
    """What `packed` has packed, of so many images.

    >>> unpacked("8080", 9).nonzero().flatten().tolist()
    [0, 8]
    """
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    return torch.from_numpy(bits[:n]).bool()


def maps(model: nn.Module, recipe: Recipe, *, images: int = 200, out: Path | None = None) -> Figures:
    """Whether the classes of a network cluster, and how much of that is what the class means of its images have.

    Args:
        images: of the test set, that the mean local map is taken over.
        out: unused, as all this takes less than a minute.

    Returns:
        Centred, of W, of its mean `_colour`, of W `_uncoloured`, of the mean `_local` map and of the class `_means` of
        the training images: `contrast` between superclasses, and their `rank` among all splits.
        `means` and `local_means`: the correlation of the entries of C, of W and of the local map, with those of the
        class means. `colour`, the share of the energy of W in its mean colour; `effective_rank` of W.

    Raises:
        InputError: images without superclasses.
    """
    rest, _, test = fitting.split_images(recipe)
    if rest.hierarchy is None:
        raise InputError("images without superclasses: there is no contrast between them")
    W, x = linear_map(model), test.float(torch.arange(min(images, len(test))))
    local = mean_local_map(model, x.to(W.device)).cpu()
    found = matrices(W.cpu()) | {"_local": class_correlation(local, centre=True)}
    found["_means"] = class_correlation(class_means(rest), centre=True)
    figures: Figures = {}
    for name, C in found.items():
        test_of = permutation_test(C, rest.hierarchy.groups())
        figures |= {f"contrast{name}": test_of.statistic, f"rank{name}": test_of.rank}
    return figures | {
        "means": alike(found[""], found["_means"]),
        "local_means": alike(found["_local"], found["_means"]),
        "colour": colour_energy(W),
        "effective_rank": effective_rank(W, centre=True),
    }


def clusters(model: nn.Module, recipe: Recipe, *, images: int = 1000, out: Path | None = None) -> Figures:
    """`maps`, and `clean` and `pgd20`, the accuracies in [0, 1] on so many test `images`."""
    some = fitting.split_images(recipe)[2]
    measured = fitting.figures(model, some.subset(min(images, len(some))), eps=recipe.radius)
    return {key: measured[key] for key in ("images", "clean", "pgd20")} | maps(model, recipe)


def groupings(model: nn.Module, recipe: Recipe, *, images: int = 1600, out: Path | None = None) -> Figures:
    """Whether classes of the drawings cluster by superclass, or by kind: the first of each superclass, the second, ...

    Args:
        images: of the training, that the class means are taken of, at most.
        out: unused, as all this takes seconds.

    Returns:
        The centred contrast of W `by_superclass` and `by_kind`, and that of the class means, `means_by_...`.
    """
    some = fitting.split_images(recipe)[0]
    means = class_means(some.subset(min(images, len(some))))
    by = {"superclass": (groups := _groups(recipe, some)), "kind": [list(kinds) for kinds in zip(*groups, strict=True)]}
    matrices = {"": class_correlation(model, centre=True), "means_": class_correlation(means, centre=True)}
    return {f"{of}by_{name}": contrast(C, g) for of, C in matrices.items() for name, g in by.items()}


def matrices(W: Tensor) -> dict[str, Tensor]:
    """The centred C of W, [classes, channels, height, width], of its mean colours alone, and of the rest of it."""
    colour = W.mean((2, 3), keepdim=True)
    parts = {"": W, "_colour": colour, "_uncoloured": W - colour}
    return {name: class_correlation(part, centre=True) for name, part in parts.items()}


def colour_energy(W: Tensor) -> float:
    """The share of the energy of the centred W, [classes, channels, height, width], that lies in one colour a class."""
    rows = W.double() - W.double().mean(0)
    return float(rows.mean((2, 3), keepdim=True).expand_as(rows).square().sum() / rows.square().sum())


def alike(C: Tensor, D: Tensor) -> float:
    """Pearson correlation of the entries of two class correlations off the diagonal."""
    above = torch.ones_like(C, dtype=torch.bool).triu(1)
    return float(torch.corrcoef(torch.stack([C[above], D[above]]).double())[0, 1])


MEASURES: dict[str, Callable[..., Figures]] = {
    "subpopulations": subpopulations,
    "boosting": boosting,
    "verdicts": verdicts,
    "clusters": clusters,
    "maps": maps,
    "groupings": groupings,
}
"""By the names that studies have for them."""


def _parts(recipe: Recipe) -> tuple[Images, dict[str, Images]]:
    """Training images of the source, and what is measured on: source, target, and the target's test set alone."""
    data = recipe.data
    seen, _, source = fitting.split_images(replace(recipe, data=replace(data, labels="classes")))
    options = {k: v for k, v in data.options.items() if k != "part"}
    train, test = (named(data.name, split, part="target", **options) for split in ("train", "test"))
    if both := {*seen.classes} & {*test.classes}:
        raise InputError(f"the recipe holds out no subclasses, it trains on {', '.join(sorted(both))}: give it a part")
    limit = data.limit or len(train) + len(test)
    target = test.joined(train)
    target = target.subset(min(limit, len(target)))
    return seen, {"source": source, "target": target, "official": test.subset(min(limit, len(test)))}


def _groups(recipe: Recipe, source: Images) -> list[list[int]]:
    """The classes of each superclass, as indices of the network's logits."""
    groups = source.hierarchy.groups() if source.hierarchy else []
    return [[k] for k in range(len(groups))] if recipe.data.labels == "superclasses" else groups


def _attack(recipe: Recipe, *, steps: int) -> Attack:
    eps = recipe.radius
    return partial(pgd, eps=eps, steps=steps, step=eps / 4)


def _options(recipe: Recipe, out: Path | None) -> dict[str, Any]:
    """Of `evaluate`, by the recipe."""
    generator, batch_size = _generator(), fitting.at_once()
    return {"eps": recipe.radius, "batch_size": batch_size, "masking": False, "generator": generator, "out": out}


def _generator() -> Generator:
    return Generator().manual_seed(0)


def _by_superclass(network: nn.Module, parts: dict[str, Images]) -> Figures:
    wanted = {part: as_superclasses(parts[part]) for part in ("source", "target")}
    found = {part: per_superclass(logits(network, some), some.y) for part, some in wanted.items()}
    return {"superclasses": wanted["source"].classes, "by_superclass": {k: v.tolist() for k, v in found.items()}}


def _cohesion(model: nn.Module, groups: list[list[int]]) -> Figures:
    """For each group the mean correlation of its classes, less that with the classes of the others."""
    if max(map(len, groups)) < 2:
        return {"cohesion": None, "contrast": None}
    C = class_correlation(model, centre=True)
    classes = range(len(C))
    return {"cohesion": [_apart(C, g, [k for k in classes if k not in g]) for g in groups]} | _contrast(model, groups)


def _apart(C: Tensor, group: list[int], others: list[int]) -> float:
    own = C[group][:, group]
    return float((own.sum() - own.trace()) / (len(group) * (len(group) - 1)) - C[group][:, others].mean())


def _contrast(model: nn.Module, groups: list[list[int]]) -> Figures:
    return {"contrast": contrast(class_correlation(model, centre=True), groups)}


def _split(name: str, said: Tensor, y: Tensor, groups: list[list[int]]) -> Figures:
    """Shares of the images that are right, wrong within the superclass and across superclasses."""
    found = confusions(said, y, groups)
    return {name: found.right, f"{name}_within": found.within, f"{name}_across": found.across}
