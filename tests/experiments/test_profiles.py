"""Profiles: names, devices, limits."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from lrc.experiments.profiles import _PROFILES, device, limit, profile
from lrc.utils.errors import InputError


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in ("LRC_PROFILE", "LRC_DEVICE", "LRC_LIMIT"):
        monkeypatch.delenv(name, raising=False)


def test_quick_is_the_default(monkeypatch):
    assert profile().name == "quick"
    monkeypatch.setenv("LRC_PROFILE", "")
    assert profile().name == "quick"


@pytest.mark.parametrize("name", ["quick", "cifar", "paper"])
def test_by_variable_and_by_argument(monkeypatch, name):
    monkeypatch.setenv("LRC_PROFILE", name)
    assert profile().name == name
    monkeypatch.setenv("LRC_PROFILE", "quick")
    assert profile(name).name == name


def test_unknown_profile_lists_the_known_ones(monkeypatch):
    monkeypatch.setenv("LRC_PROFILE", "papr")
    with pytest.raises(InputError, match=r"'papr'.*quick, cifar, paper"):
        profile()


def test_profiles_do_not_change():
    with pytest.raises(FrozenInstanceError):
        profile().n_test = 1


def test_device_by_variable(monkeypatch):
    monkeypatch.setenv("LRC_DEVICE", "cpu")
    assert device() == profile().device == torch.device("cpu")


def test_device_by_default_is_the_accelerator_if_there_is_one():
    wanted = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    assert device() == (wanted or torch.device("cpu"))


def test_device_by_default_prefers_what_pytorch_finds(monkeypatch):
    found = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    assert profile().device == found


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu cpu"])
def test_device_that_cannot_be_used(monkeypatch, name):
    monkeypatch.setenv("LRC_DEVICE", name)
    with pytest.raises(InputError, match=f"LRC_DEVICE is '{name}'.*unset it") as caught:
        device()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["0", "-3", "many", "1.5"])
def test_limit_that_is_no_number_of_images(monkeypatch, given):
    monkeypatch.setenv("LRC_LIMIT", given)
    with pytest.raises(InputError, match="LRC_LIMIT"):
        profile()


@pytest.mark.parametrize("name", ["quick", "cifar", "paper"])
def test_limit_shrinks_every_size_and_nothing_else(monkeypatch, name):
    monkeypatch.setenv("LRC_LIMIT", "40")
    small = profile(name)
    assert limit() == small.limit == 40
    sizes = {f.name: getattr(small, f.name) for f in fields(small) if isinstance(getattr(small, f.name), int)}
    assert max(sizes.values()) == 40 and min(sizes.values()) >= 1
    assert max(small.steps, small.seeds) <= 2
    lists = {f.name: getattr(small, f.name) for f in fields(small) if isinstance(getattr(small, f.name), tuple)}
    assert all(len(v) == 2 and {*v} <= {*getattr(_PROFILES[name], n)} for n, v in lists.items())
    studies = ("subpopulations", "boosting")
    assert all(getattr(small, n) == getattr(_PROFILES["quick"], n) for n in studies)  # the smallest there are
    back = {n: getattr(_PROFILES[name], n) for n in [*sizes, *lists, *studies]}
    assert replace(small, **back, device=torch.device("cpu")) == _PROFILES[name]


def test_limit_does_not_enlarge(monkeypatch):
    monkeypatch.setenv("LRC_LIMIT", "1000000")
    assert profile("quick").n_test == _PROFILES["quick"].n_test
