"""Python 3.11 to 3.13, and the oldest and newest PyTorch of the range: `nox`, or `nox -s "tests-3.13(newest)"`."""

import tomllib
from pathlib import Path

import nox

nox.options.error_on_missing_interpreters = False
OLDEST = {"torch": "torch~=2.11.0", "torchvision": "torchvision~=0.26.0"}


@nox.session(python=["3.11", "3.12", "3.13"])
@nox.parametrize("torch", ["oldest", "newest"], ids=["oldest", "newest"])
def tests(session: nox.Session, torch: str) -> None:
    """The tests, less notebooks, on one Python and one PyTorch; arguments go to pytest."""
    given = tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
    pinned = list(OLDEST.values()) if torch == "oldest" else [d for d in given if d.startswith("torch")]
    session.install("-e", ".[test]", *pinned)
    session.run("pytest", "-n", "2", "--dist", "loadfile", *(session.posargs or ["tests"]))
