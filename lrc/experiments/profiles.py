"""Profiles: the sizes that the chapters of the book read, so that one notebook runs on two cores and on a cluster.

    >>> profile("quick").data
    'shapes'
    >>> profile("paper").n_test
    10000

Three environment variables bear on them:

- `LRC_PROFILE`: quick (default), cifar or paper.
- `LRC_DEVICE`: cpu, cuda, cuda:1, mps, ...; by default the accelerator that PyTorch finds, else the CPU.
- `LRC_LIMIT`: a number of images. Every profile then takes at most so many of each set, and a step or two of everything
  else. Its code runs from end to end in seconds; its figures, and so its claims, mean nothing.
"""

import os
from dataclasses import dataclass, replace

import torch

from lrc.utils.devices import device
from lrc.utils.errors import InputError

__all__ = ["Profile", "profile"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a chapter reads instead of writing numbers.

    Attributes:
        name: quick, cifar or paper.
        data: the set of images, a name in `lrc.data`.
        standard, robust: networks of the zoo, trained without and with adversarial examples.
        n_test: test images that accuracies are measured on.
        n_curve: test images for each point of a curve.
        n_attack: test images for the ladder of attacks.
        ladder: attacks of growing strength, as `lrc.evaluate` calls them.
        queries: of Square, for each image.
        steps: steps of the attack in a measurement.
        seeds: repetitions with other seeds.
        sweep: training images of each network that a chapter trains to compare variants of the built-in data.
        family: what the names of networks begin with that differ in the objective alone.
        defences: how those names end.
        fine: what the names of the networks on the data with most levels of classes begin with.
        architectures: what the names of networks begin with that differ in the architecture alone.
        random: networks with random weights in a null distribution.
        subpopulations, boosting: the studies (`lrc.experiments.studies`) of the paper's two applications.
        overfit: training images of a training that is to overfit.
        fast: training images of one by single steps.
        broken: accuracy in [0, 1] at or below which a network counts as broken by an attack.
        contrast: by how much the robust network's contrast must exceed the standard one's.
        chance: p value at or below which groups are not put down to chance; on CIFAR-10 the first rank of 210.
        device: where networks and images are.
        limit: the value of `LRC_LIMIT`, else None.
    """

    name: str
    data: str
    standard: str
    robust: str
    n_test: int
    n_curve: int
    n_attack: int
    ladder: tuple[str, ...] = ("fgsm", "pgd", "apgd-ce", "autoattack")
    queries: int = 5000
    steps: int
    seeds: int
    sweep: int
    family: str
    defences: tuple[str, ...]
    fine: str
    architectures: tuple[str, ...]
    random: int
    subpopulations: str
    boosting: str
    overfit: int
    fast: int
    broken: float
    contrast: float
    chance: float
    device: torch.device = torch.device("cpu")
    limit: int | None = None


_PROFILES = {
    p.name: p
    for p in (
        Profile(
            name="quick",
            data="shapes",
            standard="shapes-resnet8-standard",
            robust="shapes-resnet8-at",
            n_test=1000,
            n_curve=250,
            n_attack=50,
            steps=10,
            seeds=3,
            sweep=1600,
            family="shapes-resnet8",
            defences=("standard", "label-smoothing", "jpeg", "at", "trades", "at-clustering"),
            fine="shapes-resnet8",
            architectures=("shapes-resnet8", "shapes-vgg6", "shapes-densenet12", "shapes-alexnet"),
            random=100,
            subpopulations="shapes-subpopulations",
            boosting="shapes-boosting",
            overfit=800,
            fast=3200,
            broken=0.1,
            contrast=0.2,
            chance=0.05,
        ),
        Profile(
            name="cifar",
            data="cifar10",
            standard="cifar10-resnet8-standard",
            robust="cifar10-resnet8-at",
            n_test=2000,
            n_curve=250,
            n_attack=64,
            steps=20,
            seeds=3,
            sweep=1600,
            family="cifar10-small",
            defences=(
                "standard",
                "label-smoothing",
                "distillation",
                "jacobian",
                "orthogonality",
                "jpeg",
                "fast",
                "at",
                "trades",
                "mart",
                "at-awp",
                "at-clustering",
                "trades-clustering",
            ),
            fine="cifar100-small",
            architectures=("cifar10-small", "cifar10-vgg6", "cifar10-densenet12", "cifar10-alexnet"),
            random=100,
            subpopulations="subpopulations",
            boosting="boosting",
            overfit=1600,
            fast=3200,
            broken=0.1,
            contrast=0.5,
            chance=0.0048,
        ),
        Profile(
            name="paper",
            data="cifar10",
            standard="cifar10-resnet18-standard",
            robust="cifar10-resnet18-at",
            n_test=10_000,
            n_curve=1000,
            n_attack=1000,
            steps=20,
            seeds=3,
            sweep=1600,
            family="cifar10-resnet18",
            defences=("standard", "at", "at-clustering", "trades", "mart", "at-awp"),
            fine="cifar100-resnet18",
            architectures=("cifar10-resnet18", "cifar10-vgg6", "cifar10-densenet12", "cifar10-alexnet"),
            random=100,
            subpopulations="resnet18-subpopulations",
            boosting="resnet18-boosting",
            overfit=5000,
            fast=45_000,
            broken=0.1,
            contrast=0.5,
            chance=0.0048,
        ),
    )
}


def profile(name: str | None = None) -> Profile:
    """The profile called `name`, by default the one that `LRC_PROFILE` names, on this machine's device.

    Raises:
        InputError: no such profile or device, or an `LRC_LIMIT` that is not a positive number.
    """
    name = name or current()
    if name not in _PROFILES:
        raise InputError(f"no profile {name!r}: set LRC_PROFILE to one of {', '.join(_PROFILES)}")
    found = replace(_PROFILES[name], device=device())
    return found if (most := limit()) is None else _limited(found, most)


def current() -> str:
    """The name that `LRC_PROFILE` gives, by default quick."""
    return os.environ.get("LRC_PROFILE") or "quick"


def limit() -> int | None:
    """The number of images that `LRC_LIMIT` gives, else None.

    Raises:
        InputError: it is not a positive whole number.
    """
    if not (given := os.environ.get("LRC_LIMIT")):
        return None
    if not given.isdecimal() or int(given) == 0:
        raise InputError(f"LRC_LIMIT is {given!r}: set it to a number of images such as 64, or unset it")
    return int(given)


def _limited(p: Profile, most: int) -> Profile:
    return replace(
        p,
        limit=most,
        n_test=min(p.n_test, most),
        n_curve=min(p.n_curve, most),
        n_attack=min(p.n_attack, most, 4),  # to look for signs of masking takes hundreds of passes each
        ladder=p.ladder[:2],
        queries=min(p.queries, most),
        sweep=min(p.sweep, most),
        overfit=min(p.overfit, most),
        fast=min(p.fast, most),
        defences=("standard", "at"),
        architectures=p.architectures[:2],
        random=min(p.random, 4),
        subpopulations=_PROFILES["quick"].subpopulations,  # trained as it is looked up: the smallest there is
        boosting=_PROFILES["quick"].boosting,
        steps=min(p.steps, 2),
        seeds=min(p.seeds, 2),  # a standard deviation needs two
    )
