"""Figures of a report against counting by hand, its intervals and tests against their definitions."""

import io
import json
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
from rich.console import Console
from torch import Generator

from lrc import plots
from lrc.evaluation import Confusion, Cost, Flag, Rate, Report, Result, wilson
from lrc.evaluation.report import sign_test
from lrc.utils.errors import InputError

CLASSES = ("cat", "dog", "car", "ship", "van")
KINDS, OF = ("animals", "vehicles"), (0, 0, 1, 1, 1)
FLAG = Flag("zero gradients", True, {"images": 3, "gradient zero": 0.25}, "It stands still.")


def drawn(seed, n=60):
    """A report with random verdicts: labels, what is said as it is, and what two attacks make of the right ones."""
    g = Generator().manual_seed(seed)
    y = torch.randint(5, (n,), generator=g)
    clean = torch.where(torch.rand(n, generator=g) < 0.7, y, torch.randint(5, (n,), generator=g))
    results = {"clean": Result("_as_it_is", tuple(clean.tolist()), Cost(0.5, n, 1, 0))}
    for name in ("pgd", "square"):
        to = torch.randint(-1, 5, (n,), generator=g)
        said = torch.where((clean == y) & (torch.rand(n, generator=g) < 0.6), to, clean)
        results[name] = Result(f"{name}(steps=3)", tuple(said.tolist()), Cost(1.5, 4 * n, 4, 3))
    return Report(
        CLASSES, tuple(y.tolist()), results, 8 / 255, "linf", 7, images="abc", superclasses=KINDS, superclass_of=OF,
        flags=(FLAG,), versions={"torch": "2"},
    )  # fmt: skip


@pytest.fixture(params=range(3))
def report(request):
    return drawn(request.param)


def said(report, name):
    """By hand; in the worst case, of the first that is wrong."""
    if name != "worst case":
        return list(report.results[name].predictions)
    every = [o.predictions for o in report.results.values()]
    wrong = [[o[i] for o in every if o[i] != y] for i, y in enumerate(report.labels)]
    return [w[0] if w else y for w, y in zip(wrong, report.labels, strict=True)]


@pytest.mark.parametrize("count", [1, 7, 100, 1000])
def test_intervals_hold_the_shares_that_the_score_test_accepts(count):
    """By definition: at each end the share lies 1.96 standard errors, those of the end, away; but for 0 and 1."""
    for right in {0, 1, count // 3, count - 1, count}:
        low, high = wilson(right, count)
        for end in {low, high} - {0.0, 1.0}:
            error = math.sqrt(end * (1 - end) / count)
            assert abs(right / count - end) == pytest.approx(1.959963984540054 * error, rel=1e-9)
        assert low <= right / count <= high  # to the last bit: bars are drawn so
        assert (low == 0) == (right == 0) and (high == 1) == (right == count)
        assert Rate(right, count).interval == (low, high) and Rate(right, count).value == right / count


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (3, 3), (2, 9), (9, 2), (40, 17)])
def test_the_sign_test_counts_the_tosses_that_are_as_uneven(first, second):
    n, uneven = first + second, abs(first - second)
    expected = sum(math.comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= uneven) / 2**n
    assert sign_test(first, second) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["clean", "pgd", "square", "worst case"])
def test_accuracies_are_counted_by_hand(report, name):
    right = [s == y for s, y in zip(said(report, name), report.labels, strict=True)]
    assert report.predictions(name).tolist() == said(report, name) and report.right(name).tolist() == right
    assert report.accuracy(name) == Rate(sum(right), 60)
    for k, rate in zip(range(5), report.by_class(name), strict=True):
        mine = [r for r, y in zip(right, report.labels, strict=True) if y == k]
        assert rate == Rate(sum(mine), len(mine))
    for g, rate in zip(range(2), report.by_superclass(name), strict=True):
        mine = [r for r, y in zip(right, report.labels, strict=True) if OF[y] == g]
        assert rate == Rate(sum(mine), len(mine))
    assert report.nonfinite(name) == said(report, name).count(-1)


@pytest.mark.parametrize("name", ["clean", "pgd", "square", "worst case"])
def test_confusion_is_counted_by_hand(report, name):
    clean = said(report, "clean")
    triples = zip(report.labels, clean, said(report, name), strict=True)
    moved = [(y, s) for y, c, s in triples if s != y and s >= 0 and (c == y or name == "clean")]
    within = sum(OF[y] == OF[s] for y, s in moved)
    chance = sum((OF.count(OF[y]) - 1) / 4 for y, _ in moved) / len(moved)
    found = report.confusion(name)
    assert (found.within, found.across) == (within, len(moved) - within) and found.rate == Rate(within, len(moved))
    assert found.chance == pytest.approx(chance)
    matrix = torch.zeros(5, 5, dtype=torch.long)
    for y, s in zip(report.labels, said(report, name), strict=True):
        matrix[y, s] += s >= 0
    assert torch.equal(report.matrix(name), matrix)


def test_the_worst_case_is_no_better_than_any(report):
    worst = report.right("worst case")
    assert all((worst <= report.right(name)).all() for name in report.results)
    assert report.names == ("clean", "pgd", "square", "worst case") and report.attacks == ("pgd", "square")
    assert report.raised == ("zero gradients",)


