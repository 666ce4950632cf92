"""The zoo: what is shipped is what was recorded, and recipes make what they say."""

import json
import subprocess
import sys

import pytest
import torch

from lrc import zoo
from lrc.errors import InputError

SHIPPED = [name for name in zoo.names() if zoo.recipe(name).get("shipped")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_network_loads_and_answers(name):
    model = zoo.load(name)
    assert not model.training and next(model.parameters()).dtype == torch.float32
    with torch.no_grad():
        assert model(torch.rand(2, *model.input_shape)).shape == (2, 10)
    assert zoo.info(name)["figures"]["images"] == 10_000


def test_the_two_shipped_networks_differ_in_the_objective_alone():
    standard, robust = (zoo.recipe(f"cifar10-resnet8-{kind}") for kind in ("standard", "at"))
    assert {k for k in standard if standard[k] != robust[k]} == {"about", "objective"}


def test_the_recipe_is_the_one_that_made_the_weights():
    for name in SHIPPED:
        assert zoo.info(name)["made_by"] == zoo.recipe(name)


SCRIPT = """
from lrc import zoo
change = [{"training": {"seed": s}} for s in (0, 1)]
zoo.obtain_all([("shapes-resnet8-standard", c) for c in change], limit=40)
"""


@pytest.mark.parametrize(("head", "status"), [("if True:", 1), ('if __name__ == "__main__":', 0)])
def test_side_by_side_needs_a_main_guard_and_says_so(tmp_path, head, status):
    body = "\n".join(f"    {line}" for line in SCRIPT.splitlines())
    (tmp_path / "script.py").write_text(f"{head}\n{body}\n")
    result = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == status, result.stderr
    assert ("put its code under" in result.stderr) == bool(status)
    assert len(list((tmp_path / "cache").rglob("weights.safetensors"))) == (0 if status else 2)


def test_the_metrics_are_those_of_the_recipe():
    for name in SHIPPED:
        metrics = zoo.metrics(name)
        assert [m["epoch"] for m in metrics] == list(range(1, zoo.recipe(name)["training"]["epochs"] + 1))


def test_altered_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    source = zoo.PACKAGE / "weights" / SHIPPED[0]
    data = bytearray(source.with_suffix(".safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / f"{SHIPPED[0]}.safetensors").write_bytes(data)
    (tmp_path / f"{SHIPPED[0]}.json").write_text(source.with_suffix(".json").read_text())
    with pytest.raises(InputError, match="is not the file that was recorded"):
        zoo.load(SHIPPED[0])


def test_unknown_names_list_those_there_are():
    with pytest.raises(InputError, match="cifar10-resnet8-at"):
        zoo.info("resnet")


def test_what_is_not_shipped_says_how_to_get_it():
    with pytest.raises(InputError, match="obtain"):
        zoo.load("shapes-resnet8-at")
    with pytest.raises(InputError, match="has not been trained here"):
        zoo.metrics("shapes-resnet8-at", limit=32)


def test_obtain_trains_once_and_keeps_what_it_trained(monkeypatch):
    name = "shapes-resnet8-at"
    first = zoo.obtain(name, limit=48)
    assert len(zoo.metrics(name, limit=48)) == 1

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(zoo, "fit", refuse)
    again = zoo.obtain(name, limit=48)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())
    with pytest.raises(AssertionError, match="trained again"):
        zoo.obtain(name, limit=49)  # another limit is another network


def test_what_is_kept_goes_by_the_recipe():
    change = {"training": {"lr": 0.123}}
    places = {zoo._kept(zoo.recipe("shapes-resnet8-at", change=c, limit=n)) for c in (None, change) for n in (None, 8)}
    assert len(places) == 4


def test_a_change_goes_into_a_copy():
    name = "shapes-resnet8-at"
    changed = zoo.recipe(name, change={"training": {"seed": 7}, "data": {"pattern": 0}})
    assert changed["training"]["seed"] == 7 and changed["data"]["pattern"] == 0
    assert zoo.recipe(name)["training"]["seed"] == 0
    with pytest.raises(InputError, match="no section 'train'; there are data, network, objective, training"):
        zoo.recipe(name, change={"train": {"seed": 1}})


def test_make_writes_weights_with_their_figures(tmp_path, monkeypatch):
    """The record's figures are those of the network that `load` gives, and its digest is the file's."""
    name = "shapes-resnet8-standard"
    monkeypatch.setitem(zoo.recipes(), name, zoo.recipe(name, limit=64))
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    record = zoo.make(name, work=tmp_path / "work", images=40)
    assert record["shipped"] and record["sha256"] == zoo.sha256(tmp_path / "weights" / f"{name}.safetensors")
    measured = zoo.figures(zoo.load(name), zoo.images(name)[2])
    assert measured == {k: v for k, v in record["figures"].items() if k not in ("autoattack", "flags")}
    assert record["figures"]["autoattack"]["images"] == 40 and record["figures"]["autoattack"]["robust"] <= 1
    assert json.loads((tmp_path / "weights" / f"{name}.json").read_text())["metrics"][0]["epoch"] == 1

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(zoo, "fit", refuse)
    again = zoo.make(name, work=tmp_path / "work", images=40)
    assert {k: v for k, v in again.items() if k != "figures"} == {k: v for k, v in record.items() if k != "figures"}


def test_a_recipe_like_another_takes_over_what_it_does_not_name():
    written = {
        "a": {"about": "A", "shipped": True, "data": {"name": "d", "n": 1}, "objective": {"name": "at", "eps": 2}},
        "b": {"about": "B", "like": "a", "data": {"n": 3}, "objective": {"name": "standard"}},
        "c": {"about": "C", "like": "b", "data": {"name": "e"}},
    }
    b, c = (zoo._whole(name, written) for name in "bc")
    assert b == {"about": "B", "data": {"name": "d", "n": 3}, "objective": {"name": "standard"}}
    assert c == {"about": "C", "data": {"name": "e", "n": 3}, "objective": {"name": "standard"}}
    assert written["a"]["data"] == {"name": "d", "n": 1}


def test_validation_and_test_images_are_not_trained_on():
    rest, validation, test = zoo.images("shapes-resnet8-at")
    seen = {image.numpy().tobytes() for image in rest.x}
    assert not seen & {image.numpy().tobytes() for image in validation.x}
    assert not seen & {image.numpy().tobytes() for image in test.x}
