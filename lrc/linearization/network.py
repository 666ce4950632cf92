"""linearize: from a network to its linear sub-network."""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import FunctionType
from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor, fx, nn

from lrc.linearization.checking import image_shape, read_right, verified
from lrc.linearization.compound import write_out
from lrc.linearization.gates import gate_means
from lrc.linearization.inplace import functionalize, out_of_place
from lrc.linearization.operations import DROPOUT
from lrc.linearization.partial import first_path, kept_nodes
from lrc.linearization.rules import REMOVING, VIEWS, extended
from lrc.linearization.surgery import BatchNorm, Change, Pooling, Surgery, describe, expression, identity, refuse
from lrc.linearization.tracing import PREFIX, Whole, silence, trace, twin
from lrc.linearization.vision import join_torchvision
from lrc.utils.checks import check_network, check_rows
from lrc.utils.errors import InputError


@dataclass(frozen=True)
class Report:
    """What became of the operations of a network that linearization changed, in the order in which they run."""

    changes: tuple[Change, ...]

    def __str__(self) -> str:
        """One line for all operations of a kind that became the same for the same reason, with their number."""
        counts = Counter((c.operation, c.became, c.convention) for c in self.changes)
        return "\n".join(f"{n} x {operation}: {became} ({why})" for (operation, became, why), n in counts.items())


def linearize(
    model: nn.Module,
    *,
    batchnorm: BatchNorm = "remove",
    pooling: Pooling = "average",
    rules: Mapping[Any, Any] | None = None,
    gates: Float[Tensor, "n *input"] | None = None,
    keep: str | Callable[..., Any] | Collection[Any] = (),
    start: str | None = None,
    stop: str | None = None,
    input_shape: Sequence[int] | None = None,
    verify: bool = True,
) -> fx.GraphModule:
    """The linear sub-network of a classifier: its non-linear parts taken out, everything else kept.

    Activations and dropout become the identity and max pooling becomes average pooling; convolutions, linear layers,
    average pooling, shortcuts, concatenation, reshaping and arithmetic with constants stay (Bai et al. 2021, sec. 3).
    What the paper's networks do not have follows the same idea: norms go as batch norm does, a gate that multiplies a
    branch is open, attention mixes its values uniformly. Which operation becomes what is the table
    `lrc.linearization.RULES`. The network is read as it is in eval mode, so an auxiliary head that only training uses
    is left out. Of what only shapes depend on (the scores of an attention, what opens a gate) nothing is asked.

    Args:
        model: images to logits. It is left as it was: a twin of it is read, and that without its forward hooks: what
            they would change is not seen. Of an output that is an object, the logits are taken.
        batchnorm: "remove" drops batch norm altogether (the paper's choice), "fold" keeps the affine map that it is in
            eval mode. Norms that take no recorded statistics (of layers, groups, instances) are dropped in both.
        pooling: "average" puts nn.AvgPool2d in place of nn.MaxPool2d with the same geometry and counts the padding as
            zeros (the paper's choice); "average_inside" leaves the padding out of the mean, as max pooling leaves it
            out of the maximum.
        rules: what becomes of further operations, or of known ones, in this call. From the class of a module (which is
            then taken as a whole) or a function to "identity", to "linear" (kept, linear in its first argument), to a
            rule such as `RULES[nn.MaxPool2d]` (a function of surgery and node), or to a module or a function to call in
            its place: with the same arguments, a function in the place of a module after that module itself.
        gates: images; gates are set to their means over them (of feature maps a mean a channel, over positions too)
            instead of being opened.
        keep: what stays non-linear: paths of modules as in `named_modules`, with all that is in them, and operations
            as the table has them (nn.ReLU is the module, F.relu the function); one, or several in a tuple.
        start: path of the module that linearization begins with; what runs before it is kept.
        stop: path of the module that it ends with; what runs after it is kept.
        input_shape: of one image; `model.input_shape` if absent. It is needed where forward looks at shapes (`assert`,
            `if`, `range`, padding to "same"), which is then run on examples, and for `verify`.
        verify: check on random images of that shape, if it is known, that the graph read from the network gives what
            the network gives, and, where all is linearized, that the result is affine and finite (in float64) and that
            each logit depends on the image. It takes about as long as six forward passes.

    Returns:
        An affine function of its input, in eval mode; with `keep`, `start` or `stop` a function that is not affine, for
        what was kept is as it was. It holds the parameters of `model` themselves, neither copied nor detached: a
        training step or `.to(...)` on one shows in the other. `copy.deepcopy` it first to keep them apart. Its
        attribute `report` is the table of what became of what, and by which convention.

    Raises:
        InputError: an operation without a rule, or a product of two values that both depend on the image where neither
            is a gate; the message names it, its place in the network and the ways past it. Or a network that cannot be
            traced, that draws at random, names that it does not have, a rule that is none or matches nothing, or what
            `verify` found wrong.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10))
    >>> linear = linearize(model)
    >>> [node.name for node in linear.graph.nodes]
    ['x', 'model_0', 'avg_pool2d', 'model_3', 'model_4', 'output']
    >>> x, y = torch.rand(2, 5, 3, 8, 8)
    >>> torch.allclose(linear(x) + linear(y), linear(x + y) + linear(0 * x), atol=1e-5)
    True
    >>> [node.name for node in linearize(model, keep=(nn.ReLU,)).graph.nodes]
    ['x', 'model_0', 'model_1', 'avg_pool2d', 'model_3', 'model_4', 'output']
    """
    check_network(model)
    if rules is not None and not isinstance(rules, Mapping):
        raise InputError(f"rules must be a mapping of operations to rules, not {type(rules).__name__}")
    if not (isinstance(keep, str | Collection) or callable(keep)):
        raise InputError(f"keep must be a name, a layer or several of these, not {type(keep).__name__}")
    for option, name in (("start", start), ("stop", stop)):
        if not isinstance(name, str | None):
            raise InputError(f"{option} must be the name of a module, not {type(name).__name__}")
    keep = (keep,) if isinstance(keep, str) or callable(keep) else tuple(keep)
    join_torchvision()
    table = extended(rules)
    _check(batchnorm, pooling)
    whole = getattr(model, "_orig_mod", model)
    keep = tuple(first_path(whole, part) if isinstance(part, str | nn.Module) else part for part in keep)
    start, stop = (name if name is None else first_path(whole, name) for name in (start, stop))
    shape = getattr(model, "input_shape", None) if input_shape is None else input_shape
    shape = None if shape is None else image_shape(shape)
    root, graph = trace(model, {*table, *keep}, [name for name in keep if isinstance(name, str)], shape)
    surgery = Surgery(root, graph, table, batchnorm, pooling)
    _check_called(surgery, rules or {})
    surgery.kept.update(kept_nodes(surgery, keep, start, stop))
    write_out(surgery)
    early = functionalize(surgery, VIEWS, REMOVING, run_first=gates is not None)
    if verify and early and shape is not None:
        read_right(_assemble(model, root, copy.deepcopy(graph)), Whole(twin(whole)), shape)
    if gates is not None:
        check_rows("gates", gates)
        gate_means(surgery, _assemble(model, root, copy.deepcopy(graph)), gates)
    _operate(surgery, type(model).__name__)
    places = {node.name: describe(surgery, node) for node in surgery.data}
    linear = _assemble(model, root, graph)
    report: Any = Report(tuple(reversed(surgery.changes)))  # typed as what modules may hold is
    linear.report = report
    if verify and shape is not None and not keep and start is None and stop is None:
        verified(linear, shape, places, lambda: Whole(twin(whole)))
    return linear


