"""On a second device, CUDA or one as strict, everything gives what it gives on the CPU."""

import subprocess
import sys
from inspect import isfunction
from pathlib import Path

import pytest
from on_second_device import CASES

from lrc import attacks, clustering, evaluation, linearization

SCRIPT = Path(__file__).with_name("on_second_device.py")


@pytest.fixture(scope="module")
def says():
    """What was said of each case, in a process whose accelerator the device is."""
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return dict(line.split(": ", 1) for line in run.stdout.splitlines())


@pytest.mark.parametrize("name", CASES)
def test_the_second_device_gives_what_the_cpu_gives(says, name):
    assert says[name] == "same"


def test_every_public_function_has_a_case():
    rooms = {"attacks": attacks, "clustering": clustering, "evaluation": evaluation, "linearization": linearization}
    public = {f"{name}.{f}" for name, room in rooms.items() for f in room.__all__ if isfunction(getattr(room, f))}
    assert public - set(CASES) == set()
