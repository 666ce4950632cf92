# ruff: noqa: E501 (a line of the table is one function)
"""Calls of every public function with arguments as users get them wrong: a right answer, or one line that says why not.

LRC_FUZZ=2000 makes that many calls instead of the suite's few.
"""

import copy
import inspect
import math
import os
import types
import warnings
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Generator, nn

import lrc
from lrc import attacks, clustering, data, evaluation, hierarchy, linearization, models, objectives, plots
from lrc.attacks.threat_model import ball
from lrc.utils.errors import InputError
from lrc.utils.networks import untouched

FEW = 150  # the same ones each time
EXAMPLES = int(os.environ.get("LRC_FUZZ", FEW))
SHAPE, CLASSES = (3, 4, 4), 4


class Net(nn.Module):
    """A residual network of two layers, and what may be odd about it."""

    def __init__(self, odd=lambda z: z, before=lambda x: x, seed=0):
        super().__init__()
        generator = Generator().manual_seed(seed)
        self.odd, self.before = odd, before
        self.first, self.second = nn.Linear(48, 48), nn.Linear(48, CLASSES)
        for p in self.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=generator)

    def forward(self, x):
        h = self.before(x).flatten(1)
        return self.odd(self.second(h + torch.relu(self.first(h))))


class NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES)), torch.rand(2, *SHAPE))


def noisy(z):
    return z + 1e-3 * torch.randn_like(z)


def tuple_of(z):
    return (z,)