def _check(batchnorm: str, pooling: str) -> None:
    for name, choice, choices in (
        ("batchnorm", batchnorm, get_args(BatchNorm)),
        ("pooling", pooling, get_args(Pooling)),
    ):
        if not isinstance(choice, str) or choice not in choices:
            raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}, not {choice!r}")


def _check_called(surgery: Surgery, rules: Mapping[Any, Any]) -> None:
    """The tracer sees a call of a function only by a global name; elsewhere it reads what the function does."""
    called = {surgery.operation(node) for node in surgery.graph.nodes if node.op.startswith("call")}
    for operation in rules:
        if operation not in called and out_of_place(operation) not in map(out_of_place, called):
            name = expression(operation)
            own = isinstance(operation, FunctionType) and not operation.__module__.startswith("torch")
            same = [expression(o) for o in called if expression(o).split(".")[-1] == name.split(".")[-1]]
            raise InputError(
                f"rules: no call of {name} was seen: "
                + (f"the network calls {' and '.join(same)}" if same else "leave the rule out if nothing calls it")
                + ("; its caller must know it by a global name, not as an attribute; else make it a module" * own)
            )


def _operate(surgery: Surgery, name: str) -> None:
    """Applies the rules from the output backwards: a gate is known by the product that it enters."""
    surgery.mark()
    _check_output(surgery, name)
    surgery.drop_unused()
    unknown = None
    for node in reversed(list(surgery.graph.nodes)):
        if node in surgery.data and node not in surgery.kept and node.op.startswith("call"):
            rule = surgery.rule(node)
            unknown = node if rule is None else unknown
            if rule is not None:
                rule(surgery, node)
    for node in [n for n in surgery.graph.nodes if surgery.operation(n) in DROPOUT and n not in surgery.kept]:
        identity(surgery, node)  # on what has become constant
    if unknown is not None:  # the first that runs, whatever comes after it
        refuse(surgery, unknown, "no rule says what becomes of it")
    surgery.mark()
    _check_output(surgery, name)
    surgery.drop_unused()


def _check_output(surgery: Surgery, name: str) -> None:
    if surgery.graph.output_node() not in surgery.data:
        raise InputError(f"the output of {name} does not depend on its input: nothing to linearize")


def _assemble(model: nn.Module, root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """The module that runs the graph: tensors of the model, in modules of its own."""
    parts: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            part = attrgetter(str(node.target))(root)
            node.target = str(node.target).removeprefix(PREFIX)
            parts[node.target] = _twin(part) if isinstance(part, nn.Module) else part
            if getattr(parts[node.target], "inplace", False) is True:
                parts[node.target].inplace = False  # what it changes may by now be the value of other nodes too
    linear = fx.GraphModule(parts, graph, class_name=f"Linear{type(model).__name__}")
    if hasattr(model, "input_shape"):
        linear.input_shape = model.input_shape
    return linear.eval()


def _twin(module: nn.Module) -> nn.Module:
    """A module like this one around the same tensors, in eval mode, without hooks but those that make its weights."""
    twin = module.__new__(type(module))
    for name, value in vars(module).items():
        twin.__dict__[name] = value.copy() if isinstance(value, dict) else value
    silence(twin)
    twin.__dict__["_modules"] = {name: child and _twin(child) for name, child in module._modules.items()}
    twin.training = False
    return twin
