"""Executes, stores and checks the chapters of the book: notebooks in `book/`.

    python tools/chapters.py execute --profile quick      into _build/quick, sources untouched
    python tools/chapters.py store [chapter ...]          in place, in the profile whose outputs the book keeps
    python tools/chapters.py stage _build/stored          copies the book as it is stored
    python tools/chapters.py check                        are the stored outputs whole, and those of this code?

`execute` and `store` print the scorecard of claims; a failed claim or cell makes them exit with status 1.
"""

import argparse
import asyncio
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
STORED = "cifar"  # the profile whose outputs are stored in the repository
SCORECARD = "scorecard.md"
CELL_TIMEOUT = 1800  # seconds; the paper profile has none
UNSTABLE = re.compile(r" at 0x[0-9a-f]{6,}|(?<!\w)/(?:home|root|Users|tmp)/")  # addresses, paths of one machine
BASE64 = ("image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf")  # outputs that are no text

Row = list[str]  # of the scorecard, without the chapter: claim, value, bound, whether it holds


class UsageError(Exception):
    """Something asked for that there is not; exit status 2, as for a wrong option."""


@dataclass(frozen=True)
class Run:
    """One chapter executed: the notebook with its outputs, its claims, what went wrong."""

    path: Path
    notebook: NotebookNode
    claims: list[Row]
    problems: list[str]


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def text(notebook: NotebookNode) -> str:
    return nbformat.writes(notebook, indent=1) + "\n"


def chapters(book: Path, names: Iterable[str] = ()) -> list[Path]:
    """The notebooks of the book, in order; only those whose names begin with one of `names`, if any are given."""
    found = sorted(p for p in book.glob("*.ipynb") if p.stem.startswith(tuple(names) or ""))
    if names and not found:
        raise UsageError(f"no chapter in {book} begins with {' or '.join(names)}")
    return found


def execute(path: Path, *, profile: str, threads: int) -> Run:
    """Runs all cells of the chapter, also those after one that fails, so that every claim is heard."""
    start, notebook, problems = time.monotonic(), read(path), []
    with TemporaryDirectory() as folder:
        record = Path(folder, "claims.jsonl")
        variables = {"LRC_PROFILE": profile, "LRC_CHAPTER": path.stem, "LRC_SCORECARD": str(record)}
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=None if profile == "paper" else CELL_TIMEOUT,
            allow_errors=True,
            coalesce_streams=True,
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],  # the kernel's remarks on its own transport are nobody's concern
            resources={"metadata": {"path": str(path.parent)}},
        )
        try:
            asyncio.run(client.async_execute(env=os.environ | {"OMP_NUM_THREADS": str(threads)} | variables))
        except (CellTimeoutError, DeadKernelError) as error:
            problems.append(str(error).strip().splitlines()[0])
        claims = [row(json.loads(line)) for line in record.read_text().splitlines()] if record.exists() else []
    problems += [f"{o.ename}: {o.evalue}".splitlines()[0] for o in failures(notebook)]
    done = f"{path.stem}: {time.monotonic() - start:.0f} s, {len(claims)} claims"
    print("\n    ".join([done, *problems]), flush=True)
    return Run(path, normalized(notebook, path.stem, profile, claims), claims, problems)


def execute_all(paths: list[Path], *, profile: str, jobs: int, threads: int) -> list[Run]:
    """Runs the chapters, `jobs` at a time, with `threads` each; later ones, which take longer, start first."""
    print(f"executing {len(paths)} chapters in the profile {profile}", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        return [*pool.map(partial(execute, profile=profile, threads=threads), reversed(paths))][::-1]


def failures(notebook: NotebookNode) -> list[NotebookNode]:
    """Errors among the outputs, but for those that a cell announces."""
    cells = [c for c in code(notebook) if "raises-exception" not in c.metadata.get("tags", [])]
    return [o for c in cells for o in c.outputs if o.output_type == "error"]


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


def fingerprint(notebook: NotebookNode) -> str:
    """Of the code, so that outputs of other code are found out."""
    return hashlib.sha256("\0".join(c.source for c in code(notebook)).encode()).hexdigest()[:16]


def normalized(notebook: NotebookNode, stem: str, profile: str, claims: list[Row]) -> NotebookNode:
    """A copy without what differs from run to run: timings, versions, widget and cell ids; with profile and claims."""
    copy = nbformat.from_dict(notebook)
    copy.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "lrc": {"profile": profile, "code": fingerprint(notebook), "claims": claims},
        }
    )
    copy.nbformat, copy.nbformat_minor = 4, 5
    for i, cell in enumerate(copy.cells):
        cell.id = f"{stem[:2]}-{i:02d}"
        for name in ("execution", "collapsed", "scrolled"):
            cell.metadata.pop(name, None)
        for output in cell.get("outputs", []):
            output.pop("transient", None)
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return copy