NETWORKS = {
    "none": lambda: None,
    "function": lambda: torch.relu,
    "name": lambda: "resnet8",
    "tuple": lambda: Net(tuple_of),
    "object": lambda: Net(lambda z: types.SimpleNamespace(logits=z)),
    "nothing": lambda: Net(lambda z: None),
    "map": lambda: Net(lambda z: z[:, :, None, None]),
    "one logit": lambda: Net(lambda z: z[:, :1]),
    "summed": lambda: Net(lambda z: z.sum(0, keepdim=True)),
    "flat": lambda: Net(lambda z: z.sum(1)),
    "complex": lambda: Net(lambda z: z.to(torch.cfloat)),
    "whole numbers": lambda: Net(lambda z: z.long()),
    "detached": lambda: Net(lambda z: z.detach()),
    "nan": lambda: Net(lambda z: z * torch.nan),
    "infinite": lambda: Net(lambda z: z / 0),
    "huge": lambda: Net(lambda z: 1e30 * z),
    "constant": lambda: Net(lambda z: torch.zeros_like(z)),
    "probabilities": lambda: Net(lambda z: z.softmax(1)),
    "raises": lambda: Net(lambda z: z + torch.ones(3, 3, 3)),
    "double": lambda: Net().double(),
    "half": lambda: Net().half(),
    "meta": lambda: Net().to("meta"),
    "writes": lambda: Net(before=lambda x: x.clamp_(0.2, 0.8)),
    "no way back": lambda: Net(before=NoWayBack.apply),
    "numpy": lambda: Net(before=lambda x: torch.from_numpy(x.numpy())),
    "greyscale": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES)),
    "other size": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, CLASSES)),
    "batch norm": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, CLASSES)).train(),
    "lazy": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES)),
    "scripted": scripted,
    "frozen": lambda: Net().requires_grad_(False),
    "random": lambda: Net(noisy),
}
IMAGES = {
    "list": lambda x: x.tolist(),
    "array": lambda x: x.numpy(),
    "none": lambda x: None,
    "text": lambda x: "cat.png",
    "bytes": lambda x: (255 * x).byte(),
    "whole": lambda x: x.round().long(),
    "half": lambda x: x.half(),
    "complex": lambda x: x.to(torch.cfloat),
    "double": lambda x: x.double(),
    "of 255": lambda x: 255 * x,
    "normalized": lambda x: (x - 0.5) / 0.25,
    "just above": lambda x: x.clamp(0.5) / x.amax() * (1 + 2e-7),
    "nan": lambda x: x.where(x < 0.9, torch.nan),
    "infinite": lambda x: x.where(x < 0.9, torch.inf),
    "no images": lambda x: x[:0],
    "no pixels": lambda x: x[:, :, :0],
    "one image": lambda x: x[0],
    "flat": lambda x: x[0, 0, 0],
    "number": lambda x: x[0, 0, 0, 0],
    "greyscale": lambda x: x[:, :1],
    "larger": lambda x: x.repeat(1, 1, 2, 2),
    "rows": lambda x: x.flatten(1),
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "strided": lambda x: x.transpose(2, 3),
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every other": lambda x: x.repeat(1, 1, 1, 2)[:, :, :, ::2],
    "with a graph": lambda x: x.clone().requires_grad_() * 1.0,
    "parameter": lambda x: nn.Parameter(x.clone()),
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "black": lambda x: 0 * x,
}
LABELS = {
    "list": lambda y: y.tolist(),
    "array": lambda y: y.numpy(),
    "none": lambda y: None,
    "number": lambda y: 1,
    "column": lambda y: y[:, None],
    "one-hot": lambda y: nn.functional.one_hot(y, CLASSES),
    "fractional": lambda y: y + 0.5,
    "as floats": lambda y: y.float(),
    "truths": lambda y: y > 0,
    "complex": lambda y: y.to(torch.cfloat),
    "int32": lambda y: y.int(),
    "uint8": lambda y: y.byte(),
    "uint16": lambda y: y.to(torch.uint16),
    "negative": lambda y: y - 5,
    "too large": lambda y: y + 900,
    "too few": lambda y: y[:2],
    "too many": lambda y: y.repeat(2),
    "none of them": lambda y: y[:0],
    "scalar": lambda y: y[0],
    "meta": lambda y: y.to("meta"),
    "sparse": lambda y: y.to_sparse(),
}
MATRICES = {
    "list": lambda C: C.tolist(),
    "array": lambda C: C.numpy(),
    "none": lambda C: None,
    "text": lambda C: "C.npy",
    "number": lambda C: 0.5,
    "whole": lambda C: C.round().long(),
    "bytes": lambda C: C.byte(),
    "truths": lambda C: C > 0.5,
    "half": lambda C: C.half(),
    "double": lambda C: C.double(),
    "complex": lambda C: C.to(torch.cfloat),
    "nan": lambda C: C.where(C < 0.9, torch.nan),
    "infinite": lambda C: C.where(C < 0.9, torch.inf),
    "zero": lambda C: 0 * C,
    "huge": lambda C: 1e30 * C,
    "tiny": lambda C: 1e-30 * C,
    "alike": lambda C: torch.ones_like(C),
    "empty": lambda C: C[:0],
    "no columns": lambda C: C[:, :0],
    "one row": lambda C: C[:1],
    "one class": lambda C: C[:1, :1],
    "two classes": lambda C: C[:2, :2],
    "fewer columns": lambda C: C[:, :-1],
    "vector": lambda C: C.flatten(1)[0],
    "scalar": lambda C: C.flatten()[0],
    "stack": lambda C: C[None],
    "skewed": lambda C: C + torch.arange(len(C)).view(-1, *[1] * (C.dim() - 1)),
    "strided": lambda C: C.repeat_interleave(2, 1)[:, ::2],
    "transposed": lambda C: C.T.contiguous().T if C.dim() == 2 else C.transpose(0, 1).contiguous().transpose(0, 1),
    "with a graph": lambda C: C.clone().requires_grad_() * 1.0,
    "sparse": lambda C: C.to_sparse(),
    "meta": lambda C: C.to("meta"),
}
GROUPS = [None, [], [[]], [[0, 1], [2, 3]], ((0, 1, 2), (3,)), [[0], [1], [2], [3]], [[0, 1, 2, 3]], [[0, 1], [2]]]
GROUPS += [[[0, 1], [1, 2, 3]], [[0, 1], [2, 4]], [[-1, 0], [1, 2]], [0, 1, 2, 3], 2, "ab", [["a", "b"], ["c", "d"]]]
GROUPS += [
    [[0.0, 1.0], [2.0, 3.0]],
    torch.tensor([[0, 1], [2, 3]]),
    np.array([[0, 3], [1, 2]]),
    [range(2), range(2, 4)],
]
GROUPS += [[{0, 1}, {2, 3}], {0: [0, 1], 1: [2, 3]}, [[0, 1], None], [[True, False], [2, 3]], [[0, 1], [2, 3], []]]
DATA = {
    "none": lambda d: None,
    "list": lambda d: [d.x, d.y],
    "tensor": lambda d: d.float(),
    "pair": lambda d: (d.float(), d.y),
    "text": lambda d: "cifar10",
    "no images": lambda d: d.subset(0),
    "one image": lambda d: d.subset(1),
    "one class": lambda d: d.subset(d.y == 0),
    "fewer classes": lambda d: d.select([0, 1]),
    "more classes": lambda d: lrc.Images(d.x, d.y, tuple("abcdefg")),
    "larger": lambda d: lrc.Images(d.x.repeat(1, 1, 2, 2), d.y, d.classes),
    "greyscale": lambda d: lrc.Images(d.x[:, :1], d.y, d.classes),
    "strided": lambda d: lrc.Images(d.x.transpose(2, 3), d.y, d.classes),
    "black": lambda d: lrc.Images(0 * d.x, d.y, d.classes),
    "without groups": lambda d: lrc.Images(d.x, d.y, d.classes),
}
MOST = 1e30
NUMBERS = [0, 1, 2, -1, 8, 0.5, 1.5, -0.1, 1e-30, MOST, float("nan"), float("inf"), "3", "", None, True, [1]]
NUMBERS += [np.float32(0.1), np.int64(2), np.array(0.1), torch.tensor(0.1), 2**70, 1j]
THINGS = ["l1", "l2", "linf", "ce", "dlr", "margin", "hinge", None, 2, (), [], {}, "", True, torch.relu, object()]
THINGS += [
    lambda z, y: z.mean(),
    lambda z, y: z,
    lambda z, y: -z[:, 0],
    lambda z: z,
    Generator(),
    np.random.default_rng(0),
]


