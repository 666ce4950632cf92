"""Profiles: names, devices, limits."""

from dataclasses import FrozenInstanceError, replace

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
        profile().data = "cifar10"


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


@pytest.mark.parametrize(("name", "picked"), [("quick", 250), ("cifar", 7), ("paper", 10_000)])
def test_each_profile_picks_its_own_value_or_that_of_the_rest(name, picked):
    assert profile(name).pick(7, quick=250, paper=10_000) == picked
    assert profile(name).pick("all") == "all"


@pytest.mark.parametrize(("given", "says"), [({"papr": 1}, "no profile 'papr'"), ({"paper": 1}, "give quick=")])
def test_nothing_to_pick_says_what_is_missing(given, says):
    with pytest.raises(InputError, match=says):
        profile("quick").pick(**given)


@pytest.mark.parametrize("name", ["quick", "cifar", "paper"])
def test_under_a_limit_whole_numbers_are_no_more_and_the_smallest_networks_are_taken(monkeypatch, name):
    whole = profile(name)
    monkeypatch.setenv("LRC_LIMIT", "40")
    small = profile(name)
    assert limit() == small.limit == 40
    assert [small.pick(n) for n in (10_000, 41, 40, 3)] == [40, 40, 40, 3]
    assert small.pick(0.5) == 0.5 and small.pick(("a", "b", "c"), limited=("a",)) == ("a",)
    assert small.pick(quick=20, cifar=20, paper=20, limited=2) == 2
    studies = {key: getattr(_PROFILES["quick"], key) for key in ("subpopulations", "boosting")}
    assert small == replace(whole, limit=40, architectures=whole.architectures[:2], **studies)
