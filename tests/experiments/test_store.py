"""What is kept: altered files are refused, folders are held by one process, and the cache goes by the recipe."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from lrc import zoo
from lrc.experiments import store
from lrc.experiments.recipe import Objective, identity
from lrc.experiments.studies import records
from lrc.models import resnet8
from lrc.utils.errors import InputError
from lrc.utils.files import locked

NAME = "shapes-resnet8-at"
HISTORY = [{"epoch": 1, "clean": 0.25}, {"epoch": 2, "clean": 0.5}]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


@pytest.fixture
def place(tmp_path):
    store.claim(tmp_path, zoo.recipe(NAME))
    store.keep(tmp_path, network(), zoo.recipe(NAME), HISTORY)
    return tmp_path


def read(place):
    weights = store.fill(network(1), place / store.WEIGHTS_FILE).state_dict()
    return [*weights.values()], store.metrics(place), store.settings(place)


def test_weights_metrics_and_recipe_come_back(place):
    weights, history, made = read(place)
    assert all(torch.equal(a, b) for a, b in zip(weights, network().state_dict().values(), strict=True))
    assert history == HISTORY and identity(made) == identity(zoo.recipe(NAME))


def test_what_is_shipped_of_studies_is_sealed():
    for path in records.RECORDS.glob("*.jsonl"):
        assert '"digest": "sha256:' in path.read_text().splitlines()[-1], path.name


def test_the_weights_say_by_which_recipe_they_were_made(place):
    """Not the note beside them, which may be another's."""
    store.write_json(place / store.CONFIG, zoo.recipe("shapes-resnet8-standard").written())
    assert store.settings(place)["objective"]["name"] == "adversarial"
    with pytest.raises(InputError, match="holds another run, which differs in objective.eps, objective.name"):
        store.claim(place, zoo.recipe("shapes-resnet8-standard"))


def test_a_folder_is_held_by_one_process(tmp_path):
    code = f"from pathlib import Path\nfrom lrc.utils.files import locked\nwith locked(Path({str(tmp_path)!r})): pass"
    with locked(tmp_path):
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stderr.splitlines()[-1].endswith(
        f"another process is at work in {tmp_path}: wait until it ends, or name another folder"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: {f"module.{k}": v for k, v in w.items()}, "its keys begin with module.: save those of the network"),
        (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, "its keys begin with _orig_mod."),
        (lambda _: resnet8(width=8).state_dict(), r"bn.bias has shape \[8\] there, \[4\] here"),
        (lambda w: {k: v for k, v in w.items() if k != "fc.bias"}, r"fc.bias has shape none there, \[10\] here"),
    ],
)
def test_weights_of_another_network_say_what_differs(tmp_path, change, says):
    store.save_tensors(tmp_path / "w.safetensors", change(resnet8(width=4).state_dict()))
    with pytest.raises(InputError, match=f"w.safetensors holds the weights of another network: .*{says}"):
        store.fill(resnet8(width=4), tmp_path / "w.safetensors")


# -- the same run -------------------------------------------------------------------------------------------------


def test_recipes_that_make_the_same_are_the_same_however_written():
    wanted = zoo.recipe(NAME)
    options = wanted.objective.options | {"eps": 8 / 255, "step": "0.015686274509803921"}
    same = replace(wanted, about="x", objective=Objective(name="adversarial", options=options))
    same = replace(same, training=replace(same.training, momentum=0.9, compile=True, checkpoint_every=3))
    assert identity(same) == identity(wanted) == identity(json.loads(json.dumps(wanted.written())))
    assert store.kept(same) == store.kept(wanted)
    for section, entry in (("training", {"lr": 0.3}), ("data", {"pattern": 2}), ("network", {"width": 4})):
        assert store.kept(zoo.recipe(NAME, change={section: entry})) != store.kept(wanted)


def test_what_is_kept_goes_by_the_version_too(monkeypatch):
    before = store.kept(zoo.recipe(NAME))
    monkeypatch.setattr(store, "VERSION", store.VERSION + 1)
    assert store.kept(zoo.recipe(NAME)) != before
