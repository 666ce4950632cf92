"""The frame: requirements agree, stored chapters are whole, and the tool that runs them tells success from failure."""

import doctest
import io
import re
import shutil
import tomllib
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import chapters
import nbformat
import numpy as np
import pages
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image

import lrc

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    k: v
    for k, v in PROJECT["optional-dependencies"].items()
    if k not in {"peers", "browser", "architectures", "cluster"}
}  # what commands install
# Names that differ there
CONDA = {"pytorch": "torch", "matplotlib-base": "matplotlib", "lightning": "lightning-fabric"}


def requirements(lines):
    return {(r := Requirement(line)).name: r.specifier for line in lines}


# Requirements and papers


def test_environment_yml_agrees_with_pyproject():
    *lines, tools = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = {CONDA.get(name, name): specifier for name, specifier in requirements(lines).items()}
    assert str(conda.pop("python")) == PROJECT["requires-python"]
    assert not conda.pop("pip")
    assert conda == requirements(PROJECT["dependencies"])
    assert tools == {"pip": [f"-e .[{','.join(EXTRAS)}]"]}


def test_constraints_lie_in_the_ranges_of_pyproject():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[\w.]+", line) for line in lines)  # no address, no local build
    pinned = {name.lower().replace("_", "-"): Version(v) for name, v in (line.split("==") for line in lines)}
    for name, specifier in requirements([*PROJECT["dependencies"], *chain(*EXTRAS.values())]).items():
        assert specifier.contains(pinned[name]), name


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert lrc.__version__ == PROJECT["version"] == citation["version"]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


# Chapters as they are stored


def test_stored_chapters_are_whole():
    assert chapters.check(ROOT / "book", chapters.toc_entries(ROOT / "_toc.yml")) == []


def test_every_claim_is_compared():
    """nbval passes over cells with these tags, the second in all profiles but one, so no claim may stand in one."""
    tags = {"nbval-ignore-output", "stored-profile"}
    for path in chapters.chapters(ROOT / "book"):
        ignored = [c for c in chapters.code(chapters.read(path)) if tags & {*c.metadata.get("tags", [])}]
        assert not [c.source for c in ignored if "claim(" in c.source], path.name


def test_most_cells_are_compared():
    cells = [c for path in chapters.chapters(ROOT / "book") for c in chapters.code(chapters.read(path))]
    assert sum("nbval-ignore-output" not in c.metadata.get("tags", []) for c in cells) >= 0.6 * len(cells)


def test_every_figure_has_a_caption_a_name_and_a_text_for_those_who_do_not_see_it():
    names = []
    for path in chapters.chapters(ROOT / "book"):
        for cell in chapters.code(chapters.read(path)):
            if "plt.show()" in cell.source:
                told = cell.metadata.get("mystnb", {})
                assert told.get("figure", {}).get("caption"), f"{path.name}: {cell.source[:80]}"
                assert len(told.get("image", {}).get("alt", "")) > 30, f"{path.name}: {cell.source[:80]}"
                names.append(told["figure"]["name"])
    assert names and len({*names}) == len(names)


def test_a_page_keeps_what_it_uses_only():
    head = '<title>T</title><script src="/fontawesome/6/js/all.min.js"></script><script src="/mathjax/x.js"></script>'
    table = '<table class="table"><tr><td>1</td></tr></table>'
    plain, formulas = (pages.cleaned(f"{head}<p{kind}>{table}") for kind in ("", ' class="math"'))
    assert "fontawesome" not in plain and "mathjax" not in plain and 'name="description"' in plain
    assert "mathjax" in formulas and formulas.count('<div class="scroll"') == 1


def test_scripts_wait_and_pictures_below_the_first_come_when_they_are_needed(tmp_path):
    (tmp_path / "_images").mkdir()
    for name in "ab":
        Image.new("RGB", (30, 20)).save(tmp_path / "_images" / f"{name}.png")
    scripts = '<script src="s/documentation_options.js"></script><script src="a.js?v=1"></script>'
    pictures = '<img alt="a" src="_images/a.png" /><p class="math"><img alt="b" src="_images/b.png" />'
    found = pages.sized(
        pages.cleaned(scripts + '<script defer="defer" src="mathjax/t.js"></script>' + pictures), tmp_path
    )
    assert '<script src="s/documentation_options.js">' in found and '<script defer src="a.js?v=1">' in found
    assert '<script async fetchpriority="low" src="mathjax/t.js">' in found
    assert '<img alt="a" src="_images/a.png" />' in found
    assert 'src="_images/b.png" width="30" height="20" loading="lazy"' in found


