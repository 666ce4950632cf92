"""`lrc train`: what it leaves behind, that it goes on, and one line for what cannot be."""

import inspect
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lrc import cli, data, zoo
from lrc.cli import training
from lrc.experiments import fitting, store
from lrc.experiments import recipe as recipes
from lrc.utils.files import locked, read_json

TINY = ["--data", "shapes", "--arch", "resnet8", "--width", "4", "--limit", "48", "--validation", "16",
        "--batch-size", "16", "--epochs", "2", "--steps", "1"]  # fmt: skip

CONTENT = {"config.json", "metrics.jsonl", "weights.safetensors", "figures.json", ".lock"}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LRC_DEVICE", "cpu")
    return tmp_path


@pytest.fixture
def command(capsys, monkeypatch):
    """Exit status, standard output and standard error of `lrc` with some words."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["lrc", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return run


def recipe_of(out) -> dict:
    return read_json(Path(out) / "config.json")


def test_everything_is_kept_in_one_folder(command, place):
    status, output, err = command("train", *TINY, "--method", "trades", "--eps", "4/255", "--out", "runs/x")
    assert (status, err) == (0, "") and output.startswith("runs/x: clean ") and output.count("\n") == 1
    kept = {path.name for path in Path("runs/x").iterdir()}
    assert kept == {*CONTENT, "last.pt", "previous.pt"}
    assert recipe_of("runs/x") == {
        "data": {"name": "shapes", "validation": 16, "limit": 48},
        "network": {"name": "resnet8", "width": 4, "classes": 16},
        "objective": {"name": "trades", "eps": "4/255", "steps": 1},
        "training": {"epochs": 2, "batch_size": 16, "lr": 0.1, "weight_decay": 5e-4, "seed": 0},
    }
    lines = [json.loads(line) for line in Path("runs/x/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2] and all("robust" in line for line in lines)
    figures = json.loads(Path("runs/x/figures.json").read_text())
    assert figures["figures"]["images"] == 48 and figures["epochs"] == 2
    assert figures["sha256"] == store.sha256(Path("runs/x/weights.safetensors"))
    model, _ = zoo.fit(recipes.read(recipe_of("runs/x"), where="runs/x"))  # the same recipe, by hand
    weights = load_file("runs/x/weights.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_its_own_config_makes_the_same_and_options_override_it(command):
    command("train", *TINY, "--out", "a", "--set", "training.momentum=0.8")
    command("train", "--config", "a/config.json", "--out", "b")
    assert recipe_of("a") == recipe_of("b") and recipe_of("a")["training"]["momentum"] == 0.8
    a, b = (load_file(f"{name}/weights.safetensors") for name in "ab")
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    command("train", "--config", "a/config.json", "--out", "c", "--seed", "1", "--method", "standard")
    expected = recipe_of("a")
    expected["training"]["seed"], expected["objective"] = 1, {"name": "standard"}
    assert recipe_of("c") == expected


def test_a_finished_training_stays_as_it_is(command):
    first = command("train", *TINY, "--out", "x")
    before = {path.name: path.read_bytes() for path in Path("x").iterdir()}
    assert command("train", *TINY, "--out", "x") == first
    assert {path.name: path.read_bytes() for path in Path("x").iterdir()} == before


def test_a_second_training_in_the_same_folder_is_refused(command):
    with ThreadPoolExecutor(1) as another:
        held = locked(Path("x"))
        another.submit(held.__enter__).result()
        status, output, err = command("train", *TINY, "--out", "x", "--seed", "1")
        another.submit(held.__exit__, None, None, None).result()
    assert (status, output) == (2, "") and {path.name for path in Path("x").iterdir()} == {".lock"}
    assert err == "lrc: another process is at work in x: wait until it ends, or name another folder\n"


def test_the_folder_of_another_training_is_refused(command):
    command("train", *TINY, "--out", "x")
    status, _, err = command("train", *TINY, "--out", "x", "--lr", "0.2", "--compile")  # that may differ
    assert status == 2 and err.count("\n") == 1
    assert "x holds another run, which differs in training.lr: name another folder" in err


@pytest.mark.parametrize("wrong", [["--method", "trade"], ["--batch-size", "64"], ["--lr", "1e30"]])
def test_a_command_that_was_refused_may_be_corrected(command, wrong):
    assert command("train", *TINY, "--out", "x", *wrong)[0] == 2
    status, _, err = command("train", *TINY, "--out", "x", "--epochs", "1")
    assert (status, err) == (0, "") and recipe_of("x")["training"]["epochs"] == 1


def test_a_method_that_needs_a_teacher_says_so(command):
    words = [word for pair in zip(TINY[::2], TINY[1::2], strict=True) if pair[0] != "--steps" for word in pair]
    status, output, err = command("train", *words, "--method", "distillation", "--out", "x")
    assert status == 2 and output == "" and err == "lrc: distillation needs the option 'teacher': give it too\n"
    assert not Path("x").exists()


def test_other_data_have_their_own_classes():
    base = {**training.DEFAULTS, "network": {"name": "resnet8", "classes": 100}}
    given = dict.fromkeys([*training.NAMES, *(name for names in training.SECTIONS.values() for name in names)])
    same, other = ({**given, "data": name} for name in ("cifar10", "shapes"))
    assert training._recipe(base, same, [])["network"]["classes"] == 100
    assert training._recipe(base, other, [])["network"] == {"name": "resnet8"}
    assert training._recipe(base, other, ["network.classes=7"])["network"]["classes"] == 7


@pytest.mark.parametrize(
    ("option", "classes"), [("data.labels=superclasses", 4), ("data.held_out=2", 8), ("data.part=target", 4)]
)
def test_another_part_of_the_data_has_its_own_number_of_classes(option, classes):
    config = {**training.DEFAULTS, "data": {"name": "shapes", "part": "source", "validation": 96}}
    config |= {"network": {"name": "resnet8", "width": 4, "classes": 12}}
    given = dict.fromkeys([*training.NAMES, *(name for names in training.SECTIONS.values() for name in names)])
    recipe, test = training._complete(training._recipe(config, given, [option]))
    assert len(test.classes) == recipe.network.options["classes"] == classes


def test_the_radius_of_the_objective_is_that_of_the_figures(command):
    status, output, err = command("train", *TINY, "--method", "adversarial", "--eps", "2/255", "--out", "x")
    assert (status, err) == (0, "") and "PGD-20 (Linf 2/255) " in output
    figures = json.loads(Path("x/figures.json").read_text())["figures"]
    made = recipes.read(store.settings(Path("x")), where="x")
    network = fitting.restore(made, Path("x") / store.WEIGHTS_FILE)
    test = data.named(made.data.name, "test").subset(figures["images"])
    assert figures["eps"] == 2 / 255
    assert figures["pgd20"] == pytest.approx(fitting.figures(network, test, eps=2 / 255)["pgd20"], abs=0.03)


OWN = """
from torch import nn
class Rows(nn.Module):
    def forward(self, x):
        return x.view(len(x), -1)