CLAIMS = {  # of the paper, by the chapters that test them
    "The linear sub-network is what it is said to be": ("01",),
    "Robust classes cluster, standard ones far less": ("03", "08"),
    "They cluster by meaning": ("03b",),
    "Only robust networks cluster, and the more robust the more": ("02", "05", "05b"),
    "The effect is hierarchical": ("06",),
    "Features cluster as W does": ("07",),
    "Sub-populations never seen": ("09",),
    "The clustering term makes networks more robust": ("10",),
}
BESIDES = "Beside the paper"

HEAD = ["chapter", "claim", "value", "bound", "holds?"]


def row(record: dict[str, Any]) -> Row:
    """The line of the scorecard for what `lrc.claim` recorded."""
    verdict = ("yes" if record["holds"] else "NO") if record["enforced"] else "not tested"
    return [record["claim"], f"{record['value']:.3g}", f"{record['relation']} {record['bound']:.3g}", verdict]


def stored_rows(book: Path) -> list[Row]:
    """The scorecard of the notebooks in `book`, as their metadata tell it."""
    return [[p.stem, *r] for p in chapters(book) for r in read(p).metadata.get("lrc", {}).get("claims", [])]


def table(rows: list[Row]) -> str:
    """The scorecard for the terminal."""
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in [HEAD, rule, *rows])


def page(rows: list[Row], profile: str) -> str:
    """The scorecard in Markdown, grouped by claim of the paper, for a page of the book to include."""
    by_chapter = {number: claim for claim, numbers in CLAIMS.items() for number in numbers}
    groups: dict[str, list[Row]] = {claim: [] for claim in (*CLAIMS, BESIDES)}
    for row in rows:
        groups[by_chapter.get(row[0].split("_")[0], BESIDES)].append(row)
    parts = [f"## {claim}\n\n{_markdown(group)}" for claim, group in groups.items() if group]
    return "\n".join([f"Profile `{profile}`.\n", *parts])


