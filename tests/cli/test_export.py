"""`lrc export`: files that other programs read hold the maps and their C, whole or not at all."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

import lrc
from lrc import Images, InputError, cli
from lrc.hierarchy import Hierarchy
from lrc.inspection import class_means, maps, save
from lrc.inspection.exports import ENDINGS

CLASSES = ("red, dark", "pink", "blue", "na|vy")
ENDINGS_OF_ALL = ["C.csv", "J.npy", "all.npz", "all.safetensors", "all.json", "all.md"]
NETWORK = (
    "import torch\nfrom torch import nn\ndef net():\n    torch.manual_seed(0)\n"
    "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 16))\n"
)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 4))


class Squared(nn.Module):
    """Which has no linear sub-network."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) ** 2


@pytest.fixture(scope="module")
def data() -> Images:
    x = torch.randint(0, 256, (20, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    groups = Hierarchy.of({"warm": CLASSES[:2], "cold": CLASSES[2:]}, CLASSES)
    return Images(x, torch.arange(20) % 4, CLASSES, groups)


def test_each_format_holds_what_the_network_is(data, tmp_path):
    """The network is linear, so that W and every local map are its weights, whatever the package does."""
    weights = linear()[1].weight.detach().view(4, 3, 4, 4)
    rows = (weights - weights.mean(0)).flatten(1).double().numpy()
    C = (rows @ rows.T) / np.outer(*[np.linalg.norm(rows, axis=1)] * 2)
    found = maps(linear(), data, local=6)
    for name in ENDINGS_OF_ALL:
        save(found, tmp_path / name, of="local")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(ENDINGS_OF_ALL)
    assert np.allclose(np.load(tmp_path / "J.npy"), weights, atol=1e-6)
    head, *lines = csv.reader((tmp_path / "C.csv").read_text().splitlines())
    assert tuple(head[1:]) == CLASSES == tuple(line[0] for line in lines)
    written = np.load(tmp_path / "all.npz")  # which refuses pickles
    kept = load_file(tmp_path / "all.safetensors")
    with safe_open(tmp_path / "all.safetensors", framework="pt") as file:
        assert tuple(json.loads(file.metadata()["classes"])) == CLASSES == tuple(written["classes"])
    told = json.loads((tmp_path / "all.json").read_text())
    for matrix in (
        [[*map(float, line[1:])] for line in lines], written["W_C"], written["local_C"], kept["local_C"].numpy(),
        told["C"]["mean local map"],
    ):  # fmt: skip
        assert np.allclose(matrix, C, atol=1e-5)
    assert np.allclose(written["means_rows"], class_means(data), atol=1e-7)
    assert torch.equal(kept["means_rows"], torch.from_numpy(written["means_rows"]))
    between = (C[0, 2] + C[0, 3] + C[1, 2] + C[1, 3]) / 4
    assert told["maps"]["mean local map"]["contrast"] == pytest.approx((C[0, 1] + C[2, 3]) / 2 - between, abs=1e-5)
    assert told["classes"] == list(CLASSES) and told["groups"] == [[0, 1], [2, 3]] and "verdict" not in told


def test_markdown_has_as_many_cells_in_each_row(data, tmp_path):
    save(maps(linear(), data, local=6), tmp_path / "all.md")
    text = (tmp_path / "all.md").read_text().replace("\\|", "")
    for table, width in zip(text.split("\n\n")[1::2], (6, 5), strict=True):
        assert {line.count("|") for line in table.splitlines()} == {width + 1}


def test_an_inspection_is_written_as_maps_are(data, tmp_path):
    save(lrc.inspect(linear(), data, local=6, masking=False), tmp_path / "all.json")
    assert json.loads((tmp_path / "all.json").read_text())["verdict"]["word"]


def test_only_what_is_wanted_is_computed(data, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("lrc.inspection.clusters.mean_local_map", refused)
    found = maps(linear(), data, only=("W",), groups="none")
    assert found.W is not None and found.local is found.means is None


@pytest.mark.parametrize(
    ("name", "of", "says"),
    [
        ("C.txt", "W", "ends in none of .csv, "),
        ("C", "W", "ends in none of .csv, "),
        ("no/C.csv", "W", "cannot be written"),
        ("C.csv", "V", "map"),
        ("W.npy", "W", "has no linear sub-network W to write"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(data, tmp_path, name, of, says):
    found = maps(Squared(), data, local=6)
    assert found.W is None and found.local is not None
    with pytest.raises(InputError, match=says):
        save(found, tmp_path / name, of=of)
    assert not [*tmp_path.iterdir()]


def test_a_file_that_is_there_stays_where_writing_fails(data, tmp_path, monkeypatch):
    found, path = maps(linear(), data, local=6), tmp_path / "W.npy"
    path.write_text("mine")
    monkeypatch.setattr("numpy.save", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save(found, path)
    assert [p.name for p in tmp_path.iterdir()] == ["W.npy"] and path.read_text() == "mine"


def test_the_command_writes_by_the_ending_and_refuses_before_it_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(NETWORK)
    words = ["export", "mine.py:net", "--data", "shapes", "--images", "32", "--groups", "none"]
    result = CliRunner().invoke(cli.app, [*words, "--out", "C.csv", "--out", "W.npy"])
    assert result.exit_code == 0 and result.output.splitlines()[:2] == ["C.csv", "W.npy"], result.output
    assert np.load("W.npy").shape == (16, 3, 32, 32)
    result = CliRunner().invoke(cli.app, [*words, *(word for e in ENDINGS for word in ("--out", f"all{e}")), "-q"])
    assert result.exit_code == 0 and not result.output and {p.suffix for p in tmp_path.glob("all*")} == {*ENDINGS}
    for option in (
        ["--out", "C.txt"],
        ["--out", "no/C.csv"],
        ["--out", "a.csv", "--map", "V"],
        ["--out", "a.csv", "--groups", "no.toml"],
    ):
        result = CliRunner().invoke(cli.app, ["export", "no.py:net", *option])
        assert isinstance(result.exception, InputError) and option[-1] in str(result.exception)
