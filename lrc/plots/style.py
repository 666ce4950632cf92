"""One colour, one meaning: which colour stands for which kind of network, and which for a superclass."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt

from lrc.utils.typed import typed

__all__ = ["GROUPS", "KINDS", "ink", "use_style"]

KINDS = {"standard": "#0072B2", "adversarial": "#D55E00", "masked": "#757575"}
"""Colours of networks: trained without adversarial examples, with them, and those that only seem robust."""

GROUPS = ("#117733", "#882255", "#44AA99", "#AA4499", "#999933", "#332288")
"""Colours of superclasses, none that of a kind of network (Tol's muted scheme, for the colour-blind too)."""

OTHERS = ("#222222", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6A3D9A")
"""Colours of whatever else lines stand for (Okabe and Ito)."""


def use_style() -> None:
    """Sets Matplotlib up for the book (`book.mplstyle`), with twice the pixels in a notebook."""
    plt.style.use(Path(__file__).with_name("book.mplstyle"))
    if "inline" in plt.get_backend():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")


@typed
def ink(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: that of the kind of network which the name begins with, else one that no kind has.

    >>> ink(["standard", "adversarially trained", "mean images"])
    {'standard': '#0072B2', 'adversarially trained': '#D55E00', 'mean images': '#222222'}
    """
    found, free = {}, 0
    for name in names:
        kind = next((k for k in KINDS if name.startswith(k)), None)
        colour = KINDS[kind] if kind else OTHERS[free % len(OTHERS)]
        free += kind is None
        found[name] = colour
    return found