def _markdown(rows: list[Row]) -> str:
    lines = [HEAD, ["---"] * len(HEAD)]
    lines += [[f"[](./{chapter}.ipynb)", *(cell.replace("|", "\\|") for cell in rest)] for chapter, *rest in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def stage(folder: Path) -> Path:
    """Copies all that the book is built from to `folder`; returns the folder of the chapters there."""
    book = folder / "book"
    shutil.rmtree(book, ignore_errors=True)
    shutil.copytree(ROOT / "book", book, ignore=shutil.ignore_patterns(".*"))
    for name in ("_config.yml", "_toc.yml", "tools/pages.py"):
        shutil.copy(ROOT / name, folder)
    return book


def publish(runs: list[Run], book: Path, profile: str) -> None:
    """Writes the executed chapters to `book`, and the page of all claims there."""
    for run in runs:
        (book / run.path.name).write_text(text(run.notebook), encoding="utf-8")
    (book / SCORECARD).write_text(page(stored_rows(book), profile), encoding="utf-8")


def report(runs: list[Run]) -> int:
    """Prints the scorecard and what went wrong; the exit status."""
    rows = [[run.path.stem, *r] for run in runs for r in run.claims]
    print(f"\n{table(rows)}\n")
    held, whole = [r[-1] == "yes" for r in rows].count(True), sum(not run.problems for run in runs)
    print(f"{held} of {len(rows)} claims hold; {whole} of {len(runs)} chapters ran without error")
    return 0 if whole == len(runs) and all(r[-1] != "NO" for r in rows) else 1


def check(book: Path, toc: set[str]) -> list[str]:
    """What is wrong with the notebooks as they are stored, a line each."""
    paths = chapters(book)
    wrong = [f"{p.name}: {line}" for p in paths for line in complaints(p)]
    wrong += [f"{p.name}: not in _toc.yml" for p in paths if p.stem not in toc]
    card = book / SCORECARD
    if paths and (not card.exists() or card.read_text() != page(stored_rows(book), STORED)):
        wrong.append(f"{SCORECARD}: not the claims of the notebooks: make store")
    return wrong


def complaints(path: Path) -> list[str]:
    notebook, lines = read(path), []
    stamp, cells = notebook.metadata.get("lrc", {}), code(notebook)
    if any(c.execution_count is None for c in cells if "skip-execution" not in c.metadata.get("tags", [])):
        return ["has cells that were never executed: make store"]
    if stamp.get("profile") != STORED:
        return [f"outputs of the profile {stamp.get('profile')}, not {STORED}: make store"]
    if stamp["code"] != fingerprint(notebook):
        lines.append("its code changed after the outputs were stored: make store")
    elif text(normalized(notebook, path.stem, STORED, stamp["claims"])) != path.read_text(encoding="utf-8"):
        lines.append("not in the form that make store leaves")
    if not stamp["claims"] or any(r[-1] != "yes" for r in stamp["claims"]):
        lines.append("makes no claim, or one that did not hold")
    outputs = [o for c in cells for o in c.outputs]
    lines += [f"a stored error, {o.ename}" for o in failures(notebook)]
    lines += ["a stored warning (stderr)" for o in outputs if o.get("name") == "stderr"]
    shown = json.dumps(
        [{**o, "data": {k: v for k, v in o.get("data", {}).items() if k not in BASE64}} for o in outputs]
    )
    return lines + [f"an output with {m.strip()!r}, of one machine" for m in sorted({*UNSTABLE.findall(shown)})]


def toc_entries(path: Path) -> set[str]:
    """Names of the pages in the table of contents."""
    return {
        Path(name).stem for name in re.findall(r"(?:file|root): *(\S+)", yaml.dump(yaml.safe_load(path.read_text())))
    }


def command(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("execute", "store"):
        sub = commands.add_parser(name)
        sub.add_argument("chapters", nargs="*", help="first letters of their names; all by default")
        sub.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="chapters at a time")
        if name == "execute":
            sub.add_argument("--profile", default=os.environ.get("LRC_PROFILE") or "quick")
    commands.add_parser("stage").add_argument("folder", type=Path)
    commands.add_parser("check")
    args = parser.parse_args(argv)
    for name in ("LRC_DATA", "LRC_CACHE"):  # kernels run in another folder
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).resolve())
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # never a kernel from the user's own folder
    try:
        return {"execute": _execute, "store": _store, "stage": _stage, "check": _check}[args.command](args)
    except UsageError as error:
        parser.error(str(error))


def _execute(args: argparse.Namespace) -> int:
    from lrc import InputError
    from lrc import profile as find

    try:
        find(args.profile)
    except InputError as error:
        raise UsageError(str(error)) from None
    paths, book = chapters(ROOT / "book", args.chapters), stage(ROOT / "_build" / args.profile)
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // args.jobs))
    runs = execute_all(paths, profile=args.profile, jobs=args.jobs, threads=threads)
    publish(runs, book, args.profile)
    return report(runs)


def _store(args: argparse.Namespace) -> int:
    """On the CPU, one thread a kernel: sums come out the same whatever the machine has."""
    os.environ.pop("LRC_LIMIT", None)
    os.environ["LRC_DEVICE"] = "cpu"
    book = ROOT / "book"
    runs = execute_all(chapters(book, args.chapters), profile=STORED, jobs=args.jobs, threads=1)
    publish([r for r in runs if not r.problems], book, STORED)
    return report(runs)


def _stage(args: argparse.Namespace) -> int:
    stage(args.folder)
    return 0


def _check(args: argparse.Namespace) -> int:
    wrong = check(ROOT / "book", toc_entries(ROOT / "_toc.yml"))
    print("\n".join(wrong) or "the stored notebooks are whole")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(command())
