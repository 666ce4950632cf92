"""An inspection as one self-contained page: no script, no request to anywhere, light and dark."""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lrc.clustering import tree
from lrc.evaluation import Rate
from lrc.plots import rows as as_pictures
from lrc.utils.files import read_json

if TYPE_CHECKING:
    from lrc.inspection.clusters import Clusters
    from lrc.inspection.report import Inspection

__all__ = ["body", "page", "reference"]

REFERENCE = Path(__file__).with_name("reference.json")
SIDE = 256  # of a matrix as a picture, in pixels, at most
SMALL = 40  # side of the pictures of maps of large images
READABLE = 40  # classes up to which a matrix has names and values to hover over
KINDS = {"standard": "#56b4e9", "adversarial": "#d55e00", "masked": "#cc79a7"}  # colour-blind safe (Okabe & Ito)
WORDS = {"robust": "good", "not robust": "bad", "only looks robust": "bad", "undecided": "open"}

STYLE = """
.lrc{--ink:#1a1a1a;--dim:#595959;--line:#d0d0d0;--paper:#fff;color:var(--ink);background:var(--paper);
font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:0 auto;padding:1rem;overflow-wrap:break-word}
@media(prefers-color-scheme:dark){.lrc{--ink:#ececec;--dim:#b8b8b8;--line:#4a4a4a;--paper:#161616}}
.lrc h1{font-size:1.5rem;margin:.2rem 0}.lrc h2{font-size:1.15rem;margin:1.6rem 0 .4rem}
.lrc table{border-collapse:collapse;font-variant-numeric:tabular-nums}.lrc .wide{overflow-x:auto}
.lrc th,.lrc td{text-align:left;padding:.2rem .7rem .2rem 0;border-bottom:1px solid var(--line);vertical-align:top}
.lrc tbody th{white-space:nowrap}.lrc td.n{text-align:right;white-space:nowrap}.lrc .dim{color:var(--dim)}
.lrc figure{margin:0;flex:1 1 18rem;max-width:22rem}
.lrc .row{display:flex;flex-wrap:wrap;gap:1.2rem}.lrc svg{width:100%;height:auto}.lrc svg text{fill:var(--ink)}
.lrc .word{display:inline-block;padding:.1rem .6rem;border-radius:.3rem;font-weight:600;border:2px solid}
.lrc .good{border-color:#009e73}.lrc .bad{border-color:#d55e00}.lrc .open{border-color:#8a8a8a}
.lrc img{image-rendering:pixelated;width:100%;max-width:40rem}.lrc .axis{stroke:var(--dim);stroke-width:.5}
@media(max-width:40rem){.lrc .text thead{display:none}.lrc .text tr{display:block;padding:.4rem 0}
.lrc .text th,.lrc .text td{display:block;border:0;padding:0;white-space:normal}
.lrc .text tr{border-bottom:1px solid var(--line)}}
"""


