"""The command: what a user types, what comes back, and one line with exit status 2 for what cannot be."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from lrc import cli, models, zoo
from lrc.cli.commands import subject
from lrc.data import grey, named
from lrc.experiments import recipe as recipes
from lrc.experiments import store

MODULE = """
import torch
import typer
from lrc.models import resnet8

def build():
    return resnet8(16, width=4, generator=torch.Generator().manual_seed(0))

def ten():
    return resnet8(10, width=4)

def grey():
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 30 * 30, 16))

def number():
    return 3

def raising():
    raise ValueError("no\\nweights")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder, with a module and weights of a network of their own."""
    (tmp_path / "own.py").write_text(MODULE)
    save_file(models.resnet8(16, width=4).state_dict(), tmp_path / "w.safetensors")
    same = models.resnet8(16, width=4, generator=torch.Generator().manual_seed(0))
    save_file(same.state_dict(), tmp_path / "same.safetensors")
    (tmp_path / "unreadable.py").write_text("def build(:")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    np.savez(tmp_path / "empty.npz", x=np.zeros((0, 32, 32, 3), dtype=np.uint8), y=np.zeros(0, dtype=int))
    (tmp_path / "mixed" / "a").mkdir(parents=True)
    Image.new("RGB", (9, 7)).save(tmp_path / "mixed" / "a" / "1.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for module in ("own", "unreadable"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def lrc(*words, capsys, monkeypatch):
    """Exit status, standard output and standard error of the command."""
    monkeypatch.setattr(sys, "argv", ["lrc", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, *capsys.readouterr()


def test_inspect_takes_weights(folder):
    """Those of the same seed give the same figures, others give others."""
    arguments = ["inspect", "own:build", "--data", "shapes", "--images", "4", "--json", "found.json"]
    seen = []
    for more in ([], ["--weights", "same.safetensors"], ["--weights", "w.safetensors"]):
        result = CliRunner().invoke(cli.app, arguments + more)
        assert result.exit_code == 0, result.output
        seen.append(json.loads((folder / "found.json").read_text())["C"])
    assert seen[0] == seen[1] != seen[2]


def test_a_network_of_one_channel_gets_grey_images(folder):
    found, images, _ = subject("own:grey", None, "shapes", 8)
    assert images.x.shape[1] == 1 and any("grey" in note for note in found.notes)
    assert torch.equal(images.x, grey(named("shapes", "test").subset(8)).x)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("inspect", "resnet"), "the zoo has no 'resnet'"),
        (("inspect", "resnet"), "or give a folder that lrc train wrote, or MODULE:FUNCTION"),
        (("evaluate", "own:build", "--data", "shapes", "--eps", "1e999"), "'1e999' is no number"),
        (("evaluate", "own:build", "--data", "shapes", "--json", "."), ". cannot be written: it is a folder"),
        (("evaluate", "own:build", "--data", "shapes", "--json", "no/x.json"), "there is no folder no"),
        (("inspect", "own:missing"), "cannot build own:missing"),
        (("inspect", "nowhere:build"), "cannot build nowhere:build"),
        (("inspect", "own:number"), "not a torch.nn.Module"),
        (("inspect", "own:raising"), "cannot build own:raising: ValueError: no weights"),
        (("inspect", "unreadable:build"), "cannot build unreadable:build: SyntaxError"),
        (("inspect", ":build"), "':build' names no function"),
        (("inspect", "own:ten", "--data", "shapes"), "has 10 classes, shapes has 16"),
        (("inspect", "own:build", "--data", "imagenet"), "no data set is called 'imagenet'"),
        (("inspect", "own:build", "--weights", "broken.safetensors"), "broken.safetensors"),
        (
            ("inspect", "own:build", "--weights", "sama.safetensors"),
            "there is no file sama.safetensors; the nearest: same.s",
        ),
        (("inspect", "own:build", "--data", "empty.npz"), "empty.npz holds no images"),
        (("zoo", "show", "resnet"), "the zoo has no 'resnet'"),
        (("zoo", "show", "cifar10-smal-at"), "the zoo has no 'cifar10-smal-at'; the nearest are cifar10-small-at, "),
        (("zoo", "show", "%"), "the zoo has no '%'; `lrc zoo list` has them all"),
        (("inspect", "cifar10-smal-at"), "the nearest are cifar10-small-at, "),
        (("inspect", "own:build", "--data", "mixed"), "give the size they are brought to: --size 64, say"),
        (("evaluate", "own:build", "--data", "mixed"), "give the size they are brought to: --size 64, say"),
        (("inspect", "own:grey", "--data", "nothing.npz"), "no data set is called 'nothing.npz'"),
        (("data", "mnist"), "no data set is called 'mnist'"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(folder, capsys, monkeypatch, words, says):
    status, out, err = lrc(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert status == 2 and out == ""
    assert says in err and err.count("\n") == 1 and err.startswith("lrc: ")


def test_a_cache_that_cannot_be_written_is_named(folder, capsys, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setenv("LRC_CACHE", str(folder / "file" / "cache"))
    status, _, err = lrc("inspect", "shapes-resnet8-at", capsys=capsys, monkeypatch=monkeypatch)
    assert status == 2 and err.count("\n") == 1 and "set LRC_CACHE" in err


def test_the_command_is_installed():
    result = subprocess.run([Path(sys.executable).with_name("lrc"), "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "inspect" in result.stdout


def test_zoo_lists_every_recipe(folder):
    """A line each, its name whole, in a narrow terminal too: the name is what is asked for next."""
    output = CliRunner().invoke(cli.app, ["zoo", "list"], env={"COLUMNS": "80"}).output
    assert [line.split()[0] for line in output.splitlines()[1:]] == zoo.names()
    assert " 16/255 " in next(line for line in output.splitlines() if "cifar10-small-fgsm" in line)


def test_data_says_what_is_there(folder):
    output = CliRunner().invoke(cli.app, ["data", "shapes"]).output
    assert "shapes train: Images(4800 of 3x32x32, 16 classes)" in output


def test_a_network_that_is_not_there_yet_is_said_to_be_trained(folder, capsys, monkeypatch):
    name = "shapes-resnet8-standard"
    monkeypatch.setitem(recipes.recipes(), name, zoo.recipe(name, limit=64))
    for says in (f"{name} is not shipped: training it, once on this machine\n", ""):
        words = ("evaluate", name, "--images", "8", "--attack", "pgd", "--no-masking")
        status, out, err = lrc(*words, capsys=capsys, monkeypatch=monkeypatch)
        assert not status and err == says and out.startswith("8 images")


def test_zoo_make_makes(folder, monkeypatch):
    name = "shapes-resnet8-standard"
    monkeypatch.setitem(recipes.recipes(), name, replace(zoo.recipe(name, limit=64), shipped=True))
    monkeypatch.setattr(store, "WEIGHTS", folder / "weights")
    result = CliRunner().invoke(
        cli.app, ["zoo", "make", name, "--work", str(folder / "work"), "--images", "30", "--judged", "20"]
    )
    assert result.exit_code == 0 and result.output.startswith(f"{name}: clean ")
    assert isinstance(zoo.load(name), torch.nn.Module)


def commands(group=None, *path):
    """Every command, by the words that call it."""
    group = group or typer.main.get_command(cli.app)
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *path, name)


@pytest.mark.parametrize("words", [*commands()], ids=" ".join)
def test_help_fits_80_columns_and_is_whole(words):
    """The sentence beside each command too, which is cut with dots where it is too long."""
    result = CliRunner().invoke(cli.app, [*words, "--help"], env={"COLUMNS": "80"}, terminal_width=80)
    assert result.exit_code == 0 and max(map(len, result.output.splitlines())) <= 80
    beside = result.output.partition("Commands:")[2]
    assert "..." not in beside


@pytest.mark.parametrize("name", ["evaluate", "inspect", "export"])
def test_help_has_an_example_of_itself(name):
    """One whose options there are."""
    text = " ".join(CliRunner().invoke(cli.app, [name, "--help"]).output.split())
    example = text.partition("Example: ")[2].split()
    options = {option for param in typer.main.get_command(cli.app).commands[name].params for option in param.opts}
    assert example[:2] == ["lrc", name] and {w for w in example[:6] if w.startswith("--")} <= options


@pytest.mark.parametrize(("typed", "wants"), [("lrc ex", {"export"}), ("lrc export --ma", {"--map"})])
def test_the_shell_completes(typed, wants):
    """As the script does that --install-completion writes."""
    env = {"_LRC_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    result = CliRunner().invoke(cli.app, [], env=env, prog_name="lrc")
    assert wants == set(result.output.split())
