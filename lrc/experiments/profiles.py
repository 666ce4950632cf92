"""Profiles: what the chapters of the book have in common, so that one notebook runs on two cores and on a cluster.

    >>> profile("quick").data
    'shapes'
    >>> profile("paper").pick(quick=250, cifar=1000, paper=10_000)
    10000

Three environment variables bear on them:

- `LRC_PROFILE`: quick (default), cifar or paper.
- `LRC_DEVICE`: cpu, cuda, cuda:1, mps, ...; by default the accelerator that PyTorch finds, else the CPU.
- `LRC_LIMIT`: a number of images. Every profile then takes at most so many of each set, narrow networks, and a step or
  two of everything else. Its code runs from end to end in seconds; its figures, and so its claims, mean nothing.
"""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from lrc.utils.devices import device
from lrc.utils.errors import InputError

__all__ = ["Profile", "profile"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What several chapters read instead of writing it; sizes of its own a chapter picks.

    Attributes:
        name: quick, cifar or paper.
        data: the set of images, a name in `lrc.data`.
        standard, robust: networks of the zoo, trained without and with adversarial examples.
        family: what the names of networks begin with that differ in the objective alone.
        fine: what the names of the networks on the data with most levels of classes begin with.
        architectures: what the names of networks begin with that differ in the architecture alone.
        subpopulations, boosting: the studies (`lrc.experiments.studies`) of the paper's two applications.
        device: where networks and images are.
        limit: the value of `LRC_LIMIT`, else None.
    """

    name: str
    data: str
    standard: str
    robust: str
    family: str
    fine: str
    architectures: tuple[str, ...]
    subpopulations: str
    boosting: str
    device: torch.device = torch.device("cpu")
    limit: int | None = None

    def pick(self, value: Any = None, *, limited: Any = None, **by_name: Any) -> Any:
        """What this profile takes of several values.

        Args:
            value: of profiles that are not named.
            limited: under `LRC_LIMIT`; by default a whole number is then at most that limit, and the rest as it is.
            by_name: the value of each profile, by its name.

        Raises:
            InputError: a name that no profile has, or no value for this one.
        """
        if unknown := by_name.keys() - _PROFILES.keys():
            raise InputError(f"no profile {min(unknown)!r}: pick by {', '.join(_PROFILES)}")
        picked = by_name.get(self.name, value)
        if picked is None:
            raise InputError(f"nothing to pick in the profile {self.name}: give {self.name}=, or a value for the rest")
        if self.limit is None:
            return picked
        if limited is not None:
            return limited
        return min(picked, self.limit) if isinstance(picked, int) else picked


_PROFILES = {
    p.name: p
    for p in (
        Profile(
            name="quick",
            data="shapes",
            standard="shapes-resnet8-standard",
            robust="shapes-resnet8-at",
            family="shapes-resnet8",
            fine="shapes-resnet8",
            architectures=("shapes-resnet8", "shapes-vgg6", "shapes-densenet12", "shapes-alexnet"),
            subpopulations="shapes-subpopulations",
            boosting="shapes-boosting",
        ),
        Profile(
            name="cifar",
            data="cifar10",
            standard="cifar10-resnet8-standard",
            robust="cifar10-resnet8-at",
            family="cifar10-small",
            fine="cifar100-small",
            architectures=("cifar10-small", "cifar10-vgg6", "cifar10-densenet12", "cifar10-alexnet"),
            subpopulations="subpopulations",
            boosting="boosting",
        ),
        Profile(
            name="paper",
            data="cifar10",
            standard="cifar10-resnet18-standard",
            robust="cifar10-resnet18-at",
            family="cifar10-resnet18",
            fine="cifar100-resnet18",
            architectures=("cifar10-resnet18", "cifar10-vgg6", "cifar10-densenet12", "cifar10-alexnet"),
            subpopulations="resnet18-subpopulations",
            boosting="resnet18-boosting",
        ),
    )
}


def profile(name: str | None = None) -> Profile:
    """The profile called `name`, by default the one that `LRC_PROFILE` names, on this machine's device.

    Raises:
        InputError: no such profile or device, or an `LRC_LIMIT` that is not a positive number.
    """
    name = name or current()
    if not isinstance(name, str) or name not in _PROFILES:
        raise InputError(f"no profile {name!r}: set LRC_PROFILE to one of {', '.join(_PROFILES)}")
    found = replace(_PROFILES[name], device=device(), limit=limit())
    if found.limit is None:
        return found
    quick = _PROFILES["quick"]  # its studies are the smallest, and trained as they are looked up
    few = found.architectures[:2]
    return replace(found, architectures=few, subpopulations=quick.subpopulations, boosting=quick.boosting)


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
