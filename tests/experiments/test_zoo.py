"""The zoo: what is shipped is what was recorded, and recipes make what they say."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from lrc import zoo
from lrc.clustering import class_correlation, cut, tree
from lrc.data import as_superclasses
from lrc.experiments import fitting, store
from lrc.experiments import recipe as recipes
from lrc.experiments.recipe import Objective, checked, identity
from lrc.hierarchy import CIFAR10, CIFAR100
from lrc.linearization import linear_map
from lrc.training.objectives import named
from lrc.utils.devices import device
from lrc.utils.errors import InputError

SHIPPED = [name for name in zoo.names() if zoo.recipe(name).shipped]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_network_loads_and_answers(name):
    model = zoo.load(name)
    assert not model.training and next(model.parameters()).dtype == torch.float32
    with torch.no_grad():
        assert model(torch.rand(2, *model.input_shape)).shape == (
            2,
            zoo.recipe(name).network.options.get("classes", 10),
        )
    assert zoo.info(name)["figures"]["images"] >= 1000


def test_the_two_shipped_networks_differ_in_the_objective_alone():
    standard, robust = (zoo.recipe(f"cifar10-resnet8-{kind}") for kind in ("standard", "at"))
    assert replace(robust, about=standard.about, objective=standard.objective) == standard


def test_the_recipe_is_the_one_that_made_the_weights():
    for name in SHIPPED:
        assert identity(zoo.info(name)["made_by"]) == identity(zoo.recipe(name))


SCRIPT = """
from lrc import zoo
change = [{"training": {"seed": s}} for s in (0, 1)]
zoo.obtain_all([("shapes-resnet8-standard", c) for c in change], limit=40)
"""


def test_side_by_side_needs_no_main_guard(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    result = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "cache").rglob("weights.safetensors"))) == 2


def test_what_is_shipped_is_not_handed_to_others(monkeypatch):
    asked = []

    @contextmanager
    def noted(function, items):
        asked.append(items)
        yield iter(())

    monkeypatch.setattr(zoo, "side_by_side", noted)
    assert len(zoo.obtain_all([(name, {}) for name in SHIPPED[:2]])) == 2
    assert asked == [[]]


def test_another_seed_of_a_shipped_network_is_found_if_it_is_shipped_too():
    change = {"training": {"seed": 1}}
    found, same = zoo.obtain("cifar10-small-standard", change=change), zoo.load("cifar10-small-standard-1")
    assert all(torch.equal(v.cpu(), same.state_dict()[k]) for k, v in found.state_dict().items())
    assert zoo.metrics("cifar10-small-standard", change=change) == zoo.metrics("cifar10-small-standard-1")
    assert store.shipped(zoo.recipe("cifar10-small-standard", change=change, limit=40)) is None
    assert store.shipped(zoo.recipe("cifar10-small-standard", change={"training": {"seed": 3}})) is None


def test_the_metrics_are_those_of_the_recipe():
    for name in SHIPPED:
        metrics, epochs = zoo.metrics(name), zoo.recipe(name).training.epochs
        ended = len(metrics) if "stopped" in metrics[-1] else epochs
        assert [m["epoch"] for m in metrics] == list(range(1, ended + 1)) and ended <= epochs


def test_altered_weights_are_refused(tmp_path, monkeypatch):
    source = store.WEIGHTS / SHIPPED[0]
    monkeypatch.setattr(store, "WEIGHTS", tmp_path)
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

    monkeypatch.setattr(fitting, "fit", refuse)
    again = zoo.obtain(name, limit=48)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())
    with pytest.raises(AssertionError, match="trained again"):
        zoo.obtain(name, limit=49)  # another limit is another network


FOUR = """
import os, sys, time
from pathlib import Path
import torch
from lrc import zoo
from lrc.experiments import fitting
from lrc.utils.hashes import fingerprint

torch.set_num_threads(1)
here, fit = Path(sys.argv[1]), fitting.fit

def noted(*arguments, **options):
    (here / f"trained {os.getpid()}").touch()
    return fit(*arguments, **options)

fitting.fit, children = noted, []
for i in range(4):
    if (pid := os.fork()) == 0:
        while not (here / "go").exists():
            time.sleep(0.01)
        (here / f"has {i}").write_text(fingerprint(zoo.obtain("shapes-resnet8-standard", limit=24)))
        os._exit(0)
    children.append(pid)