def test_where_nothing_was_fooled_there_is_no_rate():
    y = (0, 1, 2)
    report = Report(CLASSES, y, {"clean": Result("", y, Cost())}, 0.1, "linf", 0, superclasses=KINDS, superclass_of=OF)
    found = report.confusion()
    assert isinstance(found, Confusion) and found.rate == Rate(0, 0) and found.chance != found.chance
    assert Report.from_json(report.to_json()) == report
    assert report.by_class()[4].value != report.by_class()[4].value and str(Rate(0, 0)) == "-"


def test_without_superclasses_only_they_are_missing(report):
    bare = replace(report, superclasses=(), superclass_of=())
    assert bare.by_superclass() == () and bare.by_class() == report.by_class()
    with pytest.raises(InputError, match="no superclasses"):
        bare.confusion("pgd")
    assert Report.from_json(bare.to_json()) == bare and "confusion" not in bare.to_json()
    assert "cat" in text(bare) and plots.report(bare).get_legend() is None
    plt.close("all")


def test_json_brings_back_the_same_report(report):
    assert Report.from_json(report.to_json()) == report
    assert Report.from_json(replace(report, flags=None).to_json()).flags is None


def test_a_damaged_report_is_refused_in_one_line(report):
    """A byte changed anywhere: refused, or the same report, where the byte means nothing."""
    text, g = report.to_json().encode(), Generator().manual_seed(0)
    for place in torch.randint(len(text), (60,), generator=g).tolist():
        changed = bytearray(text)
        changed[place] ^= 1 << int(torch.randint(7, (), generator=g))
        try:
            assert Report.from_json(changed.decode()) == report
        except InputError as error:
            assert "\n" not in str(error)


def test_two_classes_of_one_name_keep_a_figure_each(report):
    twice = replace(report, classes=("crane", "dog", "crane", "ship", "van"), superclasses=("a", "a"))
    assert twice.by_class("pgd") == report.by_class("pgd") and twice.by_superclass() == report.by_superclass()
    figures = [json.loads(r.to_json())["figures"]["pgd"] for r in (twice, report)]
    assert figures[0] == figures[1] and text(twice).count("crane") == 2
    assert len([t for t in plots.report(twice).lines if t.get_marker() == "o"]) == 2 * len(report.names)
    plt.close("all")


def test_json_holds_the_figures_for_other_readers(report):
    found = json.loads(report.to_json())["figures"]
    for name in report.names:
        low, high = report.accuracy(name).interval
        assert found[name]["accuracy"] == report.accuracy(name).value and found[name]["interval"] == [low, high]
        assert found[name]["confusion"]["within"] == report.confusion(name).within
        assert found[name]["by_class"][1] == report.by_class(name)[1].value


def test_json_is_compact():
    assert len(drawn(0, n=1000).to_json()) < 3 * 1000 * 4 + 10_000  # three verdicts and a label of two letters


@pytest.mark.parametrize("bad", ["", "[]", "{}", '{"format": 0}', '{"format": 1, "figures": {}}', "1"])
def test_what_is_no_report_is_named(bad):
    with pytest.raises(InputError, match="no report of lrc.evaluate") as error:
        Report.from_json(bad)
    assert "\n" not in str(error.value)


def test_two_reports_are_compared_image_by_image():
    one, two = drawn(0), drawn(0)
    other = list(two.results["pgd"].predictions)
    right = [i for i, y in enumerate(one.labels) if other[i] == y]
    for i in right[:5]:
        other[i] = (one.labels[i] + 1) % 5
    two = replace(two, results=two.results | {"pgd": replace(two.results["pgd"], predictions=tuple(other))})
    found = one.compare(two, "pgd")
    assert (found.only_first, found.only_second) == (5, 0) and found.p_value == pytest.approx(2 / 2**5)
    with pytest.raises(InputError, match="other images"):
        one.compare(replace(two, images="else"))


def test_an_unknown_outcome_is_named(report):
    with pytest.raises(InputError, match="the report has no 'cw'; there are clean, pgd, square, worst case"):
        report.accuracy("cw")


def text(report):
    file = io.StringIO()
    Console(width=140, file=file).print(report)
    return file.getvalue()


def test_tables_show_the_figures(report):
    shown = text(report)
    for name in report.names:
        assert f"{100 * report.accuracy(name).value:.1f}" in shown
    assert f"{100 * report.confusion('pgd').rate.value:.1f}" in shown
    for word in ("vehicles", "ship", "240", "! zero gradients", "gradient zero 0.25", "It stands still.", "worst case"):
        assert word in shown
    many = replace(report, classes=tuple(f"class{i}" for i in range(100)), superclasses=(), superclass_of=())
    assert "and 80 more" in text(many)


def test_it_prints_as_one_line(report):
    shown = repr(report)
    assert "\n" not in shown and f"pgd {report.accuracy('pgd').value:.1%}" in shown and "flags: zero gradients" in shown
    assert "not looked for" in repr(replace(report, flags=None))


def test_the_plot_shows_accuracies_and_superclasses(report):
    ax = plots.report(report, title="T")
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == pytest.approx([100 * report.accuracy(name).value for name in report.names])
    dots = {line.get_label(): line for line in ax.lines if line.get_label() in KINDS}
    assert dots["vehicles"].get_xdata()[0] == pytest.approx(100 * report.by_superclass("clean")[1].value)
    assert [t.get_text() for t in ax.get_yticklabels()] == list(report.names) and ax.get_title() == "T"
    plt.close("all")