BASE = {  # arguments that are right, by name; "?" after the name of an option: only where it is drawn
    "model": lambda: Net(),
    "x": lambda: torch.rand(3, *SHAPE, generator=Generator().manual_seed(1)),
    "y": lambda: torch.tensor([0, 1, 2]),
    "z": lambda: torch.randn(3, CLASSES, generator=Generator().manual_seed(2)),
    "predicted": lambda: torch.tensor([0, 3, 2]),
    "labels": lambda: torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]),
    "logits": lambda: torch.randn(8, 3, generator=Generator().manual_seed(3)),
    "data": lambda: IMAGES_OF_FOUR,
    "C": lambda: correlation(4),
    "distance": lambda: 1 - correlation(5),
    "reference": lambda: 1 - correlation(6),
    "W": lambda: torch.randn(CLASSES, *SHAPE, generator=Generator().manual_seed(7)),
    "local": lambda: torch.randn(2, CLASSES, *SHAPE, generator=Generator().manual_seed(8)),
    "merges": lambda: clustering.tree(correlation(4)),
    "groups": lambda: [[0, 1], [2, 3]],
    "others": lambda: [[0, 2], [1, 3]],
    "null": lambda: torch.linspace(-1, 1, 9),
    "values": lambda: torch.linspace(0, 1, 6),
    "hierarchy": lambda: IMAGES_OF_FOUR.hierarchy,
    "classes": lambda: ("cat", "dog", "car", "van"),
}
POOLS = {"model": NETWORKS, "teacher": NETWORKS, "surrogate": NETWORKS, "x": IMAGES, "start": IMAGES, "y": LABELS}
POOLS |= {"labels": LABELS, "predicted": LABELS, "target": LABELS, "data": DATA, "images": DATA, "like": DATA}
POOLS |= {"validation": DATA}
POOLS |= dict.fromkeys(("z", "logits", "C", "distance", "reference", "given", "W", "local", "null", "values"), MATRICES)
POOLS |= dict.fromkeys(("groups", "within", "others"), GROUPS)
POOLS["term"] = ["l2", None, 2, [], objectives.logit_penalty, objectives.parseval]
NAMED = ("norm", "loss", "generator", "target", "random_start", "until_fooled", "version", "progress", "attack", "by")
NAMED += ("attacks", "centre", "conditional", "colour", "superclasses", "hierarchy", "classes", "merges", "name", "on")
NAMED += (
    "reduction",
    "precision",
    "schedule",
    "augment",
    "objective",
    "statistic",
    "split",
    "palette",
    "cues",
    "shuffle",
)
NAMED += ("drop_last", "share", "input_shape", "batchnorm", "pooling", "keep", "rules", "start_at", "stop", "gates")
NAMED += ("compile", "masking", "series", "titles", "title", "text", "tensorboard", "mean", "std", "root", "path")
LEFT_OUT = {"out", "options", "choices", "watch", "ax", "compile", "progress", "checkpoint_every", "self", "verify"}
LEFT_OUT |= {"verbose", "workers", "root"}
MUCH = 20  # a number above would be right, and slow


