"""Draws the figure of the README and of the first page from the shipped networks: book/_static/correlation.png.

python tools/figure.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import lrc

PLACE = Path(__file__).resolve().parents[1] / "book" / "_static" / "correlation.png"


def main() -> None:
    """Writes the file, the same bytes on every run."""
    lrc.plots.use_style()
    hierarchy = lrc.hierarchy.CIFAR10
    fig, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    titles = {"cifar10-resnet8-standard": "standard training", "cifar10-resnet8-at": "adversarial training"}
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        C = lrc.class_correlation(lrc.linear_map(lrc.zoo.load(name)), centre=True)
        lrc.plots.matrix(C, hierarchy.classes, groups=hierarchy.groups(), title=title, ax=ax)
    PLACE.parent.mkdir(exist_ok=True)
    fig.savefig(PLACE, dpi=200, metadata={"Software": None})


if __name__ == "__main__":
    main()
