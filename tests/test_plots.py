"""What a plot shows is read off its artists."""

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from lrc import clustering, plots


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_matrix_is_ordered_by_groups():
    C = torch.tensor([[1.0, 0.1, 0.8], [0.1, 1.0, 0.2], [0.8, 0.2, 1.0]])
    ax = plots.matrix(C, "abc", groups=[[0, 2], [1]], title="C")
    expected = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.2], [0.1, 0.2, 1.0]])
    np.testing.assert_allclose(ax.images[0].get_array(), expected)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "c", "b"]
    assert [(p.get_x(), p.get_width()) for p in ax.patches] == [(-0.5, 2), (1.5, 1)]
    assert ax.images[0].get_clim() == (-1, 1)


def test_tree_names_its_leaves_and_colours_them_by_group():
    C = torch.tensor([[1.0, 0.1, 0.8], [0.1, 1.0, 0.2], [0.8, 0.2, 1.0]])
    ax = plots.tree(clustering.tree(C), "abc", groups=[[0, 2], [1]])
    colours = {t.get_text(): t.get_color() for t in ax.get_yticklabels()}
    assert colours == {"a": "tab:blue", "c": "tab:blue", "b": "tab:orange"}


def test_images_lie_row_by_row():
    x = torch.linspace(0, 0.9, 5).view(5, 1, 1, 1).expand(5, 3, 4, 4)
    sheet = plots.images(x, columns=3).images[0].get_array()
    assert sheet.shape == (2 * 6, 3 * 6, 3)
    assert sheet[0, 0, 0] == 0 and sheet[0, 6, 0] == pytest.approx(0.225) and sheet[6, 6, 0] == pytest.approx(0.9)
    assert sheet[5, 5, 0] == 1  # the gap is white


def test_rows_are_grey_at_zero_and_keep_their_sign():
    W = torch.tensor([-2.0, 0.0, 1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(plots.rows(W).flatten(), torch.tensor([0.0, 0.5, 0.75]))
    assert plots.rows(torch.zeros(1, 3, 2, 2)).eq(0.5).all()


def test_curves_draw_what_they_are_given():
    ax = plots.curves({"a": [0.1, 0.2], "b": [0.3, 0.4]}, x=[0, 8])
    assert [line.get_label() for line in ax.lines] == ["a", "b"]
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), [[0, 0.3], [8, 0.4]])