def correlation(seed):
    """C of four classes."""
    return torch.corrcoef(torch.randn(CLASSES, 9, generator=Generator().manual_seed(seed)))


def four():
    level = hierarchy.Level("kind", ("animal", "vehicle"), (0, 0, 1, 1))
    names = ("cat", "dog", "car", "van")
    x = torch.randint(0, 256, (8, *SHAPE), generator=Generator().manual_seed(0), dtype=torch.uint8)
    return lrc.Images(x, torch.arange(8) % 4, names, hierarchy.Hierarchy(names, (level,), "made up"))


IMAGES_OF_FOUR = four()


@dataclass(frozen=True)
class Entry:
    """A public function, the right arguments that every call has, and what has to hold for its answer."""

    call: Any
    names: str
    options: dict
    right: Any


def entry(call, names, right, /, **options):
    return Entry(call, names, options, right)


def in_ball(found, a):
    found = getattr(found, "x_adv", found)
    assert found.shape == a["x"].shape and found.dtype == a["x"].dtype and not found.requires_grad
    eps = a.get("eps")
    if eps is None:
        return ((found >= 0) & (found <= 1)).all()
    return (
        ball(a["x"].detach(), float(eps), "l2" if "rate" in a and "samples" not in a else a.get("norm", "linf"))
        .contains(found)
        .all()
    )


def share(found, a):
    return 0 <= found <= 1


def same_logits(found, a):
    with untouched(a["model"]), torch.no_grad():
        expected = a["model"](a["images"].float()).float()
    return found.shape == expected.shape and (
        a.get("attack") or close(found, expected, 1e-2 if getattr(a["model"], "odd", None) is noisy else 1e-4)
    )


def close(found, expected, tolerance=1e-4):
    scale = expected.abs().nan_to_num().max() if expected.numel() else 1
    return torch.allclose(found.double(), expected.double(), rtol=0, atol=tolerance * float(scale), equal_nan=True)


def logits(output):
    return getattr(output, "logits", output)


def jacobians(a):
    with untouched(a["model"]):
        rows = [
            torch.autograd.functional.jacobian(lambda x: logits(a["model"](x.clone())), each[None])[0, :, 0]
            for each in a["x"].detach()
        ]
    return torch.stack(rows)


def cosines(W, centre=False):
    rows = W.detach().double().flatten(1)
    rows = rows - rows.mean(0) if centre else rows
    rows = rows / rows.abs().amax(1, keepdim=True)
    return nn.functional.normalize(rows, dim=1, eps=0) @ nn.functional.normalize(rows, dim=1, eps=0).T


def by_pairs(C, groups):
    """The contrast, pair by pair."""
    of = {int(c): i for i, group in enumerate(groups) for c in group}
    pairs = {True: [], False: []}
    for i, j in combinations(range(len(C)), 2):
        pairs[of[i] == of[j]] += [float(C[i, j]), float(C[j, i])]
    return np.mean(pairs[True]) - np.mean(pairs[False])


def contrasted(found, a):
    return a.get("within") is not None or math.isclose(found, by_pairs(a["C"], a["groups"]), rel_tol=1e-6, abs_tol=1e-7)


def significant(found, a):
    return 0 < found.p_value <= 1 and 1 <= found.rank <= found.n_splits and math.isfinite(found.statistic)


def parted(groups, n):
    return sorted(c for group in groups for c in group) == list(range(n))


def mean_distances(found, a):
    z, y = a["logits"].double(), a["labels"].long()
    means = torch.stack([z[y == k].mean(0) for k in range(int(y.max()) + 1)])
    expected = (means[:, None] - means).square().mean(2)
    return close(found, expected / expected.amax(1, keepdim=True), 1e-2 if found.dtype == torch.float16 else 1e-4)


def scalar(found, a):
    """One number; NaN only of NaN, of a network that gives none, or of an absurd option: there training stops."""
    given = not all(v.isfinite().all() for v in a.values() if isinstance(v, torch.Tensor) and v.is_floating_point())
    given = given or any(isinstance(v, float) and v == MOST for v in a.values())
    with torch.no_grad():
        nets = [a[n](a["x"].clone()) for n in ("model", "teacher") if n in a]
    return found.dim() == 0 and (not found.isnan() or given or not all(z.isfinite().all() for z in nets))


