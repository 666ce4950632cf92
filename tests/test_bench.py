"""The page of times: ratios within a turn, and slopes."""

import bench
import pytest


def test_the_slope_is_the_power_of_the_size():
    assert bench.slope({str(n): [2 * n**1.5, 3 * n**1.5, n**1.5] for n in (2, 4, 16)}) == pytest.approx(1.5, abs=1e-5)


def test_a_ratio_is_one_of_times_of_the_same_turn():
    """A machine that is twice as slow in one turn changes none."""
    part = {"title": "T", "against": "other", "versions": {}, "load": 0.0}
    part["seconds"] = {"other": [2.0, 4.0, 2.0], "ours": [1.0, 2.0, 1.5]}
    lines = bench.page({"CPU": {"pgd": part}}).splitlines()
    assert "| other | 2 | 1.00 (1.00 to 1.00) | 3 |  |" in lines
    assert "| ours | 1.5 | 0.50 (0.50 to 0.75) | 3 |  |" in lines