@pytest.mark.parametrize("name", [p.stem for p in sorted((ROOT / "book" / "reference").glob("*.md"))])
def test_the_example_of_a_page_of_the_reference_gives_what_it_says(name):
    page = ROOT / "book" / "reference" / f"{name}.md"
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=flags)
    assert tried and not failed


@pytest.mark.parametrize("address", ["", "https://github.com/someone/lrc"])
def test_one_address_gives_all_buttons_and_none_gives_none(address):
    given = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
    options = {"repository_url": address, "repository_branch": given["branch"]}
    app = SimpleNamespace(config=SimpleNamespace(html_theme_options=options))
    pages.ways_in(app, app.config)
    pages.addressed(app, "book/index", source := [(ROOT / "book" / "index.md").read_text()])
    assert ("launch_buttons" in options) == ("use_issues_button" in options) == bool(address)
    assert f"pip install -q git+{address or pages.ADDRESS}\n" in source[0]


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder in the hub's layout with a few images of noise as CIFAR-10 and CIFAR-100, and a cache of its own."""
    rng = np.random.default_rng(0)
    superclass = lrc.hierarchy.CIFAR100.levels[0].of
    for split, count in (("train", 1200), ("test", 200)):
        images = []
        for pixels in rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8):
            Image.fromarray(pixels).save(file := io.BytesIO(), "png")
            images.append({"bytes": file.getvalue(), "path": None})
        fine = [i % 100 for i in range(count)]
        tables = {
            "cifar10": {"label": [i % 10 for i in range(count)]},
            "cifar100": {"fine_label": fine, "coarse_label": [superclass[i] for i in fine]},
        }
        for name, labels in tables.items():
            (tmp_path / name).mkdir(exist_ok=True)
            pq.write_table(pa.table({"img": images} | labels), tmp_path / name / f"{split}-00000-of-00001.parquet")
    monkeypatch.setenv("LRC_DATA", str(tmp_path))
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))


def test_the_paper_profile_runs_every_chapter(cifar, monkeypatch):
    monkeypatch.setenv("LRC_LIMIT", "40")
    runs = chapters.execute_all(chapters.chapters(ROOT / "book"), profile="paper", jobs=2, threads=1)
    assert runs and {run.path.stem: run.problems for run in runs if run.problems} == {}
    assert {row[-1] for run in runs for row in run.claims} == {"not tested"}


# The tool


def chapter(folder, *sources, name="01_one", tags=()):
    cells = [new_markdown_cell("# One"), *(new_code_cell(s, metadata={"tags": [*tags]}) for s in sources)]
    nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


CLAIMS = "from lrc.experiments.claims import claim\nclaim('one | two', 1, at_least=0.5)"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A book of one chapter, executed and stored."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LRC_LIMIT", raising=False)
        run = chapters.execute(chapter(folder, "print(1)", CLAIMS), profile="cifar", threads=1)
    chapters.publish([run], folder, "cifar")
    return folder


@pytest.fixture
def book(stored, tmp_path):
    """A copy of it, to spoil."""
    return shutil.copytree(stored, tmp_path / "book")


def test_stored_twice_is_stored_once(book, monkeypatch):
    monkeypatch.delenv("LRC_LIMIT", raising=False)
    before = {path.name: path.read_bytes() for path in book.iterdir()}
    chapters.publish([chapters.execute(book / "01_one.ipynb", profile="cifar", threads=1)], book, "cifar")
    assert {path.name: path.read_bytes() for path in book.iterdir()} == before
    assert chapters.check(book, {"01_one"}) == []
    assert f"## {next(iter(chapters.CLAIMS))}\n\n| chapter |" in before["scorecard.md"].decode()
    assert "| [](./01_one.ipynb) | one \\| two | 1 | at least 0.5 | yes |" in before["scorecard.md"].decode()


def never_executed(notebook):
    notebook.cells[1].execution_count = None


def other_profile(notebook):
    notebook.metadata.lrc.profile = "quick"


def no_stamp(notebook):
    del notebook.metadata["lrc"]


def other_code(notebook):
    notebook.cells[1].source = "print(2)"


def error(notebook):
    notebook.cells[1].outputs = [new_output("error", ename="KeyError", evalue="", traceback=[])]


def warning(notebook):
    notebook.cells[1].outputs = [new_output("stream", name="stderr", text="careful")]