def finite_map(found, a):
    return found.dim() >= 2 and found.isfinite().all()


def an_interval(found, a):
    return found.low <= found.high and math.isfinite(found.value)


def plain_training(model, x, y, *, generator):
    return nn.functional.cross_entropy(model(x), y)


def trained(found, a):
    weights = [p.isfinite().all() for p in a["model"].parameters()]
    return len(found) == a["epochs"] and all(weights) and math.isfinite(found[-1]["loss"])


def some_images(found, a):
    return isinstance(found, lrc.Images) and found.x.shape[0] == len(found.y)


def anything(found, a):
    return found is not None


def method(name):
    """An objective by its name, with the options that it has and those that all have."""

    def call(model, x, y, *, generator=None, **options):
        return objectives.named(name, **options)(model, x, y, generator=generator)

    of = [inspect.signature(f).parameters for f in (call, objectives.METHODS[name], objectives.named)]
    options = {k: p for some in of for k, p in some.items() if p.kind != p.VAR_KEYWORD and k != "name"}
    call.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in options.values()])
    quick = {"eps": 0.1, "steps": 1, "teacher": Net(seed=1)}
    return entry(call, "model x y", scalar, **{k: quick[k] for k in options.keys() & quick.keys()})


tiny = {"apgd": partial(attacks.apgd, steps=2)}
ENTRIES = {
    "pgd": entry(attacks.pgd, "model x y", in_ball, eps=0.1, steps=2),
    "fgsm": entry(attacks.fgsm, "model x y", in_ball, eps=0.1),
    "mifgsm": entry(attacks.mifgsm, "model x y", in_ball, eps=0.1, steps=2),
    "apgd": entry(attacks.apgd, "model x y", in_ball, eps=0.1, steps=3),
    "fab": entry(attacks.fab, "model x y", in_ball, eps=0.1, steps=2),
    "cw": entry(attacks.cw, "model x y", in_ball, eps=0.1, steps=2, searches=2, rate=0.01),
    "square": entry(attacks.square, "model x y", in_ball, eps=0.1, queries=3),
    "nes": entry(attacks.nes, "model x y", in_ball, eps=0.1, queries=10, samples=4),
    "nattack": entry(attacks.nattack, "model x y", in_ball, eps=0.1, queries=8, samples=4),
    "linbp": entry(attacks.linbp, "model x y", in_ball, eps=0.1, steps=2),
    "sgm": entry(attacks.sgm, "model x y", in_ball, eps=0.1, steps=2),
    "autoattack": entry(attacks.autoattack, "model x y", in_ball, eps=0.1, version=tiny),
    "linear_backward": entry(attacks.linear_backward, "model", lambda f, a: isinstance(f, nn.Module)),
    "skip_gradient": entry(attacks.skip_gradient, "model", lambda f, a: isinstance(f, nn.Module), gamma=0.5),
    "logits": entry(lrc.logits, "model images", same_logits),
    "accuracy": entry(lrc.accuracy, "model images", share),
    "evaluate": entry(lrc.evaluate, "model data", lambda f, a: share(f.accuracy("clean").value, a), attacks="fgsm", masking=False),
    "masking_flags": entry(evaluation.masking_flags, "model data", lambda f, a: True, images=4),
    "confusions": entry(evaluation.confusions, "predicted y groups", lambda f, a: math.isclose(f.right + f.within + f.across, 1)),
    "per_superclass": entry(evaluation.per_superclass, "z y", lambda f, a: ((f >= 0) & (f <= 1) | f.isnan()).all()),
    "wilson": entry(evaluation.wilson, "", lambda f, a: 0 <= f[0] <= a["right"] / max(a["count"], 1) <= f[1] <= 1, right=2, count=5),
    "local_map": entry(lrc.local_map, "model x", lambda f, a: close(f, jacobians(a))),
    "mean_local_map": entry(lrc.mean_local_map, "model x", lambda f, a: close(f, jacobians(a).mean(0))),
    "alignment": entry(lrc.alignment, "local W", lambda f, a: (f.abs() <= 1 + 1e-5).all()),
    "linear_map": entry(lrc.linear_map, "model", finite_map, input_shape=SHAPE),
    "affine_map": entry(lrc.affine_map, "model", lambda f, a: finite_map(f[0], a), input_shape=SHAPE),
    "linearize": entry(lrc.linearize, "model", lambda f, a: isinstance(f, nn.Module), input_shape=SHAPE),
    "inspect": entry(lrc.inspect, "model data", anything, masking=0, local=2),
    "explore": entry(lambda model, data, **k: lrc.explore(model, data, **k), "model data", lambda f, a: parted(f.clusters, CLASSES), images=4),
    "train": entry(lrc.train, "model data", trained, objective=plain_training, epochs=1, batch_size=4, augment=False),
    "class_correlation": entry(lrc.class_correlation, "W", lambda f, a: close(f, cosines(a["W"], a.get("centre")), 2e-3 if f.dtype == torch.float16 else 1e-4)),
    "effective_rank": entry(clustering.effective_rank, "W", lambda f, a: 1 - 1e-6 <= f <= len(a["W"]) + 1e-6),
    "feature_distance": entry(lrc.feature_distance, "logits labels", mean_distances),
    "contrast": entry(lrc.contrast, "C groups", contrasted),
    "permutation_test": entry(lrc.permutation_test, "C groups", significant),
    "permutation_tests": entry(lrc.permutation_tests, "C hierarchy", lambda f, a: all(significant(t, a) for t in f)),
    "mantel_test": entry(clustering.mantel_test, "C distance", significant),
    "random_contrasts": entry(lambda groups, build, **k: clustering.random_contrasts(build, groups, **k), "groups", lambda f, a: f.isfinite().all(), n=2, build=lambda g: torch.randn(4, 9, generator=g)),
    "tree": entry(lrc.tree, "C", lambda f, a: f.shape == (len(a["C"]) - 1, 4) and (np.diff(f[:, 2]) >= -1e-9).all()),
    "cut": entry(lrc.cut, "merges", lambda f, a: parted(f, len(a["merges"]) + 1) and len(f) == a["k"], k=2),
    "agreement": entry(lrc.agreement, "groups others", lambda f, a: f <= 1 and math.isclose(f, lrc.agreement(a["others"], a["groups"]))),
    "agreements": entry(clustering.agreements, "merges groups", lambda f, a: (f <= 1 + 1e-9).all()),
    "cophenetic": entry(clustering.cophenetic, "merges", lambda f, a: (f == f.T).all()),
    "cophenetic_correlation": entry(clustering.cophenetic_correlation, "merges distance", lambda f, a: abs(f) <= 1 + 1e-9),
    "triplet_agreement": entry(clustering.triplet_agreement, "distance reference", share),
    "eigenvalues": entry(clustering.eigenvalues, "C", lambda f, a: close(f.sum(), a["C"].float().trace(), 1e-3) and (f.diff() <= 0).all()),
    "eigengap": entry(clustering.eigengap, "C", lambda f, a: 1 <= f < len(a["C"])),
    "p_value": entry(lambda null, value: clustering.p_value(value, null), "null", lambda f, a: 0 < f <= 1, value=0.5),
    "holm": entry(clustering.holm, "", lambda f, a: all(p <= q <= 1 for p, q in zip(a["p_values"], f, strict=True)), p_values=[0.1, 0.2]),
    "t_interval": entry(clustering.t_interval, "values", an_interval),
    "bootstrap": entry(clustering.bootstrap, "", an_interval, statistic=torch.mean, samples=torch.linspace(0, 1, 6), resamples=9),
    "Images": entry(lrc.Images, "", some_images, x=IMAGES_OF_FOUR.x, y=IMAGES_OF_FOUR.y, classes=IMAGES_OF_FOUR.classes),
    "from_arrays": entry(lrc.Images.from_arrays, "x y classes", some_images, channels=4),
    "subset": entry(lambda which: IMAGES_OF_FOUR.subset(which), "", some_images, which=2),
    "select": entry(lambda classes: IMAGES_OF_FOUR.select(classes), "classes", some_images),
    "split_images": entry(lambda n, seed=0: IMAGES_OF_FOUR.split(n, seed)[0], "", some_images, n=2),
    "batches": entry(lambda *p, **k: sum(len(y) for _, y in data.batches(*p, **k)), "images", lambda f, a: f <= len(a["images"]), batch_size=3),
    "recoloured": entry(data.recoloured, "images", some_images, colour="grey"),
    "class_means": entry(data.class_means, "images", lambda f, a: ((f >= 0) & (f <= 1)).all()),
    "as_superclasses": entry(data.as_superclasses, "images", some_images),
    "subpopulations": entry(data.subpopulations, "images", lambda f, a: len(f) == 2),
    "labelled": entry(data.labelled, "images", some_images, by="superclasses"),
    "shapes": entry(data.shapes, "", some_images, split="test", n=4, size=16),
    "named": entry(data.named, "", some_images, name="shapes", split="test", n=4),
    "folder": entry(data.folder, "", some_images, path="nowhere"),
    "build": entry(models.build, "", lambda f, a: isinstance(f, nn.Module), name="resnet8", width=4),
    "Superclasses": entry(lambda model, groups, by="max": lrc.logits(models.Superclasses(model, groups, by=by), IMAGES_OF_FOUR), "model groups", lambda f, a: f.shape[1] == len(a["groups"])),
    "Normalize": entry(lambda mean, std: models.Normalize(mean, std)(BASE["x"]()), "", lambda f, a: f.isfinite().all(), mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0)),
    "JPEG": entry(lambda quality: models.JPEG(quality)(torch.rand(1, 3, 16, 16)), "", lambda f, a: ((f >= 0) & (f <= 1)).all(), quality=50),
    "Hierarchy": entry(hierarchy.Hierarchy, "classes", anything, levels=IMAGES_OF_FOUR.hierarchy.levels, source="made up"),
    "Level": entry(hierarchy.Level, "", anything, name="kind", names=("a", "b"), of=(0, 1, 1)),
    "wordnet_distance": entry(hierarchy.wordnet_distance, "", lambda f, a: (f == f.T).all(), classes=["cat", "dog", "truck"]),
    "objective": entry(objectives.named, "", anything, name="trades"),
    "trades_attack": entry(objectives.trades_attack, "model x y", in_ball, eps=0.1, steps=1),
    "local_linearity_attack": entry(objectives.local_linearity_attack, "model x y", in_ball, eps=0.1, steps=1),
    "gradient_norm_attack": entry(objectives.gradient_norm_attack, "model x y", in_ball, eps=0.1, steps=1),
    "adding": entry(lambda term, weight: objectives.adding(objectives.named("standard"), term, weight=weight)(Net(), BASE["x"](), BASE["y"]()), "", scalar, term=objectives.logit_penalty, weight=0.1),
    "awp": entry(lambda gamma: objectives.awp(objectives.named("standard"), gamma=gamma)(Net(), BASE["x"](), BASE["y"]()), "", scalar, gamma=0.01),
    "clustered": entry(lambda groups, **k: objectives.clustered(objectives.named("standard"), groups, **k)(Net(), BASE["x"](), BASE["y"]()), "groups", scalar, weight=0.1, on="logits", reduction="sum"),
    "collapsed": entry(objectives.collapsed, "", lambda f, a: f is None or isinstance(f, str), history=[{"pgd": 0.1, "fgsm": 0.9}]),
    "clustering_term": entry(objectives.clustering_term, "z groups", scalar),
    "magnet": entry(objectives.magnet, "", scalar, features=torch.randn(4, 5), y=torch.tensor([0, 1, 0, 1])),
    "watch_collapse": entry(lambda model, x, y, **k: objectives.watch_collapse(x, y, **k)(model), "model x y", anything, steps=1),
    "cosine": entry(lambda **k: lrc.training.cosine(**k)(0.5), "", lambda f, a: 0 <= f <= 1, warmup=0.1),
    "milestones": entry(lambda at, **k: lrc.training.milestones(at, **k)(0.5), "", anything, at=0.5, factor=0.1),
    "claim": entry(lrc.claim, "", lambda f, a: f is None, text="one", value=1.0, at_least=0.5),
    "profile": entry(lrc.profile, "", anything, name="quick"),
    "zoo.info": entry(lrc.zoo.info, "", anything, name="cifar10-resnet8-at"),
    "zoo.load": entry(lrc.zoo.load, "", lambda f, a: isinstance(f, nn.Module), name="cifar10-resnet8-at"),
    "zoo.recipe": entry(lrc.zoo.recipe, "", anything, name="cifar10-resnet8-at", change={"training": {"epochs": 1}}, limit=40),
    "zoo.metrics": entry(lrc.zoo.metrics, "", anything, name="cifar10-resnet8-at"),
    "zoo.linear_part": entry(lrc.zoo.linear_part, "", anything, name="cifar10-resnet8-at"),
    "compare": entry(lambda one: lrc.compare(one, one), "", anything, one=None),
    "superposition_error": entry(lambda model, **k: linearization.superposition_error(model, **k), "model", lambda f, a: not f < 0, input_shape=SHAPE, seed=0),
    "breeds": entry(data.breeds, "", some_images, name="living17", root="nowhere"),
    "cifar10": entry(data.cifar10, "", some_images, split="test", root="nowhere"),
    "stl10": entry(data.stl10, "", some_images, split="test", root="nowhere"),
    "plots.table": entry(plots.table, "", anything, rows={"one": {"a": 1.0, "b": "two"}}),
    "plots.ink": entry(plots.ink, "", anything, names=["standard", "one"]),
    "plots.matrix": entry(plots.matrix, "C classes", anything),
    "plots.tree": entry(plots.tree, "", anything, linkage=clustering.tree(correlation(4)), classes=IMAGES_OF_FOUR.classes),
    "plots.rows": entry(plots.rows, "W", lambda f, a: ((f >= 0) & (f <= 1)).all()),
    "plots.images": entry(plots.images, "x", anything),
    "plots.curves": entry(plots.curves, "", anything, series={"a": [1.0, 2.0]}),
}  # fmt: skip
ENTRIES |= {f"objective {name}": method(name) for name in objectives.METHODS}
ENTRIES |= {
    f: entry(getattr(models, f), "", lambda f, a: isinstance(f, nn.Module), width=2)
    for f in ("resnet8", "resnet18", "vgg6", "alexnet", "densenet12")
}