def small(classes, width=3):
    features = nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.AvgPool2d(7), Rows()
    return nn.Sequential(*features, nn.Linear(4 * width, classes))
"""


def test_a_network_of_ones_own_is_trained_and_its_folder_known(command):
    Path("mine.py").write_text(OWN)
    words = ["train", *TINY, "--seed", "5", "--arch", "mine.py:small"]  # the width is in TINY
    assert command(*words, "--out", "x")[::2] == command(*words, "--out", "y")[::2] == (0, "")
    first, second = (load_file(f"{out}/weights.safetensors") for out in "xy")
    assert first["0.weight"].shape == (4, 3, 3, 3) and all(torch.equal(first[k], second[k]) for k in first)
    status, _, err = command("evaluate", "x", "--attack", "fgsm", "--no-masking", "--images", "8")
    assert (status, err) == (0, "")
    Path("mine.py").unlink()
    status, _, err = command("evaluate", "x", "--attack", "fgsm", "--no-masking", "--images", "8")
    assert status == 2 and "there is no file mine.py" in err and err.count("\n") == 1


def test_what_it_wrote_is_inspected_and_evaluated(command):
    command("train", *TINY, "--out", "x")
    for words in (["inspect", "x"], ["evaluate", "x", "--attack", "pgd", "--no-masking"]):
        status, output, err = command(*words, "--images", "16")
        assert (status, err) == (0, "") and "16" in output


def test_a_folder_of_images_is_a_data_set(command, place):
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name in ("cat", "dog"):
            (place / "pets" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / "pets" / split / name / f"{i}.png")
    words = ["--data", "pets", "--arch", "resnet8", "--width", "4", "--validation", "4", "--batch-size", "5",
             "--size", "20"]  # fmt: skip
    status, output, err = command("train", *words, "--epochs", "1", "--method", "standard", "--out", "x")
    assert (status, err) == (0, "") and "on 8 test images" in output
    assert recipe_of("x")["network"]["classes"] == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method", "trade"], "no method is called 'trade'; there are standard, label_smoothing"),
        (["--arch", "resnet"], "no network is called 'resnet'; there are resnet18, resnet8, vgg6"),
        (["--data", "mnist"], "no data set is called 'mnist'; there are cifar10, cifar20, cifar100, shapes, stl10, "),
        (["--method", "fast", "--steps", "3"], "lrc train: objective.steps is unknown"),
        (["--precision", "half"], "precision 'half', expected one of float32, bf16"),
        (["--eps", "eight"], "objective.eps = 'eight', expected a number such as 0.03 or 8/255"),
        (["--batch-size", "64"], "batch_size must be in 1..48, the number of images, not 64"),
        (["--ema", "2"], "must be in [0, 1), not 2.0"),
        (
            ["--set", "training.epoch=3"],
            "lrc train: training.epoch is unknown (did you mean epochs?); there are epochs, batch_size, lr",
        ),
        (["--set", "training.out=y"], "training.out is unknown"),
        (["--set", "training.stop=1"], "training.stop is unknown"),
        (["--method", "distillation"], "objective.steps is unknown"),
        (["--eps", "1e999"], "objective.eps = '1e999', expected a number"),
        (["--set", "objective.on=columns", "--clustering", "0.1"], "not 'columns'"),
        (["--config", "unnamed.json"], "unnamed.json: network.name is missing: give it"),
        (["--set", "train.epochs=3"], "expected SECTION.NAME=VALUE, with a section of data, network, objective, tra"),
        (["--set", "network.depth=3"], "network.depth is unknown (did you mean width?); there are"),
        (["--config", "nowhere.json"], "nowhere.json is damaged or cannot be read (No such file"),
        (["--set", "network.classes=7"], "network.classes is 7, the data have 16 classes: leave it out"),
        (["--set", "data.part=source", "--set", "data.choice=abc"], "data.choice = 'abc', expected a whole number"),
        (["--set", "objective.groups=random"], "groups is of the clustering term: give clustering, its weight, too"),
        (["--set", "objective.smoothing=[1]"], "objective.smoothing = [1], expected a number"),
        (["--config", "list.json"], "list.json is damaged or cannot be read (an object of JSON"),
        (["--lr", "1e30"], "no longer finite: lower the learning rate"),
        (["--lr", "-1"], "lrc train: training.lr = -1.0, expected at least 0"),
        (["--set", "network.width=-1"], "network.width = -1, expected at least 1"),
        (
            ["--set", "network.width=10000000"],
            "the network resnet8 cannot be built with {'classes': 16, 'width': 10000000}",
        ),
        (["--config", "deep.json"], "deep.json is damaged or cannot be read (maximum recursion depth"),
        (["--set", f"network.mean={100_000 * '['}"], "expected a list of numbers"),
        (["--out", "list.json"], "list.json"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(unchecked, command, words, says):
    Path("list.json").write_text("[1]")
    Path("deep.json").write_text(100_000 * "[")
    Path("unnamed.json").write_text(json.dumps({**training.DEFAULTS, "network": {}}))
    status, output, err = command("train", *TINY, "--method", "adversarial", "--out", "x", *words)
    assert status == 2 and output == ""
    assert err.startswith("lrc: ") and err.count("\n") == 1
    assert says in err


def test_a_damaged_checkpoint_is_one_line_too(command):
    command("train", *TINY, "--out", "x")
    whole = {name: value.clone() for name, value in load_file("x/weights.safetensors").items()}
    Path("x/last.pt").write_bytes(b"damaged")
    script = "from lrc.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", script, "train", *TINY, "--out", "x"], capture_output=True, text=True
    )
    assert result.returncode == 0
    assert result.stderr.startswith("lrc: x/last.pt is damaged") and result.stderr.count("\n") == 1
    again = load_file("x/weights.safetensors")
    assert all(torch.equal(value, whole[name]) for name, value in again.items())


def test_the_help_names_the_defaults_that_the_recipe_has():
    parameters = inspect.signature(training.train).parameters
    for section, entries in training.DEFAULTS.items():
        for name, value in entries.items():
            option = next(o for o, s in training.NAMES.items() if s == section) if name == "name" else name
            text = parameters[option].annotation.__metadata__[0].help
            assert str(value) in text.replace("5e-4", "0.0005"), name


def test_two_processes_make_one_folder(place):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = ["-m", "lrc.cli", "train", *TINY, "--ema", "0.9", "--out", "two"]
    result = subprocess.run([*command, *words], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("two: clean") == 1
    figures = json.loads(Path("two/figures.json").read_text())["figures"]
    assert figures["images"] == 48 and 0 <= figures["pgd20"] <= figures["clean"] <= 1
