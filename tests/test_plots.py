"""What a plot shows is read off its artists."""

import base64
import io
import json
import re

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from lrc import clustering, plots
from lrc.utils.errors import InputError


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
    assert colours == {"a": plots.GROUPS[0], "c": plots.GROUPS[0], "b": plots.GROUPS[1]}


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


def test_lines_end_in_their_names_and_kinds_of_network_keep_their_colours():
    ax = plots.curves({"mean images": [1.0, 2.0], "adversarially trained": [0.0, 2.0], "standard": [0.0, 2.01]})
    assert [line.get_color() for line in ax.lines[1:]] == [plots.KINDS["adversarial"], plots.KINDS["standard"]]
    heights = {t.get_text().strip(): t.xy[1] for t in ax.texts}
    assert heights.keys() == {"mean images", "adversarially trained", "standard"}
    apart = np.diff(sorted(heights.values()))
    assert (apart > 0.1).all(), "names that lie over each other"


def test_no_colour_means_two_things():
    given = [*plots.KINDS.values(), *plots.GROUPS, *plots.ink(["a", "b", "c", "d", "e", "f"]).values()]
    assert len({c.lower() for c in given}) == len(given)


# Tables


def test_a_table_shows_each_kind_of_value_aligned():
    rows = {
        ("a", 1): {"share": 0.125, "gain": clustering.Interval(-0.0001, -0.5, 0.5, 0.1, 3), "rank": "1 of 210"},
        "c": {"share": torch.tensor([0.1, 0.3]), "n": 12, "rank": "12 of 210", "found": True, "word": "x < y"},
    }
    shown = plots.table(rows, title="T", name="of", percent=["share"], signed=["gain"], digits={"gain": 1})
    assert str(shown).splitlines() == [
        "T",
        "of       share, %             gain       rank   n  found  word",
        "----  -----------  ---------------  ---------  --  -----  -----",
        "a, 1         12.5  0.0 [-0.5, 0.5]   1 of 210   –      –  –",
        "c     20.0 ± 14.1                –  12 of 210  12    yes  x < y",
    ]
    assert repr(shown) == str(shown)
    html = shown._repr_html_()
    assert "<caption>T</caption>" in html and "x &lt; y" in html and html.count("<tr>") == 3
    assert html.count('scope="col"') == 7 and html.count('scope="row"') == 2


def test_a_table_of_nothing_says_so_and_one_with_an_unknown_column_is_an_error():
    assert str(plots.table({}, title="Signs", percent=["a"])).splitlines() == ["Signs", "rows", "----", "none"]
    with pytest.raises(InputError, match="'b'"):
        plots.table({"x": {"a": 1}}, percent=["b"])


# Figures to move


def frames(shown):
    told = re.search(r'<script type="application/json">(.*?)</script>', shown._repr_html_(), re.S)[1]
    return json.loads(told)


def test_a_figure_to_move_has_a_frame_for_each_combination_in_the_order_of_its_controls():
    C = torch.tensor([[1.0, 0.111, 0.8], [0.111, 1.0, 0.2], [0.8, 0.2, 1.0]])
    shown = plots.moving(
        lambda eps, kind: {"left": C * eps, "right": C * {"a": 0.5, "b": -0.5}[kind]},
        title="C",
        classes="xyz",
        groups=[[0, 2], [1]],
        sliders=["eps"],
        eps=[0, 1],
        kind=["a", "b"],
    )
    told = frames(shown)
    assert [c["slider"] for c in told["controls"]] == [True, False] and told["classes"] == ["x", "z", "y"]
    left, right = told["frames"][2]  # eps 1, kind a
    assert left == {"title": "left", "matrix": [[1.0, 0.8, 0.11], [0.8, 1.0, 0.2], [0.11, 0.2, 1.0]]}
    assert right["matrix"][0] == [0.5, 0.4, 0.06] and told["frames"][3][1]["matrix"][0] == [-0.5, -0.4, -0.06]


def test_images_to_move_are_those_given():
    x = torch.arange(2 * 3 * 4, dtype=torch.float).view(2, 3, 2, 2) / 24
    (panel,) = frames(plots.moving(lambda k: (x, ["</script>", "b"]), title="x", k=["one"]))["frames"][0]
    assert panel["labels"] == ["</script>", "b"]
    pixels = Image.open(io.BytesIO(base64.b64decode(panel["images"][1].split(",")[1])))
    np.testing.assert_array_equal(np.array(pixels).transpose(2, 0, 1), (255 * x[1]).round())


def test_numbers_beside_images_are_bars():
    z = {"cat": torch.tensor(-1.234), "dog": 2.0}
    (panel,) = frames(plots.moving(lambda k: {"logits": z}, title="x", k=["one"]))["frames"][0]
    assert panel == {"title": "logits", "bars": [["cat", -1.23], ["dog", 2.0]]}


def test_a_figure_without_a_choice_or_with_an_unknown_slider_is_an_error():
    for wrong in ({}, {"kind": []}, {"kind": ["a"], "sliders": ["eps"]}):
        with pytest.raises(InputError):
            plots.moving(lambda **_: torch.eye(2), title="C", classes="ab", **wrong)
