"""Studies: rows by their recipes, measures against counting by hand, and records that outlive kills and races."""

import json
import subprocess
import sys
from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torch import Generator, nn

from lrc import cli, recipes, studies, zoo
from lrc.attacks import pgd
from lrc.cli import studies as command
from lrc.clustering import class_correlation
from lrc.data import Images, shapes
from lrc.data.parts import OFFICIAL
from lrc.data.sources import SOURCES
from lrc.errors import InputError
from lrc.hierarchy import CIFAR10, CIFAR100, Hierarchy
from lrc.models import build, resnet8
from lrc.studies import measures, plan, records, tables

STUDIES = studies.names()
PLAIN = {  # what each is compared with, from which it differs by the term on groups alone
    "subpopulations": {
        "R + C": "R", "S + C": "S", "R, smoothing within": "R", "R + C, random groups": "R", "R + C, groups found": "R",
    },
    "shapes-subpopulations": {"R + C": "R"},
    "resnet18-subpopulations": {"R + C": "R"},
    "boosting": {
        "PGD-AT + C": "PGD-AT", "PGD-AT + 10 C": "PGD-AT", "PGD-AT + 50 C": "PGD-AT", "groups found": "PGD-AT",
        "random groups": "PGD-AT", "one group": "PGD-AT", "label smoothing": "PGD-AT", "C on features": "PGD-AT",
        "C on rows of W": "PGD-AT", "TRADES + 10 C": "TRADES", "MART + 10 C": "MART", "AWP + 10 C": "AWP",
    },
    "shapes-boosting": {"PGD-AT + C": "PGD-AT"},
    "resnet18-boosting": {"PGD-AT + C": "PGD-AT"},
}  # fmt: skip
TINY = {
    "data": {"validation": 16},
    "network": {"width": 4},
    "training": {"epochs": 2, "batch_size": 32},
}
HELD = ("bungalow", "palm", "puffer", "racer")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """No record of the package is read or written, and few drawings are made."""
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LRC_DEVICE", "cpu")
    monkeypatch.setattr(records, "RECORDS", tmp_path / "records")
    monkeypatch.setitem(SOURCES, "shapes", few)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@cache
def few(split):
    return shapes(split, n={"train": 320, "test": 64}[split])


@cache
def trained(name, labels="classes"):
    """A recipe of a small network, and the network."""
    classes = {} if labels == "classes" else {"classes": 4}
    change = TINY | {"data": {"validation": 16, "labels": labels}, "network": {"width": 4} | classes}
    wanted = zoo.recipe(name, change=change) | {"eps": "1/255"}
    return wanted, zoo.fit(wanted)[0]


