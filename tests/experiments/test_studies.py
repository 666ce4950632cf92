"""Studies: rows by their recipes, pairs against scipy's t test, and records that outlive kills and races."""

import json
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from drawing import HELD, TINY, few
from scipy import stats
from torch import Generator, nn

from lrc import cli, studies, zoo
from lrc.cli import studies as command
from lrc.data import shapes
from lrc.data.parts import OFFICIAL
from lrc.data.sources import SOURCES
from lrc.experiments import fitting
from lrc.experiments import recipe as recipes
from lrc.experiments.studies import measures, plan, records, tables
from lrc.hierarchy import CIFAR10, CIFAR100, Hierarchy
from lrc.models import resnet8
from lrc.utils.errors import InputError

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


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """No record of the package is read or written, and few drawings are made."""
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LRC_DEVICE", "cpu")
    monkeypatch.setattr(records, "RECORDS", tmp_path / "records")
    monkeypatch.setitem(SOURCES, "shapes", few)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse(*_, **__):
    raise AssertionError("asked again")


def lrc(*words, capsys, monkeypatch):
    """Exit status, standard output and standard error of the command."""
    monkeypatch.setattr(sys, "argv", ["lrc", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0, *capsys.readouterr()


# -- what is in the studies ---------------------------------------------------------------------------------------


def test_rows_have_names_of_their_own_by_which_they_are_found():
    every = [row for study in STUDIES for row in studies.rows(study)]
    assert len({(row.study, row.name) for row in every}) == len(every)
    assert all(studies.row(f"{row.study}/{row.name}") == row for row in every)
    named = Counter(row.name for row in every)
    assert all(studies.row(row.name) == row for row in every if named[row.name] == 1)
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
    assert drawn.data.options["choice"] == 2 and drawn.training.seed == 1
    official = changed["cifar20-small-at.choice-official.seed-1"]
    assert official == replace(drawn, data=replace(drawn.data, options={}))


@pytest.mark.parametrize("study", PLAIN)  # others compare data, or networks as they are
def test_all_that_is_compared_differs_in_the_objective_alone(study):
    """In labels too, where superclasses are trained on directly."""
    made = {row.model: zoo.recipe(row.recipe) for row in studies.rows(study)}

    def rest(wanted):
        network = wanted.network
        if wanted.data.labels != "classes":
            classes = {"classes": first.network.options["classes"]}
            network = replace(network, options=wanted.network.options | classes)
        data = replace(wanted.data, labels="classes")
        return replace(wanted, about="", shipped=False, objective=first.objective, data=data, network=network)

    first = next(iter(made.values()))
    assert all(rest(wanted) == rest(first) for wanted in made.values())
    assert [model for model in made if made[model].data.labels != "classes"] in ([], ["R, superclass labels"])
    for model, plain in PLAIN[study].items():
        assert recipes.without_groups(made[model]).objective == made[plain].objective != made[model].objective


def hierarchy_of(wanted):
    """That of the recipe's data, without the data."""
    if wanted.data.labels == "superclasses":
        return None
    if wanted.data.name == "cifar10":
        return CIFAR10
    if wanted.data.name == "shapes":
        classes = shapes("test", n=16).hierarchy
        parted = "part" in wanted.data.options
        return classes.select([k for k in range(16) if not parted or classes.classes[k] not in HELD])
    kept = [k for group in CIFAR100.groups() for k in sorted(group)[:-1]]
    some = CIFAR100.select(kept)
    official = [k for k, g in enumerate(some.levels[0].of) if some.levels[0].names[g] in OFFICIAL]
    return Hierarchy(some.select(official).classes, some.select(official).levels[:1], "")


@pytest.mark.parametrize("study", STUDIES)
def test_every_network_and_objective_can_be_built(study, monkeypatch):
    for model, wanted in {row.model: zoo.recipe(row.recipe) for row in studies.rows(study)}.items():
        of = hierarchy_of(wanted)
        classes, given = wanted.network.options.get("classes", 10), wanted.objective.options
        scout = resnet8(classes, width=4, generator=Generator().manual_seed(0))
        monkeypatch.setattr(fitting, "_scout", lambda _, scout=scout: scout)
        monkeypatch.setattr(fitting, "obtain", lambda *_, scout=scout, **__: scout)  # a teacher
        made = str(zoo.objective(wanted, of))
        assert ("clustering" in made) == ("clustering" in given), model
        assert ("smoothing" in made) == ("smoothing" in given or wanted.objective.name == "label_smoothing"), model
        assert len(of.classes if of else range(4)) == classes
        assert fitting.untrained(wanted) is not None
        trained_at = recipes.number(given.get("eps", wanted.eps or "8/255"))
        assert wanted.radius == (4 / 255 if study == "doses" else trained_at)  # doses: other radii, one test


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


def test_over_choices_the_mean_of_each_is_one_value():
    """Brute force; differences that depend on the choice alone, and its interval from three values, not nine."""
    of = {None: 0.01, 1: 0.05, 2: 0.03}
    other = {cell: value - of[cell[0]] for cell, value in FULL.items()}
    found = studies.paired(cells(A=FULL, B=other), "A", "B", "f", over="choices")
    expected = stats.ttest_1samp([*of.values()], 0).confidence_interval(0.95)
    assert (found.low, found.high, found.n) == (pytest.approx(expected.low), pytest.approx(expected.high), 3)
    assert found.high - found.low > 2 * (lambda d: d.high - d.low)(
        studies.paired(cells(A=FULL, B=other), "A", "B", "f")
    )
    uneven = {cell: other[cell] for cell in [(None, 0), (1, 0), (1, 1)]}
    assert studies.paired(cells(A=FULL, B=uneven), "A", "B", "f", over="choices").value == pytest.approx(0.03)


@pytest.mark.parametrize(("over", "says"), [("choices", "have one choice in common"), ("seeds", "choices or images")])
def test_intervals_over_what_there_is_not_are_refused(over, says):
    with pytest.raises(InputError, match=says):
        studies.paired(cells(A=FULL, B={(1, 0): 0.1, (1, 1): 0.2}), "A", "B", "f", over=over)


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


def test_verdicts_are_paired_image_by_image():
    """By hand: two seeds, nine images; the mean of the seeds' differences is the value of an image."""
    right = {("A", 0): [1, 1, 0, 0, 1, 0, 1, 1, 1], ("A", 1): [1] * 9}
    right |= {("B", 0): [0, 1, 1, 0, 1, 0, 0, 0, 1], ("B", 1): [1] * 8 + [0]}
    found = [
        {"model": model, "choice": None, "seed": seed, "images": 9, "right": measures.packed(torch.tensor(bits) > 0)}
        for (model, seed), bits in right.items()
    ]
    values = torch.tensor([0.5, 0, -0.5, 0, 0, 0, 0.5, 0.5, 0.5], dtype=torch.float64)
    mean, half = values.mean().item(), 2.306004 * values.std().item() / 3  # t of 8 degrees of freedom
    interval = studies.paired(found, "A", "B", "right", over="images")
    assert (interval.value, interval.low, interval.high) == pytest.approx((mean, mean - half, mean + half), abs=1e-6)
    assert interval.n == 9
    with pytest.raises(InputError, match="no verdicts 'seed'"):
        studies.paired(found, "A", "B", "seed", over="images")


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
    monkeypatch.setitem(recipes.recipes(), row.recipe, replace(wanted, about="in other words"))
    assert set(studies.recorded("shapes-boosting")) == {row.name, other.name}
    monkeypatch.setitem(recipes.recipes(), row.recipe, replace(wanted, training=replace(wanted.training, lr=0.123)))
    assert set(studies.recorded("shapes-boosting")) == {other.name} and row.name in studies.left("shapes-boosting")
    record(row, a=2.0)
    assert studies.recorded("shapes-boosting")[row.name]["made_by"]["recipe"]["training"]["lr"] == 0.123


def test_rows_measured_otherwise_are_not_there(monkeypatch):
    rows = studies.rows("shapes-boosting")
    record(rows[0], a=1.0)
    assert studies.recorded("shapes-boosting")
    monkeypatch.setitem(plan._studies()["shapes-boosting"], "images", 201)
    assert not studies.recorded("shapes-boosting")


def test_what_is_no_number_is_recorded_as_nothing(place):
    row = studies.rows("shapes-boosting")[0]
    record(row, a=float("nan"), b=[0.123456, float("inf")])
    figures = studies.recorded("shapes-boosting")[row.name]["figures"]
    assert figures == {"a": None, "b": [0.1235, None]}
    assert "NaN" not in (place / "records" / "shapes-boosting.jsonl").read_text()


def test_a_row_measured_otherwise_leaves_the_records_of_the_others(monkeypatch):
    rows = studies.rows("shapes-boosting")
    for i, row in enumerate(rows):
        record(row, a=float(i))
    with monkeypatch.context() as other:
        other.setitem(plan._studies()["shapes-boosting"], "images", 201)
        record(rows[1], a=9.0)
        assert [*studies.recorded("shapes-boosting")] == [rows[1].name]
    assert [*studies.recorded("shapes-boosting")] == [row.name for row in (rows[0], *rows[2:])]


@pytest.mark.parametrize("line", ['{"row": "x', "[]", '{"row": "x"}', "3"])
def test_a_damaged_record_is_named_before_anything_is_trained(place, monkeypatch, line):
    row = studies.rows("shapes-boosting")[0]
    record(row, a=1.0)
    with (place / "records" / "shapes-boosting.jsonl").open("a") as file:
        file.write(line.replace('"x"', json.dumps(row.name)) + "\n")
    monkeypatch.setattr(fitting, "trained", refuse)
    for ask in (partial(studies.recorded, "shapes-boosting"), partial(studies.make, row.name, work=place)):
        with pytest.raises(InputError, match=r"shapes-boosting.jsonl is damaged"):
            ask()


def test_records_that_cannot_be_written_are_named_before_anything_is_trained(place, monkeypatch):
    monkeypatch.setattr(records, "RECORDS", place / "nowhere" / "records")
    monkeypatch.setattr(fitting, "trained", refuse)
    with pytest.raises(InputError, match="records cannot be written"):
        studies.make(studies.rows("shapes-boosting")[0].name, work=place)


BOTH = """
import sys, time
from pathlib import Path
from lrc import studies
from lrc.experiments.studies import records
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
        with pytest.raises(InputError, match="^there is no study or row 'x'; the studies are .*--list"):
            ask("x")
        with pytest.raises(InputError, match="^no study is called 'x'; there are "):
            ask("x/y")


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
        return {"attacks": attacks, "seed of": recipe.training.seed, "trial": recipe.trial}

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


def test_a_row_of_two_studies_is_made_for_the_one_that_is_named(place, small, capsys, monkeypatch):
    """One that a study has in common with another was measured as the other's, and called recorded."""
    other = plan._studies()["shapes-boosting"] | {"images": 16, "main": {"R": "shapes-tiny-at"}}
    monkeypatch.setitem(plan._studies(), "shapes-other", other)
    common = [row.name for row in studies.rows("shapes-other")]
    assert set(common) < set(small)
    with pytest.raises(InputError, match=f"2 studies have a row '{common[0]}': say shapes-boosting/{common[0]} or "):
        studies.make(common[0], work=place / "work")
    status, _, err = lrc("study", common[0], "--work", place / "work", capsys=capsys, monkeypatch=monkeypatch)
    assert status == 2 and f"shapes-other/{common[0]}" in err and err.count("\n") == 1
    words = ("study", f"shapes-other/{common[0]}", "--work", place / "work")
    assert lrc(*words, capsys=capsys, monkeypatch=monkeypatch) == (0, f"{common[0]}: recorded\n", "")
    found = studies.recorded("shapes-other")
    assert [*found] == common[:1] and found[common[0]]["figures"]["images"] == 16
    assert studies.recorded("shapes-boosting") == {}
    status, out, _ = lrc("study", "shapes-other", "--list", capsys=capsys, monkeypatch=monkeypatch)
    assert out == f"{common[0]}\n{common[1]} (not recorded)\n"


@pytest.fixture
def small(monkeypatch):
    """A study whose rows take seconds."""
    shrink(monkeypatch)
    return [row.name for row in studies.rows("shapes-boosting")]


def shrink(patch):
    for name in ("shapes-tiny-at", "shapes-tiny-at-clustering"):
        patch.setitem(recipes.recipes(), name, zoo.recipe(name, change=TINY))
    patch.setitem(plan._studies()["shapes-boosting"], "attacks", ["pgd"])
    patch.setitem(plan._studies()["shapes-boosting"], "images", 24)


def test_a_row_is_made_and_one_that_was_broken_off_goes_on(place, small, capsys, monkeypatch):
    run = partial(lrc, "study", small[1], "--work", place / "work", capsys=capsys, monkeypatch=monkeypatch)
    with monkeypatch.context() as patch:  # killed between training and measuring
        patch.setitem(tables.MEASURES, "boosting", refuse)
        with pytest.raises(AssertionError):
            studies.make(small[1], work=place / "work")
    assert studies.recorded("shapes-boosting") == {}
    monkeypatch.setattr(fitting, "fit", refuse)
    assert run() == (0, f"{small[1]}: recorded\n", "")
    first = studies.recorded("shapes-boosting")
    assert [*first] == [small[1]] and studies.left("shapes-boosting") == [s for s in small if s != small[1]]
    figures = first[small[1]]["figures"]
    assert figures["images"] == 24 and {"clean", "pgd", "worst_across", "superclass_attacked"} < set(figures)
    assert run()[0] == 0 and studies.recorded("shapes-boosting") == first  # made anew of what is kept
    row = studies.row(small[1])
    wanted = zoo.recipe(row.recipe, change=row.change)
    monkeypatch.setitem(recipes.recipes(), row.recipe, replace(wanted, training=replace(wanted.training, lr=0.1)))
    status, out, err = run()
    assert (
        status == 2 and out == "" and "holds another run, which differs in training.lr" in err and err.count("\n") == 1
    )


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


@pytest.fixture
def made(monkeypatch):
    """Names of the rows that the command makes, and how: in place of the workers, this process makes them."""
    names: list[str] = []
    asked: list[tuple[int, str | None]] = []

    @contextmanager
    def here(function, orders, *, jobs, scheduler):
        asked.append((jobs, scheduler))
        yield ((order, partial(function, order)) for order in orders)

    def make(order, *, work):
        names.append(order[0].name)
        return {"figures": {"a": 0.5}, "seconds": 3.0, "versions": {"device": "of the worker"}}

    monkeypatch.setattr(tables, "side_by_side", here)
    monkeypatch.setattr(tables, "_made", make)
    return names, asked


@pytest.mark.parametrize(
    ("more", "asked"), [((), (0, None)), (("--jobs", 2), (2, None)), (("--scheduler", "tcp://h:1"), (0, "tcp://h:1"))]
)
def test_only_what_is_missing_is_made_each_row_once(made, capsys, monkeypatch, more, asked):
    rows = studies.rows("shapes-boosting")
    record(rows[2], a=1.0)
    words = ("study", "shapes-boosting", rows[0].name, "shapes-boosting", *more)
    status, out, err = lrc(*words, capsys=capsys, monkeypatch=monkeypatch)
    names = [rows[0].name, rows[1].name, rows[3].name]
    assert (status, out, err) == (0, "".join(f"{name}: recorded\n" for name in names), "")
    assert made == (names, [asked])
    line = studies.recorded("shapes-boosting")[names[0]]
    assert (line["figures"], line["seconds"], line["versions"]) == ({"a": 0.5}, 3, {"device": "of the worker"})


def test_a_finished_study_is_left_alone_and_a_row_of_it_is_made_anew(made, capsys, monkeypatch):
    rows = studies.rows("shapes-boosting")
    for row in rows:
        record(row, a=1.0)
    status, out, _ = lrc("study", "shapes-boosting", capsys=capsys, monkeypatch=monkeypatch)
    assert (status, out) == (0, "all of it is recorded: name a single row to measure it anew\n") and not made[0]
    lrc("study", rows[1].name, capsys=capsys, monkeypatch=monkeypatch)
    assert made[0] == [rows[1].name]


def test_rows_that_fail_are_named_and_the_others_are_made(made, capsys, monkeypatch):
    rows = studies.rows("shapes-boosting")
    errors = {rows[0].name: InputError("no images"), rows[2].name: ZeroDivisionError("by\nzero")}
    right = tables._made

    def make(order, *, work):
        if order[0].name in errors:
            raise errors[order[0].name]
        return right(order, work=work)

    monkeypatch.setattr(tables, "_made", make)
    status, out, err = lrc("study", "shapes-boosting", capsys=capsys, monkeypatch=monkeypatch)
    assert status == 2 and out == f"{rows[1].name}: recorded\n{rows[3].name}: recorded\n"
    assert err.splitlines() == [
        f"lrc: {rows[0].name}: no images",
        f"lrc: {rows[2].name}: ZeroDivisionError: by",
        "lrc: 2 of 4 rows could not be made: the same command goes on with them",
    ]
    assert studies.left("shapes-boosting") == [*errors]


def test_an_interrupt_leaves_what_was_recorded(made, monkeypatch):
    rows, right = studies.rows("shapes-boosting"), tables._made

    def make(order, *, work):
        if order[0] == rows[1]:
            raise KeyboardInterrupt
        return right(order, work=work)

    monkeypatch.setattr(tables, "_made", make)
    with pytest.raises(KeyboardInterrupt):
        command.study(["shapes-boosting"])
    assert [*studies.recorded("shapes-boosting")] == [rows[0].name]


def test_records_that_cannot_be_written_are_named_before_any_row_is_made(made, place, monkeypatch):
    monkeypatch.setattr(records, "RECORDS", place / "nowhere" / "records")
    with pytest.raises(InputError, match="records cannot be written"):
        command.study(["shapes-boosting"])
    assert made == ([], [])


def make_small(order, *, work):
    """What a worker runs in the test below: rows that take seconds, and records that it must not touch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "shapes", few)
        shrink(patch)
        patch.setattr(records, "record", refuse)
        return MADE(order, work=work)


MADE = tables._made


def test_workers_make_rows_and_this_process_records_them(place, small, capsys, monkeypatch):
    monkeypatch.setattr(tables, "_made", make_small)
    words = ("study", *small[:2], "--work", place / "work", "--jobs", 2)
    status, out, err = lrc(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert (status, err) == (0, "") and sorted(out.splitlines()) == sorted(f"{name}: recorded" for name in small[:2])
    found = studies.recorded("shapes-boosting")
    capsys.readouterr()
    for name in small[:2]:  # again here, of the weights that the worker left
        figures = MADE((studies.row(name), None), work=place / "work")["figures"]
        assert found[name]["figures"]["clean"] == round(figures["clean"], 4)


def test_a_machine_that_would_make_another_row_says_in_what(place, small, monkeypatch):
    row = studies.row(small[0])
    (expected,) = records.asked([row])
    assert records.asked([row, row]) == [expected, expected]
    monkeypatch.setattr(fitting, "fit", refuse)
    make = partial(tables._made, (row, expected), work=place / "work")
    wanted = zoo.recipe(row.recipe)
    with monkeypatch.context() as patch:
        patch.setitem(recipes.recipes(), row.recipe, replace(wanted, training=replace(wanted.training, lr=0.123)))
        with pytest.raises(
            InputError, match=r"^this machine would make another row, which differs in recipe.training.lr: "
        ):
            make()
    with monkeypatch.context() as patch:
        patch.setitem(SOURCES, "shapes", lambda split, **options: shapes(split, n=330))
        with pytest.raises(
            InputError, match="which differs in data: give it the same release of lrc, and the same fil"
        ):
            make()
    with pytest.raises(AssertionError, match="asked again"):
        make()
