"""Processes share linear maps: what one process computes, whatever their number."""

import subprocess
import sys
from pathlib import Path

import torch
from mapping import CHUNKS, CLASSES, SIZES, maps

SCRIPT = Path(__file__).parents[1].joinpath("mapping.py")
COMMAND = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def test_three_processes_share_the_rows_and_the_images(tmp_path):
    processes, alone = 3, maps(tmp_path)
    run = subprocess.run([*COMMAND, str(processes), SCRIPT, tmp_path], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(processes)]
    for chunk in CHUNKS:
        (W, b), name = alone[f"W {chunk}"], f"W {chunk}"
        for found in ranks:
            if chunk:  # the same backward passes, whoever runs them
                assert torch.equal(found[name][0], W)
            torch.testing.assert_close(found[name][0], W, rtol=1e-5, atol=1e-6 * W.abs().max())
            assert torch.equal(found[name][0], ranks[0][name][0]) and torch.equal(found[name][1], b)
        shares = [found[f"rows {chunk}"] for found in ranks]
        assert alone[f"rows {chunk}"] == CLASSES == sum(shares) and max(shares) - min(shares) <= 2
    for name in ("on the disk", *(f"local {n}" for n in SIZES)):
        for found in ranks:
            assert torch.equal(found[name], ranks[0][name])
    assert torch.equal(ranks[0]["on the disk"], alone["W 2"][0])
    assert (tmp_path / "W.safetensors").exists()
    for n in SIZES:  # in float64, where a sum in another order differs by 1e-16 of its terms
        torch.testing.assert_close(ranks[0][f"local {n}"], alone[f"local {n}"], rtol=1e-12, atol=1e-14)