def lrc(*words, capsys, monkeypatch):
    """Exit status, standard output and standard error of the command."""
    monkeypatch.setattr(sys, "argv", ["lrc", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0, *capsys.readouterr()


# -- what is in the studies ---------------------------------------------------------------------------------------


def test_rows_have_names_of_their_own_by_which_they_are_found():
    every = [row for study in STUDIES for row in studies.rows(study)]
    assert len({row.name for row in every}) == len(every)
    assert all(studies.row(row.name) == row for row in every)
    for study in STUDIES:
        cells = [(row.model, row.choice, row.seed) for row in studies.rows(study)]
        assert len(set(cells)) == len(cells)


def test_the_tables_have_the_seeds_and_choices_they_are_asked_for():
    found = studies.rows("subpopulations")
    main = [(row.choice, row.seed) for row in found if row.model == "R + C"]
    assert main == [(c, s) for c in ("official", 1, 2) for s in (0, 1, 2)]
    control = [(row.choice, row.seed) for row in found if row.model == "S + C"]
    assert control == [("official", 0), (1, 1), (2, 2)]  # each seed once, with the choice in the same place
    assert {(row.choice, row.seed) for row in studies.rows("boosting")} == {(None, s) for s in (0, 1, 2)}
    assert all(row.main for row in found[:27]) and not any(row.main for row in found[27:])


@pytest.mark.parametrize(
    ("choices", "seeds", "some"),
    [
        ([1, 2], [0, 1, 2], [(1, 0), (2, 1), (1, 2)]),
        ([1, 2, 3], [0], [(1, 0)]),
        (None, [4, 5], [(None, 4), (None, 5)]),
    ],
)
def test_fewer_choices_than_seeds_go_round(monkeypatch, choices, seeds, some):
    given = {"main": {"M": "a"}, "controls": {"K": "b"}, "seeds": seeds} | ({"choices": choices} if choices else {})
    monkeypatch.setitem(plan._studies(), "mine", given)
    found = studies.rows("mine")
    assert [(row.choice, row.seed) for row in found if row.model == "K"] == some
    assert len([row for row in found if row.main]) == len(choices or [None]) * len(seeds)


def test_a_row_is_its_recipe_with_seed_and_choice():
    changed = {row.name: zoo.recipe(row.recipe, change=row.change) for row in studies.rows("subpopulations")}
    drawn = changed["cifar20-small-at.choice-2.seed-1"]
    assert drawn["data"]["choice"] == 2 and drawn["training"]["seed"] == 1
    official = changed["cifar20-small-at.choice-official.seed-1"]
    assert official == drawn | {"data": {k: v for k, v in drawn["data"].items() if k != "choice"}}


@pytest.mark.parametrize("study", STUDIES)
def test_all_that_is_compared_differs_in_the_objective_alone(study):
    """In labels too, where superclasses are trained on directly."""
    made = {row.model: zoo.recipe(row.recipe) for row in studies.rows(study)}

    def rest(wanted):
        data = {k: v for k, v in wanted["data"].items() if k != "labels"}
        left = {k: v for k, v in wanted.items() if k not in ("about", "shipped", "objective")}
        network = wanted["network"]
        if "labels" in wanted["data"]:
            network = network | {"classes": first["network"]["classes"]}
        return left | {"data": data, "network": network}

    first = next(iter(made.values()))
    assert all(rest(wanted) == rest(first) for wanted in made.values())
    assert [model for model in made if "labels" in made[model]["data"]] in ([], ["R, superclass labels"])
    for model, plain in PLAIN[study].items():
        assert recipes.without_groups(made[model]) == made[plain]["objective"] != made[model]["objective"]


def hierarchy_of(wanted):
    """That of the recipe's data, without the data."""
    if wanted["data"].get("labels") == "superclasses":
        return None
    if wanted["data"]["name"] == "cifar10":
        return CIFAR10
    if wanted["data"]["name"] == "shapes":
        classes = shapes("test", n=16).hierarchy
        return classes.select([k for k in range(16) if "part" not in wanted["data"] or classes.classes[k] not in HELD])
    kept = [k for group in CIFAR100.groups() for k in sorted(group)[:-1]]
    some = CIFAR100.select(kept)
    official = [k for k, g in enumerate(some.levels[0].of) if some.levels[0].names[g] in OFFICIAL]
    return Hierarchy(some.select(official).classes, some.select(official).levels[:1], "")


@pytest.mark.parametrize("study", STUDIES)
def test_every_network_and_objective_can_be_built(study, monkeypatch):
    for model, wanted in {row.model: zoo.recipe(row.recipe) for row in studies.rows(study)}.items():
        of = hierarchy_of(wanted)
        classes = wanted["network"].get("classes", 10)
        scout = resnet8(classes, width=4, generator=Generator().manual_seed(0))
        monkeypatch.setattr(zoo, "_scout", lambda _, scout=scout: scout)
        made = str(zoo.objective(wanted, of))
        assert ("clustering" in made) == ("clustering" in wanted["objective"]), model
        assert ("smoothing" in made) == ("smoothing" in wanted["objective"]), model
        assert len(of.classes if of else range(4)) == classes
        options = dict(wanted["network"])
        assert build(options.pop("name"), **options) is not None
        assert recipes.radius(wanted) == recipes.number(wanted["objective"].get("eps", wanted.get("eps", "8/255")))


# -- what is measured ---------------------------------------------------------------------------------------------


class Asked(nn.Module):
    """The largest logit of each group, group by group."""

    def __init__(self, model, groups):
        super().__init__()
        self.model, self.groups = model, groups

    def forward(self, x):
        z = self.model(x)
        return torch.stack([z[:, group].amax(1) for group in self.groups], 1)


KIND = {
    name: level.names[level.of[k]]
    for images in [shapes("test", n=16)]
    for level in [images.hierarchy.levels[0]]
    for k, name in enumerate(images.classes)
}


def shown(split, *, held):
    """Images of the subclasses that are held out, or of the others; with the name of each."""
    images = few(split)
    rows = [i for i, k in enumerate(images.y.tolist()) if (images.classes[k] in HELD) == held]
    return images.x[rows] / 255, [images.classes[int(images.y[i])] for i in rows]


def counted(model, x, names, *, classes):
    """Part of the images whose superclass is that of the class the model says."""
    with torch.no_grad():
        said = model(x).argmax(1).tolist()
    return sum(KIND[classes[k]] == KIND[name] for k, name in zip(said, names, strict=True)) / len(names)


@pytest.fixture(scope="module")
def measured():
    """The figures of a network on few drawings, and what they are of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "shapes", few)
        patch.setenv("LRC_DEVICE", "cpu")
        wanted, model = trained("shapes-parts-standard")
        return wanted, model, measures.subpopulations(model, wanted)


def test_superclasses_are_told_as_by_counting(measured):
    wanted, model, figures = measured
    seen, parts = measures._parts(wanted)
    by_hand = partial(counted, model, classes=seen.classes)
    (old, old_names), (test, test_names) = shown("train", held=True), shown("test", held=True)
    assert (len(test_names), len(old_names)) == (16, 80)
    assert figures["target_max"] == by_hand(torch.cat([old, test]), old_names + test_names)
    assert figures["official_max"] == by_hand(test, test_names)
    assert figures["source_max"] == by_hand(*shown("test", held=False))
    assert 0 < figures["target_max"] < 1 and 0 < figures["source_max"] < 1
    assert figures["superclasses"] == ("house", "tree", "fish", "car")
    by_superclass = [by_hand(old[[i]], [name]) for i, name in enumerate(old_names)]
    by_superclass += [by_hand(test[[i]], [name]) for i, name in enumerate(test_names)]
    for number, superclass in enumerate(figures["superclasses"]):
        own = [r for r, name in zip(by_superclass, old_names + test_names, strict=True) if KIND[name] == superclass]
        assert figures["by_superclass"]["target"][number] == pytest.approx(sum(own) / len(own))


def test_the_attack_aims_at_the_superclass_within_the_radius_of_the_recipe(measured):
    wanted, model, figures = measured
    seen, _ = measures._parts(wanted)
    groups = seen.hierarchy.groups()
    x, names = shown("test", held=False)
    y = torch.tensor([figures["superclasses"].index(KIND[name]) for name in names])
    victim, eps = Asked(model, groups), 1 / 255
    x_adv = pgd(victim, x, y, eps=eps, steps=10, step=eps / 4, generator=Generator().manual_seed(0))
    assert figures["source_max_attacked"] == int((victim(x_adv).argmax(1) == y).sum()) / len(y)
    assert 0 < figures["source_max_attacked"] < figures["source_max"]


def test_cohesion_and_contrast_by_loops_over_pairs(measured):
    wanted, model, figures = measured
    C = class_correlation(model, centre=True).double()
    seen, _ = measures._parts(wanted)
    of = [KIND[name] for name in seen.classes]
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]

    def mean(chosen):
        values = [float(C[i, j]) for i, j in chosen]
        return sum(values) / len(values)

    for name, cohesion in zip(figures["superclasses"], figures["cohesion"], strict=True):
        own = [(i, j) for i, j in pairs if of[i] == of[j] == name]
        across = [(i, j) for i, j in pairs if of[i] == name != of[j]]
        assert cohesion == pytest.approx(mean(own) - mean(across), abs=1e-5)
    within = [(i, j) for i, j in pairs if of[i] == of[j]]
    across = [(i, j) for i, j in pairs if of[i] != of[j]]
    assert figures["contrast"] == pytest.approx(mean(within) - mean(across), abs=1e-5)


def test_nothing_is_random_in_the_figures_and_the_network_stays(measured):
    wanted, model, figures = measured
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(7)
    assert measures.subpopulations(model, wanted) == figures
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert set(figures) == {
        *(f"{part}_{way}{end}" for part in ("source", "target") for way in ("max", "sum", "head", "all")
          for end in ("", "_attacked")),
        *(f"official_{way}" for way in ("max", "sum", "head", "all")),
        "superclasses", "by_superclass", "cohesion", "contrast",
    }  # fmt: skip


@pytest.mark.parametrize("choice", [None, 1, 2])
def test_nothing_of_the_target_is_trained_on(choice):
    change = {"data": {"validation": 16} | ({} if choice is None else {"choice": choice})}
    wanted = zoo.recipe("shapes-parts-at", change=change)
    seen, parts = measures._parts(wanted)

    def pixels(images: Images):
        return {image.numpy().tobytes() for image in images.x}

    trained_on = pixels(seen) | pixels(zoo.split_images(wanted)[1])
    assert pixels(zoo.split_images(wanted)[0]) == pixels(seen)
    assert not trained_on & (pixels(parts["target"]) | pixels(parts["official"]) | pixels(parts["source"]))
    assert not {*seen.classes} & {*parts["target"].classes} and (choice is None) == (parts["target"].classes == HELD)
    assert pixels(parts["official"]) < pixels(parts["target"])
    assert pixels(parts["official"]) <= pixels(few("test")) and pixels(parts["source"]) <= pixels(few("test"))
    kinds = [images.hierarchy.levels[0].names for images in (seen, *parts.values())]
    assert len(set(kinds)) == 1


def test_a_trial_measures_at_most_so_many_images():
    wanted = zoo.recipe("shapes-parts-at", change={"data": {"validation": 16}}, limit=10)
    seen, parts = measures._parts(wanted)
    assert [len(images) for images in (seen, *parts.values())] == [10] * 4


def test_labels_of_superclasses_are_asked_as_they_are(monkeypatch):
    """A network of four logits: nothing to map up, and no classes whose correlation could cohere."""
    wanted, model = trained("shapes-parts-standard", "superclasses")
    monkeypatch.setattr(measures, "with_new_head", lambda model, *_, **__: Asked(model, [[0], [1], [2], [3]]))
    figures = measures.subpopulations(model, wanted)
    x, names = shown("test", held=True)
    assert figures["official_max"] == figures["official_sum"]
    assert figures["official_max"] == counted(model, x, names, classes=HELD)  # one of each superclass, in their order
    assert figures["cohesion"] is figures["contrast"] is None


def test_all_layers_are_fitted_by_the_objective_less_its_terms_on_groups(monkeypatch):
    wanted = zoo.recipe("shapes-parts-at-clustering", change=TINY)
    model, calls = zoo._untrained(wanted).eval(), []

    def fitted(model, images, *, layers, objective=None, **options):
        calls.append((layers, objective and str(objective), images.classes, options))
        return Asked(model, [[k, k + 1, k + 2] for k in range(0, 12, 3)])

    monkeypatch.setattr(measures, "with_new_head", fitted)
    measures.subpopulations(model, wanted)
    plain = str(zoo.objective(zoo.recipe("shapes-parts-at"), None))
    options = {"batch_size": 32, "augment": False, "seed": 0}
    kinds = ("house", "tree", "fish", "car")
    assert calls == [("head", None, kinds, options), ("all", plain, kinds, options)]


def test_a_recipe_that_holds_out_nothing_is_refused():
    wanted = zoo.recipe("shapes-resnet8-at", change=TINY)
    with pytest.raises(InputError, match="holds out no subclasses, it trains on bungalow, palm, puffer, racer"):
        measures.subpopulations(zoo._untrained(wanted), wanted)


def verdicts(y):
    """What might have been said of the images under some attacks."""
    drawn = {name: torch.randint(16, y.shape, generator=Generator().manual_seed(i)) for i, name in enumerate("cab")}
    often = torch.rand(3, len(y), generator=Generator().manual_seed(3)) < 0.7
    pairs = zip(("clean", "pgd", "autoattack"), zip(drawn.values(), often, strict=True), strict=True)
    said = {name: torch.where(right, y, wrong) for name, (wrong, right) in pairs}
    said["pgd"][:5] = -1  # logits that are not finite
    return said


def test_errors_are_parted_as_by_counting(monkeypatch):
    wanted, model = trained("shapes-resnet8-standard")
    test = few("test")
    said, of = verdicts(test.y), [KIND[name] for name in test.classes]
    report = SimpleNamespace(attacks=("pgd", "autoattack"), said=said.__getitem__)
    monkeypatch.setattr(measures, "evaluate", lambda *_, **__: report)
    figures = measures.boosting(model, wanted, attacks=["pgd", "autoattack"])
    worst = [c if c != k else p for c, p, k in zip(said["clean"], said["pgd"], test.y, strict=True)]
    for name, answers in (said | {"worst": worst}).items():
        pairs = [(int(a), int(k)) for a, k in zip(answers, test.y, strict=True)]
        assert figures[name] == sum(a == k for a, k in pairs) / 64
        within = [(a, k) for a, k in pairs if a != k and a >= 0 and of[a] == of[k]]
        assert figures[f"{name}_within"] == len(within) / 64
        assert figures[name] + figures[f"{name}_within"] + figures[f"{name}_across"] == pytest.approx(1)
    assert figures["worst"] < min(figures["clean"], figures["pgd"]) and figures["worst_within"] > 0
    assert figures["images"] == 64


def test_robustness_is_that_of_attacks_within_the_radius_and_is_kept(place):
    wanted, model = trained("shapes-resnet8-standard")
    figures = measures.boosting(model, wanted, attacks=["pgd"], images=40, out=place / "verdicts")
    some = few("test").subset(40)
    with torch.no_grad():
        z = model(some.float())
    assert figures["clean"] == int((z.argmax(1) == some.y).sum()) / 40 and figures["images"] == 40
    assert figures["spread"] == pytest.approx(float(z.double().std(1).mean()), rel=1e-5)
    groups = [[k for k, name in enumerate(some.classes) if KIND[name] == g] for g in ("house", "tree", "fish", "car")]
    victim, eps = Asked(model, groups), 1 / 255
    y = torch.tensor([["house", "tree", "fish", "car"].index(KIND[some.classes[k]]) for k in some.y])
    x_adv = pgd(victim, some.float(), y, eps=eps, steps=20, step=eps / 4, generator=Generator().manual_seed(0))
    assert figures["superclass_attacked"] == int((victim(x_adv).argmax(1) == y).sum()) / 40
    report = json.loads((place / "verdicts" / "report.json").read_text())
    assert report["eps"] == eps and report["figures"]["pgd"]["accuracy"] == figures["pgd"] == figures["worst"]
    torch.manual_seed(5)
    assert measures.boosting(model, wanted, attacks=["pgd"], images=40) == figures


def test_images_without_superclasses_are_refused_before_the_attacks(monkeypatch):
    wanted, model = trained("shapes-parts-standard", "superclasses")
    monkeypatch.setattr(measures, "evaluate", refuse)
    with pytest.raises(InputError, match="images without superclasses"):
        measures.boosting(model, wanted)


def refuse(*_, **__):
    raise AssertionError("asked again")


# -- tables -------------------------------------------------------------------------------------------------------


def cells(**columns):
    """A table of models, with a figure for each cell (choice, seed)."""
    return [
        {"model": model, "choice": choice, "seed": seed, "f": value, "list": [value], "none": None}
        for model, values in columns.items()
        for (choice, seed), value in values.items()
    ]


FULL = {(c, s): 0.5 + 0.01 * s**2 + 0.03 * (c or 0) for c in (None, 1, 2) for s in (0, 1, 2)}


def test_pairs_are_compared_as_by_a_paired_t_test():
    other = {cell: value - 0.02 - 0.01 * ((3 * i) % 7) for i, (cell, value) in enumerate(FULL.items())}
    shuffled = dict(reversed(other.items()))
    found = studies.paired(cells(A=FULL, B=shuffled), "A", "B", "f")
    test = stats.ttest_rel([*FULL.values()], [other[cell] for cell in FULL])
    expected = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.n == 9 and found.value == pytest.approx(0.05, abs=0.02) and found.low > 0


def test_only_cells_that_both_have_are_compared():
    other = {(None, 0): 0.4, (1, 1): 0.3, (7, 7): 9.0}
    found = studies.paired(cells(A=FULL, B=other), "A", "B", "f")
    expected = stats.ttest_rel([FULL[None, 0], FULL[1, 1]], [0.4, 0.3]).confidence_interval(0.95)
    assert (found.low, found.high, found.n) == (pytest.approx(expected.low), pytest.approx(expected.high), 2)
    with pytest.raises(InputError, match="'A' and 'B' have 1 rows in common"):
        studies.paired(cells(A=FULL, B={(None, 0): 0.4, (7, 7): 9.0}), "A", "B", "f")


def test_a_column_is_one_figure_in_the_order_of_the_table():
    values = studies.column(cells(A=FULL, B={(None, 0): 0.4}), "A", "f")
    assert values.dtype == torch.float64 and values.tolist() == [*FULL.values()]


@pytest.mark.parametrize(("model", "figure"), [("C", "f"), ("A", "g"), ("A", "list"), ("A", "none")])
def test_a_column_that_is_not_there_says_what_is(model, figure):
    with pytest.raises(InputError, match=f"no figure '{figure}' of '{model}'; its models are A, B"):
        studies.column(cells(A=FULL, B=FULL), model, figure)
    with pytest.raises(InputError):
        studies.paired(cells(A=FULL, B=FULL), "A", model if model != "A" else "B", figure)


def test_a_figure_that_some_rows_lack_is_refused():
    found = cells(A=FULL)
    del found[-1]["f"]
    with pytest.raises(InputError, match="no figure 'f'"):
        studies.column(found, "A", "f")


# -- records ------------------------------------------------------------------------------------------------------


def record(row, **figures):
    records.record(row, figures, seconds=1.6)


def test_what_is_recorded_comes_back_in_the_order_of_the_study(place):
    first, second, *_ = rows = studies.rows("subpopulations")
    record(second, a=0.123456, b={"x": [0.99999, 1]}, c=None, d=("house",))
    record(first, a=1 / 3)
    found = studies.recorded("subpopulations")
    assert list(found) == [first.name, second.name]
    assert found[second.name]["figures"] == {"a": 0.1235, "b": {"x": [1.0, 1]}, "c": None, "d": ["house"]}
    assert found[first.name]["seconds"] == 2 and found[first.name]["versions"]["device"] == "cpu"
    assert studies.left("subpopulations") == [row.name for row in rows[2:]]
    record(second, a=0.5)  # made anew
    assert studies.recorded("subpopulations")[second.name]["figures"] == {"a": 0.5}
    assert len((place / "records" / "subpopulations.jsonl").read_text().splitlines()) == 2


def test_rows_of_another_recipe_are_not_there(monkeypatch):
    row, other, *_ = studies.rows("shapes-boosting")
    for each in (row, other):
        record(each, a=1.0)
    wanted = zoo.recipe(row.recipe)
    monkeypatch.setitem(recipes.recipes(), row.recipe, wanted | {"about": "in other words"})
    assert set(studies.recorded("shapes-boosting")) == {row.name, other.name}
    monkeypatch.setitem(recipes.recipes(), row.recipe, wanted | {"training": wanted["training"] | {"lr": 0.123}})
    assert set(studies.recorded("shapes-boosting")) == {other.name} and row.name in studies.left("shapes-boosting")
    record(row, a=2.0)
    assert studies.recorded("shapes-boosting")[row.name]["made_by"]["recipe"]["training"]["lr"] == 0.123


def test_rows_measured_otherwise_are_not_there(monkeypatch):
    rows = studies.rows("shapes-boosting")
    record(rows[0], a=1.0)
    assert studies.recorded("shapes-boosting")
    monkeypatch.setitem(plan._studies()["shapes-boosting"], "images", 201)
    assert not studies.recorded("shapes-boosting")


@pytest.mark.parametrize("line", ['{"row": "x', "[]", '{"row": "x"}', "3"])
def test_a_damaged_record_is_named_before_anything_is_trained(place, monkeypatch, line):
    row = studies.rows("shapes-boosting")[0]
    record(row, a=1.0)
    with (place / "records" / "shapes-boosting.jsonl").open("a") as file:
        file.write(line.replace('"x"', json.dumps(row.name)) + "\n")
    monkeypatch.setattr(zoo, "trained", refuse)
    for ask in (partial(studies.recorded, "shapes-boosting"), partial(studies.make, row.name, work=place)):
        with pytest.raises(InputError, match=r"shapes-boosting.jsonl is damaged \("):
            ask()


def test_records_that_cannot_be_written_are_named_before_anything_is_trained(place, monkeypatch):
    monkeypatch.setattr(records, "RECORDS", place / "nowhere" / "records")
    monkeypatch.setattr(zoo, "trained", refuse)
    with pytest.raises(InputError, match="records cannot be written"):
        studies.make(studies.rows("shapes-boosting")[0].name, work=place)


BOTH = """
import sys, time
from pathlib import Path
from lrc import studies
from lrc.studies import records
here, mine = Path(sys.argv[1]), int(sys.argv[2])
records.RECORDS = here / "records"
(here / f"ready{mine}").touch()
while not (here / f"ready{1 - mine}").exists():
    time.sleep(0.01)
for row in studies.rows("subpopulations")[mine:12:2]:
    records.record(row, {"by": mine}, seconds=1.0)
"""


def test_two_processes_record_side_by_side(place):
    run = partial(subprocess.Popen, stderr=subprocess.PIPE, text=True)
    both = [run([sys.executable, "-c", BOTH, str(place), str(mine)]) for mine in (0, 1)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    found = studies.recorded("subpopulations")
    assert [line["figures"]["by"] for line in found.values()] == [0, 1] * 6
    assert [*found] == [row.name for row in studies.rows("subpopulations")[:12]]


@pytest.mark.parametrize(("ask", "name"), [("rows", "x"), ("recorded", "x"), ("left", "x"), ("table", "x")])
def test_unknown_studies_are_refused(ask, name):
    with pytest.raises(InputError, match="no study is called 'x'; there are subpopulations"):
        getattr(studies, ask)(name)


def test_unknown_rows_are_refused(place):
    for ask in (studies.row, partial(studies.make, work=place)):
        with pytest.raises(InputError, match="no study has a row 'x'"):
            ask("x")


def test_a_table_is_what_is_recorded(monkeypatch):
    monkeypatch.setattr(zoo, "obtain_all", refuse)
    rows = studies.rows("subpopulations")
    for row in (rows[4], rows[0]):
        record(row, a=float(row.seed))
    assert studies.table("subpopulations") == [
        {"model": row.model, "seed": row.seed, "choice": row.choice, "a": float(row.seed)} for row in (rows[0], rows[4])
    ]


@pytest.mark.parametrize("limit", [None, 40])
def test_a_table_of_which_nothing_is_recorded_is_trained(monkeypatch, limit):
    rows, asked = studies.rows("shapes-boosting"), []
    if limit:
        record(rows[0], a=1.0)  # of no use to a trial

    def obtain_all(wanted, *, limit):
        asked.append((wanted, limit))
        return [nn.Identity() for _ in wanted]

    def measure(network, recipe, *, attacks, images, out):
        assert out is None and images == 200
        return {"attacks": attacks, "seed of": recipe["training"]["seed"], "trial": recipe.get("trial")}

    monkeypatch.setattr(zoo, "obtain_all", obtain_all)
    monkeypatch.setitem(tables.MEASURES, "boosting", measure)
    found = studies.table("shapes-boosting", limit=limit)
    assert asked == [([(row.recipe, row.change) for row in rows], limit)]
    attacks = ["pgd"] if limit else ["pgd", "apgd-ce"]
    assert found == [
        {"model": row.model, "seed": row.seed, "choice": None, "attacks": attacks, "seed of": row.seed, "trial": limit}
        for row in rows
    ]
    monkeypatch.setitem(tables.MEASURES, "boosting", refuse)  # measured once on a machine
    assert studies.table("shapes-boosting", limit=limit) == found


def test_controls_are_not_judged_by_the_dearest_attack(monkeypatch):
    monkeypatch.setitem(tables.MEASURES, "boosting", lambda network, recipe, *, attacks, images, out: {"by": attacks})
    by = {row.model: tables._measured(row, nn.Identity())["by"] for row in studies.rows("boosting")}
    assert by["PGD-AT"] == by["PGD-AT + C"] == ["pgd", "apgd-ce", "apgd-t", "autoattack"]
    assert all(by[m] == ["pgd", "apgd-ce", "apgd-t"] for m in by if m not in ("PGD-AT", "PGD-AT + C"))


# -- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """A study whose rows take seconds."""
    for name in ("shapes-tiny-at", "shapes-tiny-at-clustering"):
        monkeypatch.setitem(recipes.recipes(), name, zoo.recipe(name, change=TINY))
    monkeypatch.setitem(plan._studies()["shapes-boosting"], "attacks", ["pgd"])
    monkeypatch.setitem(plan._studies()["shapes-boosting"], "images", 24)
    return [row.name for row in studies.rows("shapes-boosting")]


def test_a_row_is_made_and_one_that_was_broken_off_goes_on(place, small, capsys, monkeypatch):
    run = partial(lrc, "study", small[1], "--work", place / "work", capsys=capsys, monkeypatch=monkeypatch)
    with monkeypatch.context() as patch:  # killed between training and measuring
        patch.setitem(tables.MEASURES, "boosting", refuse)
        with pytest.raises(AssertionError):
            studies.make(small[1], work=place / "work")
    assert studies.recorded("shapes-boosting") == {}
    monkeypatch.setattr(zoo, "fit", refuse)
    assert run() == (0, f"{small[1]}: recorded\n", "")
    first = studies.recorded("shapes-boosting")
    assert [*first] == [small[1]] and studies.left("shapes-boosting") == [s for s in small if s != small[1]]
    figures = first[small[1]]["figures"]
    assert figures["images"] == 24 and {"clean", "pgd", "worst_across", "superclass_attacked"} < set(figures)
    assert run()[0] == 0 and studies.recorded("shapes-boosting") == first  # made anew of what is kept
    row = studies.row(small[1])
    wanted = zoo.recipe(row.recipe, change=row.change)
    monkeypatch.setitem(recipes.recipes(), row.recipe, wanted | {"training": wanted["training"] | {"lr": 0.1}})
    status, out, err = run()
    assert status == 2 and out == "" and "was made by another recipe (training)" in err and err.count("\n") == 1


def test_the_list_says_what_is_left(capsys, monkeypatch):
    rows = studies.rows("shapes-boosting")
    record(rows[0], a=1.0)
    status, out, err = lrc("study", "shapes-boosting", "--list", capsys=capsys, monkeypatch=monkeypatch)
    assert (status, err) == (0, "")
    assert out.splitlines() == [rows[0].name, *(f"{row.name} (not recorded)" for row in rows[1:])]
    out = lrc("study", rows[0].name, rows[1].name, "--list", capsys=capsys, monkeypatch=monkeypatch)[1]
    assert out.splitlines() == [rows[0].name, f"{rows[1].name} (not recorded)"]


def test_an_unknown_study_is_one_line_and_status_2(capsys, monkeypatch):
    for more in ((), ("--list",)):
        status, out, err = lrc("study", "shapes-boosting", "boost", *more, capsys=capsys, monkeypatch=monkeypatch)
        assert status == 2 and out == "" and err.count("\n") == 1
        assert err.startswith("lrc: there is no study or row 'boost'; the studies are subpopulations, ")


class Pool:
    """Runs in this process what would be run in others."""

    started: list[int] = []

    def __init__(self, workers, context, initializer, initargs):
        self.started.append(workers)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *words):
        return SimpleNamespace(result=partial(function, *words))


@pytest.fixture
def made(monkeypatch):
    """Names of the rows that the command makes."""
    names: list[str] = []
    monkeypatch.setattr(Pool, "started", [])
    monkeypatch.setattr(command, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(studies, "make", lambda name, *, work: names.append(name))
    monkeypatch.setattr(zoo, "cores", lambda: 3)
    return names


@pytest.mark.parametrize(
    ("jobs", "device", "started"), [((), "cpu", [3]), (("--jobs", 2), "cpu", [2]), (("--jobs", 1), "cpu", []),
                                    ((), "cuda", []), (("--jobs", 9), "cuda", [3])]
)  # fmt: skip
def test_only_what_is_missing_is_made_each_row_once(made, capsys, monkeypatch, jobs, device, started):
    rows = studies.rows("shapes-boosting")
    record(rows[2], a=1.0)
    monkeypatch.setattr(command, "device", lambda: torch.device(device))
    words = ("study", "shapes-boosting", rows[0].name, "shapes-boosting", *jobs)
    assert lrc(*words, capsys=capsys, monkeypatch=monkeypatch)[::2] == (0, "")
    assert made == [rows[0].name, rows[1].name, rows[3].name] and Pool.started == started


def test_a_finished_study_is_left_alone_and_a_row_of_it_is_made_anew(made, capsys, monkeypatch):
    rows = studies.rows("shapes-boosting")
    for row in rows:
        record(row, a=1.0)
    status, out, _ = lrc("study", "shapes-boosting", capsys=capsys, monkeypatch=monkeypatch)
    assert (status, out) == (0, "all of it is recorded: name a single row to make it anew\n") and not made
    lrc("study", rows[1].name, capsys=capsys, monkeypatch=monkeypatch)
    assert made == [rows[1].name] and Pool.started == []


def test_a_process_that_is_killed_is_one_line_and_status_2(made, capsys, monkeypatch):
    def killed(*_, **__):
        raise command.BrokenProcessPool("terminated abruptly")

    monkeypatch.setattr(studies, "make", killed)
    status, _, err = lrc("study", "shapes-boosting", capsys=capsys, monkeypatch=monkeypatch)
    assert status == 2 and err == "lrc: a process was killed, for want of memory perhaps: the same command goes on\n"