def changeable(e):
    """Names of the arguments, of those too that have a default."""
    try:
        parameters = inspect.signature(e.call).parameters
    except ValueError:
        parameters = {}
    if e.call in (attacks.linbp, attacks.sgm):
        parameters = {**parameters, **inspect.signature(attacks.mifgsm).parameters}
    named = {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return sorted((named | set(e.names.split()) | set(e.options)) - LEFT_OUT)


def drawn(draw, e, name, good):
    """Another value for an argument."""
    pool = POOLS.get(name, THINGS if name in NAMED else NUMBERS + THINGS)
    if pool is DATA and isinstance(good, int):
        pool = NUMBERS  # how many
    if isinstance(pool, list):
        return pool[draw(st.integers(0, len(pool) - 1))]
    change = pool[draw(st.sampled_from(sorted(pool)))]
    if pool is NETWORKS:
        return change()
    if good is None:
        good = BASE.get(
            name, BASE["C" if pool is MATRICES else {id(IMAGES): "x", id(LABELS): "y", id(DATA): "data"}[id(pool)]]
        )()
    try:
        return change(good)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # no such change of this one
        return good


@st.composite
def calls(draw, only=None):
    """A public function, and a call of it with one or two things changed."""
    name = draw(st.sampled_from([only] if only else sorted(ENTRIES)))
    e = ENTRIES[name]
    arguments = {n: BASE["data" if n == "images" else n]() for n in e.names.split()} | e.options
    for changed in draw(st.lists(st.sampled_from(changeable(e)), min_size=0, max_size=2, unique=True)):
        value = drawn(draw, e, changed, arguments.get(changed))
        if not (isinstance(value, int) and value > MUCH) and not (changed == "attack" and value is True):
            arguments[changed] = value
    return name, arguments


def judged(name, arguments):
    """Makes the call: "right" or "refused", or raises what no user should see."""
    e, given = ENTRIES[name], dict(arguments)
    before = {k: copy.deepcopy(v.detach()) for k, v in given.items() if isinstance(v, torch.Tensor) and not v.is_meta}
    positional = [given.pop(n) for n in e.names.split()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = e.call(*positional, **given)
            assert e.right(found, arguments), f"wrong: {found}"
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        return "refused"
    except (FloatingPointError, lrc.experiments.claims.ClaimError):
        return "refused"
    for k, v in before.items():
        assert v.layout is not torch.strided or torch.equal(v.nan_to_num(), arguments[k].detach().nan_to_num()), (
            f"{k} was changed"
        )
    return "right"


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=EXAMPLES, derandomize=EXAMPLES == FEW, deadline=None, suppress_health_check=list(HealthCheck))
@given(call=calls())
def test_a_call_is_right_or_refused_in_one_line(unchecked, call):
    judged(*call)