def address(notebook):
    notebook.cells[1].outputs[0].text = "<f at 0x7f0011223344>"


def home_in(kind, value="'/home/me/x'"):
    def spoil(notebook):
        notebook.cells[1].outputs = [new_output("display_data", {kind: value})]

    return spoil


def broken_claim(notebook):
    notebook.metadata.lrc.claims[0][-1] = "NO"


def no_claim(notebook):
    notebook.metadata.lrc.claims = []


def widget_state(notebook):
    notebook.metadata["widgets"] = {}


def timing(notebook):
    notebook.cells[1].metadata["execution"] = {"iopub.status.busy": "2026-01-01"}


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (never_executed, "never executed"),
        (other_profile, "profile quick"),
        (no_stamp, "profile None"),
        (other_code, "code changed"),
        (error, "stored error, KeyError"),
        (warning, "stored warning"),
        (address, "at 0x7f0011223344"),
        *((home_in(f"text/{kind}"), "'/home/'") for kind in ("plain", "html", "markdown", "latex")),
        (home_in("image/svg+xml", "<svg><image href='/home/me/x'/></svg>"), "'/home/'"),
        (home_in("application/json", {"files": [{"/home/me/x": 1}]}), "'/home/'"),
        (home_in("application/vnd.plotly.v1+json", {"at": ["<f at 0x7f0011223344>"]}), "at 0x7f0011223344"),
        (broken_claim, "did not hold"),
        (no_claim, "makes no claim"),
        (widget_state, "not in the form"),
        (timing, "not in the form"),
    ],
)
def test_check_finds(book, spoil, complaint):
    path = book / "01_one.ipynb"
    spoil(notebook := chapters.read(path))
    path.write_text(chapters.text(notebook))
    assert any(complaint in line and line.startswith("01_one.ipynb: ") for line in chapters.check(book, {"01_one"}))


def test_pixels_are_no_path(book):
    path = book / "01_one.ipynb"
    home_in("image/png", "iVBORw0KGgo+/home/AAAA")(notebook := chapters.read(path))
    path.write_text(chapters.text(notebook))
    assert chapters.check(book, {"01_one"}) == []


def test_check_finds_a_page_outside_the_contents_and_an_old_scorecard(book):
    (book / "scorecard.md").write_text("old")
    assert len(chapters.check(book, set())) == 2


def test_an_announced_error_is_none(tmp_path):
    path = chapter(tmp_path, "1 / 0", tags=["raises-exception"])
    assert chapters.execute(path, profile="cifar", threads=1).problems == []


def test_a_failed_claim_or_cell_fails_the_run_and_every_claim_is_heard(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("LRC_LIMIT", raising=False)
    good = chapter(tmp_path, CLAIMS)
    bad = chapter(tmp_path, "import lrc", "lrc.claim('too much', 2, at_most=1)", CLAIMS, name="02_two")
    worse = chapter(tmp_path, CLAIMS, "{}['key']", name="03_three")
    runs = chapters.execute_all([good, bad, worse], profile="quick", jobs=2, threads=1)
    assert chapters.report(runs[:1]) == 0
    assert chapters.report(runs[1:2]) == 1
    assert chapters.report(runs[2:]) == 1
    assert [[row[-1] for row in run.claims] for run in runs] == [["yes"], ["NO", "yes"], ["yes"]]
    assert [len(run.problems) for run in runs] == [0, 1, 1]
    printed = capsys.readouterr().out
    assert "ClaimError: does not hold: too much: 2 where at most 1" in printed
    assert re.search(r"02_two +too much +2 +at most 1 +NO", printed)


def test_only_the_chapters_asked_for(tmp_path):
    paths = [chapter(tmp_path, "1", name=name) for name in ("02_b", "01_a", "03_c")]
    assert chapters.chapters(tmp_path) == sorted(paths)
    assert chapters.chapters(tmp_path, ["03", "01"]) == [paths[1], paths[2]]
    with pytest.raises(chapters.UsageError, match="no chapter"):
        chapters.chapters(tmp_path, ["04"])


@pytest.mark.parametrize("arguments", [["execute", "--profile", "papr"], ["execute", "99"], ["store", "99"], ["sell"]])
def test_what_cannot_be_done_is_told_from_what_failed(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    (tmp_path / "book").mkdir()
    with pytest.raises(SystemExit) as caught:
        chapters.command(arguments)
    assert caught.value.code == 2
    assert arguments[-1] in capsys.readouterr().err
