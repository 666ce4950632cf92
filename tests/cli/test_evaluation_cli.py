"""`lrc evaluate`: the same figures as the package, from every kind of network; one line for what cannot be."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import lrc
from lrc import cli, models, zoo
from lrc.evaluation import Report
from lrc.experiments import recipe as recipes

MODULE = """
import torch
from lrc.models import resnet8

def build():
    return resnet8(16, width=4, generator=torch.Generator().manual_seed(0))
"""
NETWORK = {"name": "resnet8", "classes": 16, "width": 4}
CONFIG = {
    "data": {"name": "shapes", "validation": 8, "difficulty": 0.5},
    "network": NETWORK,
    "objective": {"name": "standard"},
    "training": {"epochs": 1, "batch_size": 8, "lr": 0.1, "weight_decay": 0, "seed": 0},
}
SMALL = ["--images", "32", "--attack", "fgsm", "--no-masking"]


def built():
    return models.resnet8(16, width=4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder, with a module, and a network as `lrc train` leaves it."""
    (tmp_path / "mine.py").write_text(MODULE)
    for name, config in (("run", CONFIG), ("other", CONFIG | {"network": NETWORK | {"width": 5}}), ("strange", {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        save_file(built().state_dict(), tmp_path / name / "weights.safetensors")
    (tmp_path / "odd").mkdir()
    save_file(built().state_dict(), tmp_path / "odd" / "weights.safetensors")
    (tmp_path / "odd" / "config.json").write_text(json.dumps(CONFIG | {"network": {"name": "resnet9"}}))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "140")
    return tmp_path


def run(*words):
    result = CliRunner().invoke(cli.app, ["evaluate", *words])
    assert result.exit_code == 0, result.output
    return result.output


def test_it_prints_what_the_package_computes(folder):
    output = run("mine:build", "--data", "shapes", *SMALL, "--attack", "pgd", "--json", "report.json", "--seed", "3")
    data = lrc.data.shapes("test").subset(32)
    generator = torch.Generator().manual_seed(3)
    expected = lrc.evaluate(built().eval(), data, attacks=["fgsm", "pgd"], masking=False, generator=generator)
    found = Report.from_json((folder / "report.json").read_text())
    assert {k: o.predictions for k, o in found.results.items()} == {
        k: o.predictions for k, o in expected.results.items()
    }
    assert f"{100 * expected.accuracy('pgd').value:.1f}" in output
    assert all(word in output for word in ("fgsm", "pgd", "worst case", "house", "bungalow", "within"))
    assert "gradient masking" not in output


def test_a_folder_brings_its_network_and_its_data(folder):
    """The same weights on the drawings that it was trained on: of half the difficulty."""
    run("run", *SMALL, "--json", "report.json")
    data = lrc.data.shapes("test", difficulty=0.5).subset(32)
    found = Report.from_json((folder / "report.json").read_text())
    expected = lrc.evaluate(built().eval(), data, attacks="fgsm", masking=False)
    assert (found.images, found.model) == (expected.images, expected.model)
    assert found.results["fgsm"].predictions == expected.results["fgsm"].predictions
    run("run", *SMALL, "--data", "shapes", "--json", "report.json")
    assert Report.from_json((folder / "report.json").read_text()).images != expected.images


def test_eps_norm_and_the_folder_for_verdicts_are_passed_on(folder):
    words = ["mine:build", "--data", "shapes", *SMALL[:2], "--attack", "pgd", "--eps", "1/4", "--norm", "l2"]
    output = run(*words, "--out", "verdicts", "--no-masking")
    found = Report.from_json((folder / "verdicts" / "report.json").read_text())
    assert (found.eps, found.norm) == (0.25, "l2") and "l2 eps 0.25" in output
    assert run(*words, "--out", "verdicts", "--no-masking") == output  # seconds and all: read, not made again


def test_the_flags_are_shown(folder):
    output = run("mine:build", "--data", "shapes", "--images", "48", "--attack", "fgsm", "--surrogate", "run")
    for name in ("zero gradients", "loss saturation", "randomized output", "black-box", "without bound", "more effort"):
        assert name in output


def test_a_network_of_the_zoo_is_tested_on_its_own_data(folder, monkeypatch):
    name = "shapes-resnet8-standard"
    monkeypatch.setitem(recipes.recipes(), name, zoo.recipe(name, limit=64))
    run(name, *SMALL, "--json", "report.json")
    found = Report.from_json((folder / "report.json").read_text())
    assert found.superclasses == ("house", "tree", "fish", "car") and len(found) == 32


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("resnet",), "the zoo has no 'resnet'"),
        (("mine:missing",), "cannot build mine:missing"),
        (("mine:build", "--data", "imagenet"), "no data set is called 'imagenet'"),
        (("mine:build", "--data", "shapes", "--attack", "autoatack"), "no attack in linf is called 'autoatack'"),
        (("mine:build", "--data", "shapes", "--attack", "pgd", "--norm", "l1"), "l1"),
        (("mine:build", "--data", "shapes", "--eps", "eight"), "'eight' is no number: write 0.03 or 8/255"),
        (("mine:build", "--data", "shapes", "--eps", "1/0"), "'1/0' is no number"),
        (("mine:build", "--data", "shapes", "--eps", "-1"), "eps must be >= 0"),
        (("mine:build", "--data", "shapes", "--out", "mine.py"), "mine.py cannot be written"),
        (("mine:build", "--data", "shapes", *SMALL, "--json", "nowhere/r.json"), "nowhere/r.json cannot be written"),
        (("mine:build", "--data", "shapes", "--surrogate", "resnet"), "the zoo has no 'resnet'"),
        (("run", "--weights", "run/weights.safetensors"), "--weights goes with one's own network"),
        (("empty",), "empty/config.json is damaged or cannot be read (No such file"),
        (("strange",), "is no recipe, it has no section 'data'"),
        (("other",), "other/weights.safetensors holds the weights of another network: "),
        (("odd",), "no network is called 'resnet9'"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(folder, capsys, monkeypatch, words, says):
    monkeypatch.setattr(sys, "argv", ["lrc", "evaluate", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == ""
    assert says in err and err.count("\n") == 1 and err.startswith("lrc: ")