def page(inspections: Sequence["Inspection"]) -> str:
    """A whole page: one inspection, or several with a table that compares them."""
    title = escape(", ".join(i.name for i in inspections))
    parts = [*([comparison(inspections)] if len(inspections) > 1 else []), *map(body, inspections)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>lrc: {title}</title>'
        f"<style>html{{background:Canvas}}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def body(i: "Inspection") -> str:
    """The inspection as HTML that a page or a notebook can hold."""
    sections = [
        _verdict(i),
        _section("How robust it is", _accuracies(i) + _classes(i)),
        _section("Signs of gradient masking", _flags(i)),
        _section("How its classes cluster", _maps(i) + _matrices(i) + _trees(i)),
        _section("Among the networks of the zoo", _plane(i)) if i.comparable else _section("Beside chance", _chance(i)),
        _section("What the maps look like", _pictures(i)),
        _section("What was taken out of the network to make it linear", _taken_out(i)),
        _section("Why it may be right on few images", _causes(i)),
        _section("What was done, and what does not follow", _limits(i)),
    ]
    return f'<div class="lrc"><style>{STYLE}</style>{"".join(sections)}</div>'


def comparison(inspections: Sequence["Inspection"]) -> str:
    """Several networks side by side."""
    rows = [
        ("verdict", [i.verdict.word for i in inspections]),
        *(
            (name, [_share(i.report.accuracy(name)) if name in i.report.names else "-" for i in inspections])
            for name in dict.fromkeys(name for i in inspections for name in i.report.names)
        ),
        ("signs of masking", [", ".join(i.report.raised) or "none" for i in inspections]),
        *(
            (f"contrast, {name}", [_number(i.maps[name].contrast) if name in i.maps else "-" for i in inspections])
            for name in dict.fromkeys(name for i in inspections for name in i.maps)
        ),
    ]
    table = _table(["", *(i.name for i in inspections)], [[name, *cells] for name, cells in rows])
    return f'<div class="lrc"><style>{STYLE}</style>{_section("Side by side", table)}</div>'


def reference() -> list[dict[str, Any]]:
    """The recorded networks: name, kind, architecture, contrast of W and of the mean local map, AutoAttack accuracy."""
    return list(read_json(REFERENCE)["networks"]) if REFERENCE.exists() else []


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    def cells(row: Sequence[str]) -> str:
        kind = ' class="n"' if numbers else ""
        first = f'<th scope="row">{escape(row[0])}</th>'
        return first + "".join(f"<td{kind}>{escape(c)}</td>" for c in row[1:])

    top = "".join(f'<th scope="col">{escape(h)}</th>' if h else "<td></td>" for h in head)
    lines = "".join(f"<tr>{cells(row)}</tr>" for row in rows)
    kind = "" if numbers else " text"
    return (
        f'<div class="wide{kind}" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def _verdict(i: "Inspection") -> str:
    reasons = " ".join(map(escape, i.verdict.reasons))
    return (
        f'<h1>{escape(i.name)} <span class="dim">on {len(i.report)} images of {escape(i.source)}</span></h1>'
        f'<p><span class="word {WORDS[i.verdict.word]}">{escape(i.verdict.word)}</span> {reasons}</p>'
    )


def _accuracies(i: "Inspection") -> str:
    rows = [[name, _share(i.report.accuracy(name))] for name in i.report.names]
    radius = f"Attacks: {i.report.norm}, radius {255 * i.report.eps:.3g}/255. In brackets Wilson's 95 % interval."
    return _table(["", "right"], rows) + f'<p class="dim">{radius}</p>'


def _classes(i: "Inspection") -> str:
    names = [name for name in i.report.names if name != "worst case" or len(i.report.attacks) > 1]
    by = {name: list(i.report.by_class(name)) for name in names}
    rows = [
        [c, *(f"{by[name][k].value:.0%} of {by[name][k].count}" for name in names)] for k, c in enumerate(i.classes)
    ]
    return f"<details><summary>By class</summary>{_table(['', *names], rows)}</details>"


def _flags(i: "Inspection") -> str:
    if i.report.flags is None:
        return "<p>They were not looked for, or no image is classified rightly.</p>"
    rows = [
        [
            f.name,
            "found" if f.raised else "no",
            ", ".join(f"{k} {_brief(v)}" for k, v in f.evidence.items()),
            f.explanation,
        ]
        for f in i.report.flags
    ]
    return _table(["sign", "", "evidence", "what it means"], rows, numbers=False)


def _brief(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _maps(i: "Inspection") -> str:
    rows = []
    for name, found in i.maps.items():
        test = found.test
        rank = "-" if test is None else f"{test.rank} of {test.n_splits:,}"
        p = "-" if test is None else f"{test.p_value:.2g}" + (" (the least there is)" if test.rank == 1 else "")
        given = "-" if found.partial is None else f"{found.partial.p_value:.2g}"
        rows.append([name, _number(found.contrast), rank, p, given, _number(i.likeness(found))])
    head = ["map", "contrast", "rank of the groups", "p", "p given the mean images", "likeness to the mean images"]
    kind = f"Groups: {'; '.join(i.group_names)}." if i.groups else "No groups were given, so there is no contrast."
    explored = " They were found in the network's own tree: explored, not tested." if i.groups and i.explored else ""
    why = (
        "Contrast: mean correlation of rows within groups less that between them, rows centred. The mean images of the "
        "classes cluster with no network at all; likeness is the correlation of the entries of both matrices. The p "
        "given them asks whether the groups say more of C than it shares with them (a partial Mantel test)."
    )
    if splits := {found.test.n_splits for found in i.maps.values() if found.test is not None}:
        n = max(splits)
        why += (
            f" Of {n:,} ways to deal out the classes one is the given one, so 1/{n:,} = {1 / n:.2g} is the smallest p "
            "that can come out: standard networks often reach it too."
        )
    return _table(head, rows) + f'<p class="dim">{escape(kind + explored)} {why}</p>'


def _order(i: "Inspection") -> list[int]:
    return [k for group in i.groups for k in group] if i.groups else list(range(len(i.classes)))


def _matrices(i: "Inspection") -> str:
    return figures({name: matrix(found.C, i.classes, i.groups) for name, found in i.maps.items()})


def figures(shown: Mapping[str, str]) -> str:
    """Pictures side by side, by their captions."""
    each = (f"<figure>{picture}<figcaption>{escape(text)}</figcaption></figure>" for text, picture in shown.items())
    return f'<div class="row">{"".join(each)}</div>'


def matrix(C: Float[Tensor, "k k"], classes: Sequence[str], groups: Sequence[Sequence[int]]) -> str:
    """C as squares, ordered and framed by `groups` if there are any; each square tells its pair and value."""
    order, k = [c for group in groups for c in group] or [*range(len(classes))], len(classes)
    if k > READABLE:
        small = (min(k, SIDE), min(k, SIDE))  # for a page of two megabytes
        C = torch.nn.functional.interpolate(C[order][:, order][None, None], size=small, mode="area")[0, 0]
        return png(_coloured(C.numpy()), "Class correlation")
    squares = "".join(
        f'<rect x="{c}" y="{r}" width="1" height="1" fill="{_colour(float(C[a, b]))}">'
        f"<title>{escape(classes[a])}, {escape(classes[b])}: {C[a, b]:.2f}</title></rect>"
        for r, a in enumerate(order)
        for c, b in enumerate(order)
    )
    frames, first = "", 0
    for group in groups:
        square = f'x="{first}" y="{first}" width="{len(group)}" height="{len(group)}"'
        frames += f'<rect {square} fill="none" stroke="#000" stroke-width=".08"/>'
        first += len(group)
    size = min(0.7, 6 / k)
    names = "".join(
        f'<text x="-.2" y="{r + 0.5}" font-size="{size}" text-anchor="end" dominant-baseline="middle">'
        f"{escape(classes[a])}</text>"
        for r, a in enumerate(order)
    )
    left = 0.6 * size * max(map(len, classes)) + 0.3
    head = f'<svg viewBox="{-left} 0 {k + left} {k}" role="img" aria-label="Class correlation">'
    return f"{head}{squares}{frames}{names}</svg>"


def _coloured(C: Float[np.ndarray, "k k"]) -> np.ndarray:
    """The colours of many entries at once."""
    ends = np.where(C[..., None] > 0, np.array([178, 24, 43.0]), np.array([33, 102, 172.0]))
    share = np.abs(C).clip(0, 1)[..., None]
    return ((1 - share) * 247 + share * ends).round().astype(np.uint8)


def _colour(value: float) -> str:
    return "#" + bytes(_coloured(np.array([[value]]))[0, 0]).hex()


def png(pixels: np.ndarray, text: str) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'


def _trees(i: "Inspection") -> str:
    if len(i.classes) > READABLE:
        return ""
    return figures({f"tree, {name}": dendrogram(tree(found.C), i.classes, i.groups) for name, found in i.maps.items()})


def dendrogram(
    merges: Float[np.ndarray, "merges 4"],
    classes: Sequence[str],
    groups: Sequence[Sequence[int]],
    at: float | None = None,
) -> str:
    """A tree of classes, marked by `groups`, with a line at the distance `at` where one is given."""
    from scipy.cluster import hierarchy

    drawn = hierarchy.dendrogram(merges, no_plot=True)
    k, top = len(classes), max(max(d) for d in drawn["dcoord"]) or 1.0
    width = 10.0
    lines = "".join(
        '<polyline fill="none" stroke="currentColor" stroke-width=".06" points="'
        + " ".join(f"{width * (1 - d / top):.3f},{c / 10:.3f}" for c, d in zip(cs, ds, strict=True))
        + '"/>'
        for cs, ds in zip(drawn["icoord"], drawn["dcoord"], strict=True)
    )
    of = {c: g for g, group in enumerate(groups) for c in group}
    marks = ["", "\u25cf ", "\u25b2 ", "\u25a0 ", "\u25c6 ", "\u25cb ", "\u25b3 ", "\u25a1 ", "\u25c7 "]
    names = "".join(
        f'<text x="{width + 0.2}" y="{r + 0.5}" font-size=".6" dominant-baseline="middle">'
        f"{marks[(of.get(c, -1) + 1) % len(marks)]}{escape(classes[c])}</text>"
        for r, c in enumerate(drawn["leaves"])
    )
    if at is not None:
        x = width * (1 - min(at / top, 1.0))
        lines += f'<path d="M{x:.3f} 0V{k}" stroke="#d55e00" stroke-width=".1" stroke-dasharray=".3 .2"/>'
    right = width + 0.4 * (max(map(len, classes)) + 3)
    return f'<svg viewBox="0 0 {right:.1f} {k}" role="img" aria-label="Tree of classes">{lines}{names}</svg>'


def _plane(i: "Inspection") -> str:
    """Contrast against accuracy under AutoAttack, of the recorded networks and of this one."""
    known = reference()
    if not known:
        return ""
    attack = "autoattack" if "autoattack" in i.report.attacks else i.report.attacks[0]
    own = i.report.accuracy(attack).value
    figures = "".join(
        f"<figure>{_scatter(known, key, None if found is None else found.contrast, own)}"
        f"<figcaption>contrast of {what} (across), accuracy under AutoAttack (up)</figcaption></figure>"
        for key, what, found in (("contrast", "W", i.W), ("contrast_local", "the mean local map", i.local))
    )
    legend = ", ".join(f'<span style="border-bottom:3px solid {c}">{k}</span>' for k, c in KINDS.items())
    text = "The ring is this network" + ("" if attack == "autoattack" else ", under PGD-20 instead") + "."
    return f'<div class="row">{figures}</div><p class="dim">{legend}. {escape(text)}</p>'


def _chance(i: "Inspection") -> str:
    """The contrasts beside those that chance gives, where the recorded networks are no reference."""
    text = (
        "The recorded networks are small ones for CIFAR-10. This network, its data or its groups are too far from "
        "them: their contrasts are no measure here. "
    )
    rows = [
        [
            name,
            _number(found.contrast),
            " / ".join(map(_number, found.test.quantiles)),
            " / ".join(map(_number, found.random)) or "-",
        ]
        for name, found in i.maps.items()
        if found.test is not None
    ]
    if not rows:
        return f"<p>{escape(text)}Without groups to test there is no contrast.</p>"
    head = ["map", "contrast", "other groups, 5 / 50 / 95 %", "random weights"]
    why = (
        "Other groups: the same map, classes dealt out at random to groups of the same sizes. Random weights: the same "
        "architecture, begun anew, the given groups. A contrast above both is more than chance and architecture give; "
        "that makes no network robust."
    )
    return f'<p>{escape(text)}</p>{_table(head, rows)}<p class="dim">{escape(why)}</p>'


def _scatter(known: list[dict[str, Any]], key: str, own: float | None, accuracy: float) -> str:
    values = [n[key] for n in known] + ([own] if own is not None else [])
    low, high = min(0.0, *values), max(2.0, *values)
    place = lambda v, a: (10 + 88 * (v - low) / (high - low), 58 - 54 * min(a, 0.6) / 0.6)  # noqa: E731
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6" fill="{KINDS[n["kind"]]}"><title>{escape(n["name"])}: contrast '
        f"{n[key]:.2f}, AutoAttack {n['autoattack']:.1%}</title></circle>"
        for n in known
        for x, y in [place(n[key], n["autoattack"])]
    )
    ring = ""
    if own is not None:
        x, y = place(own, accuracy)
        circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="none" stroke="currentColor" stroke-width=".9">'
        ring = f"{circle}<title>this network</title></circle>"
    ticks = "".join(
        f'<text x="{place(v, 0)[0]:.1f}" y="64" font-size="4" text-anchor="middle">{v:g}</text>'
        for v in np.arange(math.ceil(2 * low) / 2, high + 0.01, 0.5)
    ) + "".join(
        f'<text x="8" y="{place(0, a)[1] + 1.4:.1f}" font-size="4" text-anchor="end">{a:.0%}</text>'
        for a in (0, 0.2, 0.4, 0.6)
    )
    axes = '<path class="axis" fill="none" d="M10 2V58H99"/>'
    head = '<svg viewBox="-4 0 104 66" role="img" aria-label="Contrast against robust accuracy">'
    return f"{head}{axes}{ticks}{dots}{ring}</svg>"


def _pictures(i: "Inspection") -> str:
    text = "A picture a class, in the order of the matrices. Grey is zero; each is scaled by its own largest value."
    shown = {name: png(sheet(_picture(i, found)), name) for name, found in i.maps.items()}
    return f'{figures(shown)}<p class="dim">{text}</p>'


def _picture(i: "Inspection", found: "Clusters") -> Float[Tensor, "n c h w"]:
    rows = found.rows[_order(i)[:READABLE]].float()
    return rows if found is i.means else as_pictures(rows)


def sheet(x: Float[Tensor, "n c h w"], columns: int = 5) -> np.ndarray:
    n, c, h, w = x.shape
    if max(h, w) > 64:  # small enough for a page
        x = torch.nn.functional.interpolate(x, size=(SMALL, SMALL), mode="area")
        h = w = SMALL
    lines = -(-n // columns)
    sheet = np.full((lines * (h + 1), min(columns, n) * (w + 1), 3), 255, dtype=np.uint8)
    for k, image in enumerate(x.expand(-1, 3, -1, -1) if c == 1 else x[:, :3]):
        top, left = k // columns * (h + 1), k % columns * (w + 1)
        sheet[top : top + h, left : left + w] = (255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    return sheet


def _taken_out(i: "Inspection") -> str:
    """The rules as they were applied, alike ones in a line."""
    if not i.taken_out:
        return ""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for change in i.taken_out:
        alike.setdefault((change.operation, change.became, change.convention), []).append(change.module or change.node)
    rows = [
        [
            operation.removeprefix("torch.nn."),
            f"{len(where)}",
            became,
            why,
            where[0] + (", ..." if len(where) > 1 else ""),
        ]
        for (operation, became, why), where in alike.items()
    ]
    text = "All else is linear as it is, and was kept. W is the matrix that the network then is."
    return _table(["operation", "times", "became", "why", "where"], rows, numbers=False) + f'<p class="dim">{text}</p>'


def _causes(i: "Inspection") -> str:
    """What was tried, where there is something to explain."""
    from lrc.inspection.verdict import near_chance

    if not i.tried or not (near_chance(i.report) or any(t.sure for t in i.tried)):
        return ""
    rows = [
        [
            t.what,
            f"{t.before.value:.1%}",
            f"{t.accuracy.value:.1%} of {t.accuracy.count}",
            "likely" if t.sure else "no",
            t.mend,
        ]
        for t in sorted(i.tried, key=lambda t: -t.accuracy.value)
    ]
    return _table(["cause", "as it is", "mended", "", "how"], rows, numbers=False)


def _limits(i: "Inspection") -> str:
    said = [
        *i.notes,
        f"The mean local map is over {i.images} images, the mean images over {i.averaged}.",
        "Clusters are no proof of robustness: the mean images of the classes have them too.",
        "Another radius, norm or attack may say otherwise; nothing is said of images unlike these.",
    ]
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in said) + "</ul>"
