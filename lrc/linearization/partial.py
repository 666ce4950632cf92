"""Which part of a network stays non-linear."""

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Any

from torch import fx, nn

from lrc.linearization.inplace import out_of_place
from lrc.linearization.surgery import Surgery
from lrc.linearization.tracing import PREFIX
from lrc.utils.errors import InputError


def first_path(model: nn.Module, name: Any) -> str:
    """The first path of the module at the path `name`, which differs where the network holds it under several.

    Raises:
        InputError: there is none; the message has those that look like it.
    """
    if not isinstance(name, str):
        raise InputError(
            f"{repr(name).splitlines()[0]} is no path of a module: give one of model.named_modules(), like 'layer1.0'"
        )
    paths = dict(model.named_modules(remove_duplicate=False))
    if name not in paths:
        near = get_close_matches(name, paths, cutoff=0.5) or [path for path in paths if path][:5]
        message = f"{type(model).__name__} has no module {name!r}: did you mean {' or '.join(map(repr, near))}?"
        raise InputError(message)
    return next(path for path, module in paths.items() if module is paths[name])


def kept_nodes(surgery: Surgery, keep: Sequence[Any], start: str | None, stop: str | None) -> set[fx.Node]:
    """The nodes that linearization leaves alone.

    Args:
        surgery: of the traced network.
        keep: paths of modules and operations.
        start, stop: paths of modules: what runs before the one or after the other is kept.

    Raises:
        InputError: a module or an operation that the network does not run, or nothing left between start and stop.
    """
    nodes = list(surgery.graph.nodes)
    paths = [name for name in keep if isinstance(name, str)]
    wanted = {out_of_place(operation) for operation in keep if not isinstance(operation, str)}
    _check_run(surgery, paths, wanted)
    low = 0 if start is None else min(_run_by(nodes, start))
    high = len(nodes) if stop is None else max(_run_by(nodes, stop)) + 1
    if low >= high:
        raise InputError(f"nothing to linearize: {start!r} runs after {stop!r}")
    return {
        node
        for i, node in enumerate(nodes)
        if node.op.startswith("call")
        and (
            not low <= i < high
            or out_of_place(surgery.operation(node)) in wanted
            or any(inside(node, path) for path in paths)
        )
    }


def _check_run(surgery: Surgery, paths: Sequence[str], wanted: Collection[Any]) -> None:
    """What is to be kept must run, a module by itself or inside another that is kept."""
    nodes = [node for node in surgery.graph.nodes if node.op.startswith("call")]
    operations = {out_of_place(surgery.operation(node)) for node in nodes}
    for operation in wanted:
        if operation not in operations:
            known = sorted({getattr(o, "__name__", str(o)) for o in operations if surgery.rules.get(o) is not None})
            name = getattr(operation, "__name__", operation)
            raise InputError(f"keep: the network does not call {name}; it calls {', '.join(known)}")
    for path in paths:
        if not any(path.startswith(f"{outer}.") for outer in paths) and "" not in paths:
            _run_by(nodes, path)


def _run_by(nodes: Sequence[fx.Node], path: str) -> list[int]:
    """The places of the nodes that a module runs."""
    places = [i for i, node in enumerate(nodes) if inside(node, path)]
    if not places:
        raise InputError(f"{path!r} is not run in eval mode, or runs inside a module that is taken as a whole")
    return places


def inside(node: fx.Node, path: str) -> bool:
    """Whether the module at the path runs the node."""
    paths = [inner for inner, _ in node.meta.get("nn_module_stack", {}).values()]
    paths = [f"{inner}." for inner in (*paths, *([str(node.target)] if node.op == "call_module" else []))]
    return any(inner.startswith(f"{PREFIX}{path}.".replace("..", ".")) for inner in paths)
