"""The rooms of the house: imports go downwards only, and in no circle. Read from the sources, nothing is run."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lrc"
ROOMS = ["utils", "hierarchy", "linearization", "clustering", "models", "data", "attacks", "evaluation", "training"]
ROOMS += ["plots", "experiments", "inspection", "cli"]
MODULES = {
    ".".join(("lrc", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def statements(tree, *, inside):
    """The imports of a module; `inside` functions too. Not those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(ast.Module(node.orelse, []), inside=inside)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif inside or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from statements(node, inside=inside)


def imported(name, *, inside=True):
    """The modules of the package that a module imports by name."""
    found = set()
    for node in statements(ast.parse(MODULES[name].read_text()), inside=inside):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{name} imports by a relative name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {module for module in found if module in MODULES} - {name}


def room(name):
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name)))
def test_imports_go_down_to_the_rooms_below(name):
    above = {room(other) for other in imported(name) if room(other)} - set(ROOMS[: ROOMS.index(room(name)) + 1])
    assert not above, f"{name} is in {room(name)} and imports from {above}"
    assert room(name) == "cli" or "lrc" not in imported(name), f"{name} imports the public names"


def test_nothing_but_inspection_and_the_commands_imports_the_experiments():
    knowing = {room(name) for name in MODULES if any(room(other) == "experiments" for other in imported(name))}
    assert knowing == {"experiments", "inspection", "cli"}


def test_there_is_no_circle_of_imports():
    """Of modules; that a module needs the `__init__` of its own room is left to Python."""
    graph = {name: {m for m in imported(name, inside=False) if not name.startswith(m)} for name in MODULES}
    assert len([*TopologicalSorter(graph).static_order()]) == len(MODULES)
