"""linearize: from a network to its linear sub-network."""

from typing import Any, get_args

from torch import fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lrc.errors import InputError
from lrc.linearization.rules import RULES, VIEWS
from lrc.linearization.surgery import BatchNorm, Pooling, Surgery, functionalize, refuse
from lrc.linearization.tracing import PREFIX, trace

__all__ = ["linearize"]

UNKNOWN = (
    "no rule says what becomes of it: take it out of the network (a softmax after the logits, say), or give it or the "
    "module around it a rule in lrc.linearization.RULES"
)


def linearize(model: nn.Module, *, batchnorm: BatchNorm = "remove", pooling: Pooling = "average") -> fx.GraphModule:
    """The linear sub-network of a classifier: its non-linear parts taken out, everything else kept.

    Activations and dropout become the identity and max pooling becomes average pooling; convolutions, linear layers,
    average pooling, shortcuts, concatenation, reshaping and arithmetic with constants stay (Bai et al. 2021, sec. 3).
    Which operation becomes what is the table `lrc.linearization.RULES`. The network is read as it is in eval mode, so
    an auxiliary head that only training uses is left out.

    Args:
        model: images to logits; any network that `torch.fx` can trace. It is left as it was, and its forward hooks are
            not called: what they would change is not seen.
        batchnorm: "remove" drops batch norm altogether (the paper's choice), "fold" keeps the affine map that it is in
            eval mode.
        pooling: "average" puts nn.AvgPool2d in place of nn.MaxPool2d with the same geometry and counts the padding as
            zeros (the paper's choice); "average_inside" leaves the padding out of the mean, as max pooling leaves it
            out of the maximum.

    Returns:
        An affine function of its input, in eval mode. It holds the parameters of `model` themselves, neither copied nor
        detached: a training step or `.to(...)` on one shows in the other. `copy.deepcopy` it first to keep them apart.

    Raises:
        InputError: an operation without a rule, or a product of two values that both depend on the image; the message
            names it and its place in the network. Or a network that cannot be traced.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10))
    >>> linear = linearize(model)
    >>> [node.name for node in linear.graph.nodes]
    ['x', 'model_0', 'avg_pool2d', 'model_3', 'model_4', 'output']
    >>> x, y = torch.rand(2, 5, 3, 8, 8)
    >>> torch.allclose(linear(x) + linear(y), linear(x + y) + linear(0 * x), atol=1e-5)
    True
    """
    _check(batchnorm, pooling)
    root, graph = trace(model, RULES)
    surgery = Surgery(root, graph, RULES, batchnorm, pooling)
    surgery.mark()
    if graph.output_node() not in surgery.data:
        raise InputError(f"the output of {type(model).__name__} does not depend on its input: nothing to linearize")
    functionalize(surgery, VIEWS)
    surgery.drop_unused()
    for node in [n for n in graph.nodes if n in surgery.data and n.op.startswith("call")]:
        rule = surgery.rule(node)
        if rule is None:
            refuse(surgery, node, UNKNOWN)
        rule(surgery, node)
    surgery.drop_unused()
    return _assemble(model, surgery)


def _check(batchnorm: str, pooling: str) -> None:
    for name, choice, choices in (
        ("batchnorm", batchnorm, get_args(BatchNorm)),
        ("pooling", pooling, get_args(Pooling)),
    ):
        if choice not in choices:
            raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}, not {choice!r}")


def _assemble(model: nn.Module, surgery: Surgery) -> fx.GraphModule:
    """The module that runs the graph: tensors of the model, in modules of its own."""
    parts: dict[str, Any] = {}
    for node in surgery.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            part = surgery.part(node.target)
            node.target = str(node.target).removeprefix(PREFIX)
            parts[node.target] = _twin(part) if isinstance(part, nn.Module) else part
    linear = fx.GraphModule(parts, surgery.graph, class_name=f"Linear{type(model).__name__}")
    if hasattr(model, "input_shape"):
        linear.input_shape = model.input_shape
    return linear.eval()


def _twin(module: nn.Module) -> nn.Module:
    """A module like this one around the same tensors, in eval mode, without hooks but those that make its weights."""
    twin = module.__new__(type(module))
    for name, value in vars(module).items():
        twin.__dict__[name] = value.copy() if isinstance(value, dict) else value
        if name.endswith("_hooks"):
            kept = {key: hook for key, hook in value.items() if isinstance(hook, WeightNorm | SpectralNorm)}
            twin.__dict__[name] = type(value)(kept)
    twin.__dict__["_modules"] = {name: child and _twin(child) for name, child in module._modules.items()}
    twin.training = False
    return twin
