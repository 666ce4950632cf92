"""Batch norm folded into the convolutions before it, for as long as a frozen network is run many times."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from lrc.linearization.tracing import PREFIX, trace, twin
from lrc.utils.networks import compiled

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ROUNDING = 1e-3  # of the largest logit: what folding may change; a graph that was read wrongly changes more

Pair = tuple[Any, Any]
"""A convolution, and the batch norm with running statistics that alone takes its output."""


@dataclass
class Folding:
    """A network in two states: as it is, and with batch norm folded, which computes the same but for rounding.

    Its own code runs in both, with its hooks: only the forward of a pair's two layers differs.

    Attributes:
        pairs: the layers that differ; none where the network could not be read.
    """

    pairs: list[Pair]
    _ways: list[tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.pairs)

    @contextmanager
    def folded(self) -> Iterator[None]:
        """The network is folded meanwhile, with the weights that it has on entering."""
        assert not self._ways, "folded already"
        self._ways = [way for pair in self.pairs for way in _ways(*pair)]
        try:
            self._switch(on=True)
            yield
        finally:
            self._switch(on=False)
            self._ways = []

    @contextmanager
    def undone(self) -> Iterator[None]:
        """The network is as it was meanwhile."""
        self._switch(on=False)
        try:
            yield
        finally:
            self._switch(on=True)

    def _switch(self, *, on: bool) -> None:
        for held, forward in self._ways:
            if on:
                held["forward"] = forward
            else:
                held.pop("forward", None)


def folding(model: nn.Module, x: Tensor) -> Folding:
    """What of a network in eval mode can be folded: convolutions whose output one batch norm takes, and nothing else.

    The graph is read by `trace`, and the result tried on a copy of the network. Where either fails, or the network is
    compiled, nothing is folded; layers with hooks or parametrizations stay as they are. What was found is kept for as
    long as the network has the same modules with the same settings.

    Args:
        model: left as it was.
        x: images, at least one, on which the copy is tried.
    """
    own = list(model.modules())
    if not len(x) or not any(type(m) in NORMS for m in own) or any(map(compiled, own)):
        return Folding([])
    facts = _facts(own)
    known = _KNOWN.get(model)
    if known is None or known[0] != facts:
        known = _KNOWN[model] = (facts, own[1:], _tried(model, x[:2]))  # with the modules, or ids would be used again
    return Folding(_of(model, known[2]))


_KNOWN: WeakKeyDictionary[nn.Module, tuple[list[Any], list[nn.Module], list[tuple[str, str]]]] = WeakKeyDictionary()


def _facts(own: list[nn.Module]) -> list[Any]:
    """The modules, whether they were changed, and their settings: what the graph of a network may depend on."""
    plain = (bool, int, float, str, type(None))
    settings = ({k: v for k, v in vars(m).items() if k != "training" and isinstance(v, plain)} for m in own)
    return [(id(m), _changed(m), *s.items()) for m, s in zip(own, settings, strict=True)]


def _tried(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Paths of the pairs, if a copy with these folded gives the same logits."""
    try:
        found = _read(model)
        copy = twin(model)
        tried = Folding(_of(copy, found))
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            before = copy(x.clone())
            with tried.folded():
                after = copy(x.clone())
    except Exception:  # the network's own code, on stand-ins for tensors and in a copy: anything may be raised
        return []
    if not isinstance(before, Tensor) or before.shape != after.shape or not before.numel():
        return []
    apart = (after - before).abs().max()
    return found if apart <= ROUNDING * before.abs().max() else []


def _read(model: nn.Module) -> list[tuple[str, str]]:
    """Paths of the pairs in the graph of the network.

    Raises:
        InputError: it cannot be traced.
    """
    root, graph = trace(model, ())  # which looks into no layer of torch.nn
    nodes = list(graph.nodes)
    calls = [n.target for n in nodes if n.op == "call_module"]

    def once(node: Any, kinds: tuple[type, ...]) -> bool:
        """Whether the node is a plain layer of these classes, used nowhere else."""
        if not isinstance(node, fx.Node) or node.op != "call_module" or calls.count(node.target) > 1:
            return False
        layer = root.get_submodule(str(node.target))
        return type(layer) in kinds and not _changed(layer)

    found = []
    for node in nodes:
        if once(node, NORMS) and once(before := node.args[0], CONVOLUTIONS) and len(before.users) == 1:
            norm: Any = root.get_submodule(str(node.target))
            if norm.running_mean is not None and norm.running_var is not None:
                found.append((_path(before), _path(node)))
    return found


def _path(node: fx.Node) -> str:
    return str(node.target).removeprefix(PREFIX)


def _of(model: nn.Module, paths: list[tuple[str, str]]) -> list[Pair]:
    return [(model.get_submodule(conv), model.get_submodule(norm)) for conv, norm in paths]


def _changed(module: nn.Module) -> bool:
    """Whether it does something else than its class says."""
    return "forward" in vars(module) or any(held for name, held in vars(module).items() if name.endswith("_hooks"))


def _ways(conv: Any, norm: Any) -> list[tuple[dict[str, Any], Callable[[Tensor], Tensor]]]:
    """What the two layers do while they are folded."""
    with torch.no_grad():
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
        bias = shift * scale if norm.bias is None else shift * scale + norm.bias
        weight = conv.weight * scale.view(-1, *[1] * (conv.weight.dim() - 1))
    return [(vars(conv), lambda x: conv._conv_forward(x, weight, bias)), (vars(norm), lambda x: x)]