(here / "go").touch()
sys.exit(max(os.waitpid(pid, 0)[1] for pid in children) > 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_four_processes_on_an_empty_cache_train_once(tmp_path):
    environment = os.environ | {"LRC_CACHE": str(tmp_path / "cache"), "LRC_DEVICE": "cpu"}
    done = subprocess.run([sys.executable, "-c", FOUR, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len([*tmp_path.glob("trained *")]) == 1
    assert len({path.read_text() for path in tmp_path.glob("has *")}) == 1 and len([*tmp_path.glob("has *")]) == 4


def test_what_is_kept_goes_by_the_recipe():
    change = {"training": {"lr": 0.123}}
    places = {store.kept(zoo.recipe("shapes-resnet8-at", change=c, limit=n)) for c in (None, change) for n in (None, 8)}
    assert len(places) == 4


def test_a_change_goes_into_a_copy():
    name = "shapes-resnet8-at"
    changed = zoo.recipe(name, change={"training": {"seed": 7}, "data": {"pattern": 0}})
    assert changed.training.seed == 7 and changed.data.options == {"pattern": 0}
    assert zoo.recipe(name).training.seed == 0
    with pytest.raises(InputError, match="no section 'train'; there are data, network, objective, training"):
        zoo.recipe(name, change={"train": {"seed": 1}})


def test_make_writes_weights_with_their_figures(tmp_path, monkeypatch):
    """The record's figures are those of the network that `load` gives, and its digest is the file's."""
    name = "shapes-resnet8-standard"
    monkeypatch.setitem(recipes.recipes(), name, replace(zoo.recipe(name, limit=64), shipped=True))
    monkeypatch.setattr(store, "WEIGHTS", tmp_path / "weights")
    record = zoo.make(name, work=tmp_path / "work", images=40)
    assert record["shipped"] and record["sha256"] == store.sha256(tmp_path / "weights" / f"{name}.safetensors")
    measured = fitting.figures(zoo.load(name), zoo.images(name)[2].subset(40))
    assert measured == {k: v for k, v in record["figures"].items() if k not in ("autoattack", "flags")}
    assert record["figures"]["autoattack"]["images"] == 40 and record["figures"]["autoattack"]["robust"] <= 1
    assert json.loads((tmp_path / "weights" / f"{name}.json").read_text())["metrics"][0]["epoch"] == 1

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(fitting, "fit", refuse)
    again = zoo.make(name, work=tmp_path / "work", images=40)
    assert {k: v for k, v in again.items() if k != "figures"} == {k: v for k, v in record.items() if k != "figures"}


def test_make_keeps_w_and_its_correlations_of_what_is_not_to_be_shipped(tmp_path, monkeypatch):
    """As of a large network trained on a GPU: figures, curves and the linear part are recorded, weights are not."""
    name = "shapes-resnet8-at"
    monkeypatch.setitem(recipes.recipes(), name, zoo.recipe(name, limit=48))
    monkeypatch.setattr(store, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(InputError, match="not shipped"):
        zoo.linear_part(name)
    record = zoo.make(name, work=tmp_path / "work", images=20)
    assert not record["shipped"] and record["figures"]["images"] == 20 and record["metrics"][0]["epoch"] == 1
    assert {path.name for path in (tmp_path / "weights").iterdir()} == {f"{name}.json", f"{name}.linear.safetensors"}
    with pytest.raises(InputError, match="not shipped"):
        zoo.load(name)

    made = fitting.restore(zoo.recipe(name), tmp_path / "work" / name / "weights.safetensors")
    W = linear_map(made.to(device())).cpu()
    part = zoo.linear_part(name)
    assert part["W"].shape == (16, 3, 32, 32) and torch.allclose(part["W"], W, atol=1e-5)
    rows = W.flatten(1)
    assert torch.allclose(part["C_raw"], cosines(rows), atol=1e-4)
    assert torch.allclose(part["C_centred"], cosines(rows - rows.mean(0)), atol=1e-4)


def test_the_linear_part_of_what_is_shipped_is_that_of_its_weights():
    part = zoo.linear_part(SHIPPED[0])
    assert torch.equal(part["W"], linear_map(zoo.load(SHIPPED[0])))


def cosines(rows):
    return torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)


def test_make_refuses_the_folder_of_another_recipe(tmp_path, monkeypatch):
    """And takes weights that came without a note of theirs, which it then leaves."""
    name, place = "shapes-resnet8-standard", tmp_path / "work" / "shapes-resnet8-standard"
    monkeypatch.setattr(store, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(zoo, "evaluate", lambda *_, **__: None)
    monkeypatch.setattr(zoo, "_judgement", lambda _: {})
    wanted = zoo.recipe(name, limit=32)
    monkeypatch.setitem(recipes.recipes(), name, wanted)
    place.mkdir(parents=True)
    save_file(fitting.untrained(wanted).half().state_dict(), place / "weights.safetensors")
    (place / "metrics.jsonl").write_text('{"epoch": 1}\n')
    assert zoo.make(name, work=tmp_path / "work")["metrics"] == [{"epoch": 1}]
    zoo.make(name, work=tmp_path / "work")  # again by the same
    monkeypatch.setitem(recipes.recipes(), name, replace(wanted, about="in other words"))
    zoo.make(name, work=tmp_path / "work")
    monkeypatch.setitem(recipes.recipes(), name, zoo.recipe(name, change={"network": {"mean": [0.4] * 3}}))
    with pytest.raises(InputError, match="holds another run, which differs in network.mean: name another folder"):
        zoo.make(name, work=tmp_path / "work")
    (place / "config.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        zoo.make(name, work=tmp_path / "work")


def with_teacher(monkeypatch, *, seed=0):
    """A student of another network, both of recipes that are limited."""
    base = zoo.recipe("shapes-resnet8-standard")
    options = {"teacher": "teacher", "temperature": "40/2"}
    student = replace(base, objective=Objective(name="distillation", options=options))
    monkeypatch.setitem(recipes.recipes(), "teacher", replace(base, training=replace(base.training, seed=seed)))
    monkeypatch.setitem(recipes.recipes(), "student", student)


def test_a_student_is_kept_by_the_recipe_of_its_teacher(monkeypatch):
    places = set()
    for seed in (0, 1):
        with_teacher(monkeypatch, seed=seed)
        places |= {store.kept(zoo.recipe("student", limit=limit)) for limit in (None, 40)}
    assert len(places) == 4


def test_a_trial_has_a_teacher_of_a_trial(monkeypatch, tmp_path, capsys):
    with_teacher(monkeypatch)
    zoo.obtain("student", limit=40, progress=True)
    assert [len(zoo.metrics(name, limit=40)) for name in ("teacher", "student")] == [1, 1]
    left = {path.name for path in (tmp_path / "cache").rglob("*") if path.suffix in (".pt", ".part")}
    assert not left and "student is not shipped: training it" in capsys.readouterr().err


def test_no_checkpoint_is_left_of_what_is_kept(monkeypatch, tmp_path):
    change = {"data": {"limit": 32}, "training": {"epochs": 2, "batch_size": 16}}
    zoo.obtain("shapes-resnet8-standard", change=change)
    assert not list((tmp_path / "cache").rglob("*.pt"))


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("0.007", 0.007), ("1e-2", 0.01), (3, 3), (None, None)]
)
def test_numbers_may_be_fractions(text, value):
    assert recipes.number(text) == value


@pytest.mark.parametrize("text", ["eight", "", "8/", "/8", "1/0", "nan", "inf", "1e999", "1e999999999", "1/2/3"])
def test_other_words_are_no_numbers(text):
    with pytest.raises(InputError, match="is no number: write 0.03 or 8/255"):
        recipes.number(text)


def test_a_recipe_says_what_the_clustering_term_acts_on():
    wanted = zoo.recipe("shapes-resnet8-standard")
    groups = zoo.images("shapes-resnet8-standard", limit=8)[0].hierarchy
    for options in ({"on": "rows"}, {"reduction": "mean"}):
        given = {"clustering": "1/1", "eps": "4/255", **options}
        made = zoo.objective(replace(wanted, objective=Objective(name="adversarial", options=given)), groups)
        assert str(made) == str(named("adversarial", clustering=1.0, groups=groups.groups(), eps=4 / 255, **options))


def speaking(seed=0, **objective):
    """A recipe whose objective speaks of groups."""
    base = zoo.recipe("cifar10-small-at")
    training = replace(base.training, seed=seed, epochs=5)
    return replace(base, objective=Objective(name="adversarial", options=objective), training=training)


@pytest.mark.parametrize("hierarchy", [CIFAR10, CIFAR100])
def test_groups_by_a_word(hierarchy):
    classes, groups = [*range(len(hierarchy.classes))], hierarchy.groups()
    assert zoo.partition(speaking(), hierarchy) == groups == zoo.partition(speaking(groups="superclasses"), hierarchy)
    assert zoo.partition(speaking(groups="all"), hierarchy) == [classes]
    drawn = [zoo.partition(speaking(seed, groups="random"), hierarchy) for seed in (0, 1, 2)]
    assert zoo.partition(speaking(0, groups="random"), hierarchy) == drawn[0]
    for found in drawn:
        assert [*map(len, found)] == [*map(len, groups)] and sorted(k for group in found for k in group) == classes
        assert all(group == sorted(group) for group in found)
    assert groups not in drawn and drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_groups_as_lists_need_no_superclasses():
    assert zoo.partition(speaking(groups=[[3, 0], [1]]), None) == [[3, 0], [1]]
    assert zoo.partition(speaking(groups="random", within=((0, 1),)), CIFAR10, option="within") == [[0, 1]]
    assert zoo.partition(speaking(), None) is None


@pytest.mark.parametrize("asked", ["super", "", 5, [1, 2], [["cat"]], [[0], "1"], {"a": [0]}])
def test_other_groups_are_refused(asked):
    with pytest.raises(InputError, match="expected superclasses, random, all, found, or lists of classes"):
        zoo.partition(speaking(groups=asked), CIFAR10)


@pytest.mark.parametrize("asked", ["superclasses", "random", "all", "found"])
def test_a_word_needs_superclasses(asked):
    for option in ("groups", "within"):
        with pytest.raises(InputError, match=f"^{option} = '{asked}' needs images with superclasses"):
            zoo.partition(speaking(**{option: asked}), None, option=option)


@pytest.mark.parametrize("after", [{}, {"found_after": 0}, {"found_after": -1}, {"found_after": "2"}])
def test_groups_to_be_found_need_a_number_of_epochs(after):
    with pytest.raises(InputError, match="needs found_after, the number of epochs"):
        zoo.partition(speaking(groups="found", **after), CIFAR10)


def test_groups_are_found_in_the_network_of_the_same_training_without_the_term(monkeypatch):
    narrow = {"network": {"width": 4}}
    plain = zoo.obtain("shapes-resnet8-at", change=narrow, limit=40)
    looking = {"groups": "found", "found_after": 1}
    wanted = zoo.recipe("shapes-resnet8-at-clustering", change={**narrow, "objective": looking}, limit=40)
    hierarchy = fitting.split_images(wanted)[0].hierarchy

    def refuse(*_, **__):
        raise AssertionError("trained another")

    monkeypatch.setattr(fitting, "fit", refuse)
    found = cut(tree(class_correlation(linear_map(plain), centre=True)), 4)
    assert zoo.partition(wanted, hierarchy) == found and len(found) == 4
    assert str([list(group) for group in found]) in str(zoo.objective(wanted, hierarchy))
    other = zoo.recipe("shapes-resnet8-at-clustering", change={"training": {"seed": 1}, "objective": looking}, limit=40)
    with pytest.raises(AssertionError, match="trained another"):
        zoo.partition(other, hierarchy)


def test_what_looks_for_groups_is_trained_for_as_many_epochs_and_no_more(monkeypatch):
    asked = []
    monkeypatch.setattr(fitting, "obtain", lambda wanted, **_: asked.append(wanted) or torch.nn.Identity())
    terms = {"clustering": 1, "reduction": "mean", "on": "logits", "smoothing": 0.3, "within": "superclasses"}
    for after in (2, 9):
        fitting._scout(speaking(3, eps="8/255", awp=0.01, groups="found", found_after=after, **terms))
    plain = speaking(3, eps="8/255", awp=0.01)
    assert asked == [replace(plain, training=replace(plain.training, epochs=epochs)) for epochs in (2, 5)]


@pytest.mark.parametrize(("eps", "radius"), [({}, 1 / 255), ({"eps": "2/255"}, 2 / 255), ({"eps": 0}, 0.0)])
def test_a_recipe_has_a_radius(eps, radius):
    """That it names, else that of its objective."""
    assert replace(speaking(eps="1/255"), **eps).radius == radius
    assert speaking().radius == 8 / 255


@pytest.mark.parametrize("option", ["groups", "found_after", "on", "reduction"])
def test_an_option_of_the_clustering_term_needs_the_term(option):
    """Else a control is plain adversarial training, unseen."""
    with pytest.raises(InputError, match=f"^x: {option} is of the clustering term: give clustering, its weight, too$"):
        checked(speaking(**{option: "random"}), where="x")
    assert zoo.objective(speaking(clustering=0, **{option: "random"}), CIFAR10).terms == ()


@pytest.mark.parametrize("value", [[1], {"a": 1}, ["8/255"], True, "wide"])
def test_a_list_is_no_number(value):
    for option in ("smoothing", "squeezing", "eps"):
        with pytest.raises(InputError, match=f"^x: objective.{option} = .*, expected a number such as 0.03 or 8/255$"):
            checked(speaking(**{option: value}), where="x")


def test_several_processes_are_told_how_groups_are_found(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    wanted = zoo.recipe("shapes-resnet8-at-clustering", change={"objective": {"groups": "found", "found_after": 1}})
    with pytest.raises(InputError, match="^the network that groups are found in has not been trained here: begin the"):
        zoo.partition(replace(wanted, trial=31), fitting.split_images(wanted)[0].hierarchy)


def test_what_images_there_are_does_not_depend_on_the_labels():
    wanted = zoo.recipe("shapes-parts-at", limit=200)
    coarse = replace(wanted, data=replace(wanted.data, labels="superclasses"))
    for fine, other in zip(fitting.split_images(wanted), fitting.split_images(coarse), strict=True):
        assert torch.equal(fine.x, other.x) and other.classes == ("house", "tree", "fish", "car")
        assert torch.equal(other.y, as_superclasses(fine).y)


@pytest.mark.parametrize("given", ["maybe", 2])
def test_a_random_start_is_true_or_false(given):
    name = "cifar10-small-fgsm"
    assert zoo.objective(zoo.recipe(name), None).attack.keywords["random_start"] is False
    with pytest.raises(InputError, match=f"objective.random_start = {given!r}, expected true or false"):
        zoo.recipe(name, change={"objective": {"random_start": given}})


def test_a_collapse_is_looked_for_at_the_radius_of_the_training(monkeypatch):
    radii = []
    monkeypatch.setattr(fitting, "watch_collapse", lambda x, y, *, eps: radii.append(eps) or (lambda model: {}))
    change = {"network": {"width": 4}}
    base = zoo.recipe("shapes-resnet8-at", change=change, limit=32)
    base = replace(base, objective=Objective(name="fast", options={"eps": "4/255"}))
    monkeypatch.setattr(fitting, "train", lambda *_, watch, **__: watch(fitting.untrained(base)) and [])
    zoo.fit(base)
    assert radii == [4 / 255]


def test_the_radius_is_that_of_validation_and_bears_on_what_is_kept(monkeypatch):
    base = zoo.recipe("shapes-resnet8-at", change={"network": {"width": 4}}, limit=32)
    calls = []
    monkeypatch.setattr(fitting, "train", lambda *_, attack, **options: calls.append(attack.keywords) or [])
    for wanted in (base, replace(base, eps="2/255")):
        zoo.fit(wanted)
    assert [(call["eps"], call["step"]) for call in calls] == [(8 / 255, 2 / 255), (2 / 255, 2 / 255 / 4)]
    assert store.kept(base) != store.kept(replace(base, eps="2/255"))


def test_trained_rounds_its_weights_and_does_nothing_twice(tmp_path, monkeypatch):
    wanted = zoo.recipe("shapes-resnet8-standard", change={"network": {"width": 4}}, limit=32)
    first, history = fitting.trained(wanted, place=tmp_path)
    exact, _ = zoo.fit(wanted)
    assert not first.training and [record["epoch"] for record in history] == [1]
    for name, value in exact.state_dict().items():
        rounded = value.half().to(value.dtype) if value.is_floating_point() else value
        assert torch.equal(first.state_dict()[name], rounded)

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(fitting, "fit", refuse)
    again, same = fitting.trained(replace(wanted, about="in other words"), place=tmp_path)
    assert same == history
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())
    with pytest.raises(InputError, match="holds another run, which differs in eps"):
        fitting.trained(replace(wanted, eps="2/255"), place=tmp_path)


def test_a_recipe_like_another_takes_over_what_it_does_not_name():
    written = {
        "a": {"about": "A", "shipped": True, "data": {"name": "d", "n": 1}, "objective": {"name": "at", "eps": 2}},
        "b": {"about": "B", "like": "a", "data": {"n": 3}, "objective": {"name": "standard"}},
        "c": {"about": "C", "like": "b", "data": {"name": "e"}},
    }
    b, c = (recipes._whole(name, written) for name in "bc")
    assert b == {"about": "B", "data": {"name": "d", "n": 3}, "objective": {"name": "standard"}}
    assert c == {"about": "C", "data": {"name": "e", "n": 3}, "objective": {"name": "standard"}}
    assert written["a"]["data"] == {"name": "d", "n": 1}


def test_validation_and_test_images_are_not_trained_on():
    rest, validation, test = zoo.images("shapes-resnet8-at")
    seen = {image.numpy().tobytes() for image in rest.x}
    assert not seen & {image.numpy().tobytes() for image in validation.x}
    assert not seen & {image.numpy().tobytes() for image in test.x}
