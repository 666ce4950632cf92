"""Figures to move: buttons and sliders that choose among frames computed beforehand, in a page without a kernel.

Matrices are drawn on a canvas by some hundred lines of script (`moving.js`), images are PNGs in the page itself. So a
figure needs neither network nor library, works in JupyterLab as in the built book, and weighs what its frames do; the
libraries for such figures weigh 1 to 5 MB before the first of them.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from lrc.utils.errors import InputError

__all__ = ["Moving", "moving"]

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Moving:
    """A figure to move; the last thing in a cell of a notebook, it shows itself.

    Attributes:
        title: what it shows.
        controls: name, choices, and whether a slider or buttons choose.
        frames: what to draw for each combination of choices, the last control changing fastest.
        shared: what is the same in all frames: names of the classes, sizes and names of their groups.
    """

    title: str
    controls: tuple[tuple[str, tuple[str, ...], bool], ...]
    frames: tuple[list[dict[str, Any]], ...]
    shared: dict[str, Any]

    def __repr__(self) -> str:
        return f"{self.title}: {len(self.frames)} frames, by " + ", ".join(
            f"{name} ({', '.join(choices)})" for name, choices, _ in self.controls
        )

    def _repr_html_(self) -> str:
        controls = [{"name": n, "choices": c, "slider": s} for n, c, s in self.controls]
        record = {"controls": controls, "frames": self.frames, **self.shared}
        told = json.dumps(record, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
        style, script = ((HERE / f"moving.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
        return (
            f'<div class="lrc-moving" role="group" aria-label="{escape(self.title)}">\n<style>{style}</style>\n'
            f'<p class="lrc-title">{escape(self.title)}</p>\n<script type="application/json">{told}</script>\n'
            f"<noscript>This figure needs JavaScript.</noscript>\n<script>{script}</script>\n</div>"
        )


def moving(
    frame: Callable[..., Any],
    *,
    title: str,
    classes: Sequence[str] = (),
    groups: Sequence[Sequence[int]] | None = None,
    group_names: Sequence[str] = (),
    sliders: Sequence[str] = (),
    **choices: Sequence[Any],
) -> Moving:
    """A figure in which a reader chooses what is shown.

    Args:
        frame: called with one of each of the `choices`, by name; gives what is drawn then: a square matrix with entries
            from -1 to 1, or images (n, c, h, w) in [0, 1]; or several of them side by side, by their titles. A pair
            of images and labels puts a label under each image. There, numbers by name are bars.
        title: what the figure shows.
        classes: names of rows and columns of a matrix.
        groups: order and frames of the classes, as in `matrix`; their names stand at the sides of many.
        group_names: of the groups.
        sliders: names of the choices that are a slider; the others are buttons.
        choices: by name, what there is to choose from; underscores in a name are shown as blanks.

    Raises:
        InputError: nothing to choose from, or a slider that is not among the choices.

    >>> import torch
    >>> moving(lambda sign: {"up": 1, "down": -1}[sign] * torch.eye(2), title="C", classes="ab", sign=["up", "down"])
    C: 2 frames, by sign (up, down)
    """
    if not choices or not all(choices.values()) or (unknown := {*sliders} - {*choices}):
        wrong = f"no choice {min(unknown)!r} for a slider" if choices and all(choices.values()) else "nothing to choose"
        raise InputError(f"figure {title!r}: {wrong}: name each choice with its values")
    order = [i for group in groups for i in group] if groups is not None else [*range(len(classes))]
    frames = tuple(
        _panels(frame(**dict(zip(choices, values, strict=True))), order) for values in product(*choices.values())
    )
    controls = tuple((n.replace("_", " "), tuple(map(str, v)), n in sliders) for n, v in choices.items())
    shared = {
        "classes": [classes[i] for i in order],
        "sizes": [len(group) for group in groups or []],
        "groups": [str(name) for name in group_names],
    }
    return Moving(title, controls, frames, shared)


def _panels(found: Any, order: list[int]) -> list[dict[str, Any]]:
    panels = found if isinstance(found, Mapping) else {"": found}
    return [{"title": str(title)} | _panel(shown, order) for title, shown in panels.items()]


def _panel(shown: Any, order: list[int]) -> dict[str, Any]:
    if isinstance(shown, tuple):
        x, labels = shown
        return {"images": [_png(image) for image in x], "labels": [*map(str, labels)]}
    if isinstance(shown, Mapping):
        return {"bars": [[str(name), round(float(value), 2) + 0.0] for name, value in shown.items()]}
    if shown.ndim == 4:
        return {"images": [_png(image) for image in shown], "labels": []}
    matrix = shown.detach().double().cpu()[order][:, order]
    return {"matrix": [[round(v, 2) + 0.0 for v in row] for row in matrix.tolist()]}


def _png(image: Tensor) -> str:
    """An image (c, h, w) in [0, 1] as an address that holds it."""
    from PIL import Image

    pixels = (255 * image.detach().float().cpu().clamp(0, 1)).round().byte().expand(3, -1, -1).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file := BytesIO(), "png", optimize=True)
    return "data:image/png;base64," + b64encode(file.getvalue()).decode()
