"""Products of values that all depend on the image: which factor is a gate, and what a gate is set to."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn

from lrc.linearization import operations as ops
from lrc.linearization.inplace import copied
from lrc.linearization.surgery import Operation, Surgery, first, others, refuse
from lrc.linearization.tracing import like
from lrc.utils.errors import InputError, first_line

GATES: dict[Operation, tuple[int, float]] = {
    **{operation: (1, 1.0) for operation in ops.SELF_GATED},
    **{operation: (2, 1.0) for operation in (*ops.SATURATING, *ops.COMPARISONS, *ops.WITH_BOUNDS)},
    **{operation: (2, 6.0) for operation in (nn.ReLU6, F.relu6)},  # of x + 3 only: six times a hard sigmoid
    **{operation: (3, 1.0) for operation in ops.SIGMOIDS},
    **{operation: (4, 1.0) for operation in ops.SOFTMAX},
}
"""What makes a factor a gate: how surely, and its value where it is open. Of `tanh(a) * sigmoid(b)`, b is the gate."""

PASSING: set[Operation] = {
    *(*ops.ARRANGEMENTS, *ops.COPIES, *ops.MASKS, *ops.QUOTIENTS, *ops.SUMS, *ops.PRODUCTS, *ops.DROPOUT),
    *(*ops.PADDINGS, torch.where, Tensor.where, copied),
}
"""Operations between a gate and its product, or between scores and their softmax, that leave it what it is."""

UNIFORM, OPEN, DIVISOR = "attention mixes its values uniformly", "a gate is open", "a norm of features is set to one"


def product(surgery: Surgery, node: fx.Node) -> None:
    """Kept where one factor alone depends on the image; else the others must be gates, which become constants.

    A factor is a gate if all that it has of the image came through a sigmoid, a softmax or another saturating function,
    with nothing but arrangement, sums, multiples, masks and dropout after that (after a softmax linear layers too:
    heads that talk). A sigmoid becomes one, its value where the gate is open, or its mean over images (`gates`); what
    is done to it afterwards stays, so that in ``g * a + (1 - g) * b`` an open gate leaves a. A softmax becomes equal
    shares of all that it is taken over, or of what a constant mask leaves of that: attention mixes its values
    uniformly. Queries, keys and squeezed channels then matter by their shapes alone, and no rule is asked about them.
    Where both factors are gates, the surer one is. The least sure is the activated factor of ``silu(a) * b`` or
    ``gelu(a) * b``, a gate only beside a factor that is none: it too becomes one or its mean, which leaves b. That a is
    unbounded makes one a convention there, not its limit.

    A factor made of norms or deviations of features alone is the scale that a norm by hand multiplies by: it becomes
    one. The square of a ReLU is an activation, and becomes what the ReLU was taken of.

    Refused is a gate that is a feature as well, or one that the other factor was computed from: to hold it would take
    that out of the network too.
    """
    factors = surgery.data_among((node.args, node.kwargs))
    if len(factors) < 2:
        return
    if len(factors) == 2 and factors[0] is factors[1] and surgery.operation(factors[0]) in ops.RELUS:
        return surgery.take_out(node, factors[0], "activations are the identity")
    scales = [factor for factor in set(factors) if is_scale(surgery, factor)]
    if len(scales) < len(set(factors)):
        for scale in scales:
            set_to_one(surgery, node, scale)
        factors = [factor for factor in factors if factor not in scales]
    if len(factors) > 1:
        if (choice := _choose(surgery, factors)) is None:
            names = " and ".join(repr(factor.name) for factor in factors)
            reason = f"it multiplies {names}, which all depend on the image, and which is the gate is not clear"
            refuse(surgery, node, reason)
        value, held = choice
        for gate in held - surgery.kept:
            _check_gate(surgery, node, gate, value)
        for gate in held - surgery.kept:
            _hold(surgery, gate)
    surgery.mark()
    return None


def is_scale(surgery: Surgery, node: fx.Node) -> bool:
    """Whether all that a node has of the image came through norms, deviations or means of squares."""
    operation = surgery.operation(node)
    if operation in ops.DEVIATIONS:
        return True
    inputs = _inputs(surgery, node)
    if operation in ops.AVERAGES and inputs and not is_scale(surgery, inputs[0]):
        square = surgery.data_among((inputs[0].args, inputs[0].kwargs))
        even = surgery.operation(inputs[0])
        return even in (torch.abs, Tensor.abs) or (even in ops.PRODUCTS and len(square) == 2 and len({*square}) == 1)
    scaling = operation in PASSING or operation in ops.ELEMENTWISE or operation in ops.AVERAGES
    return scaling and bool(inputs) and all(is_scale(surgery, n) for n in inputs)


def set_to_one(surgery: Surgery, node: fx.Node, scale: fx.Node) -> None:
    """Puts ones in the place of a factor, or a divisor, of this one node."""
    surgery.note(node, f"{scale.name} set to one", DIVISOR)
    node.replace_input_with(scale, surgery.insert(node, torch.ones_like, scale))


def _choose(surgery: Surgery, factors: Sequence[fx.Node]) -> tuple[fx.Node, set[fx.Node]] | None:
    """The factor that is none of the gates, and the gates in the others; nothing where that is not clear."""
    found = [_gates(surgery, factor) or [] for factor in factors]
    ranks = [max((GATES[surgery.operation(gate)][0] for gate in gates), default=0) for gates in found]
    value = ranks.index(min(ranks))
    if ranks.count(ranks[value]) > 1:
        return None
    return factors[value], {gate for i, gates in enumerate(found) if i != value for gate in gates}


def _check_gate(surgery: Surgery, node: fx.Node, gate: fx.Node, value: fx.Node) -> None:
    """Refuses a gate that is more than that."""
    reached, ahead = {value}, [value]
    while ahead:
        new = {n for n in ahead.pop().all_input_nodes if n in surgery.data and not n < gate} - reached
        reached, ahead = reached | new, [*ahead, *new]
    if gate in reached:
        refuse(surgery, node, f"{gate.name!r} is its gate, and its other factor {value.name!r} is computed from that")
    seen, ahead = {gate}, [gate]
    while ahead:
        passing = ahead.pop()
        for user in {n for n in passing.users if n in surgery.data} - seen:
            seen.add(user)
            factors = surgery.data_among((user.args, user.kwargs))
            if surgery.operation(user) in ops.PRODUCTS and len(factors) > 1 and user not in surgery.kept:
                choice = _choose(surgery, factors)
                if choice is not None and gate in choice[1]:
                    continue
            if not _passes(surgery, user):
                refuse(surgery, node, f"{gate.name!r} is its gate, and goes into {user.name!r} as a feature too")
            ahead.append(user)


def _passes(surgery: Surgery, node: fx.Node) -> bool:
    """Whether a node that a gate goes into is still a gate, and nothing else."""
    return node not in surgery.kept and node.op != "output" and _gates(surgery, node) is not None


def glu(surgery: Surgery, node: fx.Node) -> None:
    """A gated linear unit: its first half times the sigmoid of its second, which is the gate."""
    halves = surgery.insert(node, torch.chunk, first(node), 2, *surgery.options(node, dim=-1))
    gate = surgery.insert(node, torch.sigmoid, surgery.insert(node, operator.getitem, halves, 1))
    if node in surgery.means:
        surgery.means[gate] = surgery.means[node]
    new = surgery.replace(node, operator.mul, surgery.insert(node, operator.getitem, halves, 0), gate)
    surgery.mark()
    product(surgery, new)


def softmax(surgery: Surgery, node: fx.Node) -> None:
    """Refused, unless it multiplies something, which makes it a gate: equal shares (see the rule of products)."""
    refuse(surgery, node, "no rule makes a softmax that weighs nothing linear: after the logits, take it out")


def _gates(surgery: Surgery, node: fx.Node) -> list[fx.Node] | None:
    """The gates through which all that a node has of the image came, if there are such."""
    if _is_gate(surgery, node):
        return [node]
    operation, inputs = surgery.operation(node), _inputs(surgery, node)
    passing = operation in PASSING or operation in ops.AVERAGES
    if not (passing or operation in ops.LAYERS) or not inputs:
        return None
    gates: list[fx.Node] = []
    for n in inputs:
        if (found := _gates(surgery, n)) is None:
            return None
        gates += [gate for gate in found if gate not in gates]
    return gates if passing or all(surgery.operation(gate) in ops.SOFTMAX for gate in gates) else None


def _inputs(surgery: Surgery, node: fx.Node) -> list[fx.Node]:
    """The inputs of `data` whose values count."""
    return [n for n in surgery.inputs(node) if n in surgery.data]


def _is_gate(surgery: Surgery, node: fx.Node) -> bool:
    operation = surgery.operation(node)
    if operation in ops.WITH_BOUNDS:  # a hard sigmoid, or six times that
        low, high = surgery.options(node, min=None, max=None)
        return low in (0, -1) and isinstance(high, int | float)
    if operation in ops.COMPARISONS:
        return first(node) in surgery.data and not surgery.data_among(others(node))
    if operation not in (nn.ReLU6, F.relu6):
        return operation in GATES
    shifted = first(node)
    return isinstance(shifted, fx.Node) and surgery.operation(shifted) in ops.SUMS and 3 in shifted.args


def _hold(surgery: Surgery, gate: fx.Node) -> None:
    """Puts the constant in the place of a gate."""
    operation, x = surgery.operation(gate), first(gate)
    if operation in ops.SOFTMAX:
        dim = -3 if operation is nn.Softmax2d else surgery.options(gate, dim=None)[0]
        if dim is None:
            refuse(surgery, gate, "a softmax must say over which dimension it is taken: give dim")
        shares = surgery.insert(gate, equal_shares, emptied(surgery, x, gate), dim, dtype=gate.kwargs.get("dtype"))
        surgery.swap(gate, shares, UNIFORM)
    elif gate in surgery.means:
        name = f"_mean_{gate.name}"
        surgery.root.register_buffer(name, surgery.means[gate])
        with surgery.graph.inserting_before(gate):
            mean = surgery.graph.get_attr(name)
        surgery.swap(gate, surgery.insert(gate, filled, x, mean), "a gate has its mean over images")
    else:
        surgery.swap(gate, surgery.insert(gate, torch.full_like, x, _open(surgery, gate)), OPEN)


def _open(surgery: Surgery, gate: fx.Node) -> Any:
    """The value of a gate that is open."""
    operation = surgery.operation(gate)
    if operation in (nn.Hardtanh, F.hardtanh, F.hardtanh_):
        return surgery.options(gate, min_val=-1.0, max_val=1.0)[1]
    return surgery.options(gate, min=None, max=None)[1] if operation in ops.WITH_BOUNDS else GATES[operation][1]


def emptied(surgery: Surgery, scores: Any, gate: fx.Node) -> Any:
    """The scores that a softmax is taken of with their content at zero: masks are left, and biases of positions."""
    if not isinstance(scores, fx.Node) or scores not in surgery.data:
        return scores
    inputs, operation = _inputs(surgery, scores), surgery.operation(scores)
    if len(inputs) > 1 and operation in ops.MULTIPLICATIONS:  # a mask in one stays
        return surgery.insert(gate, torch.add, *(emptied(surgery, n, gate) for n in inputs))
    divisors = surgery.data_among(others(scores)) if operation in ops.QUOTIENTS else []
    if (
        operation not in PASSING
        or (len(inputs) > 1 and operation in ops.PRODUCTS)
        or (divisors and first(scores) not in surgery.data)
    ):
        return surgery.insert(gate, torch.zeros_like, scores)
    if divisors:  # which may be zero; where the quotient is masked stays
        ones = surgery.insert(gate, torch.ones_like, divisors[0])
        return surgery.insert(gate, torch.div, emptied(surgery, first(scores), gate), ones)
    if operation in ops.DROPOUT:
        return emptied(surgery, first(scores), gate)
    replaced = {n: emptied(surgery, n, gate) for n in inputs}
    with surgery.graph.inserting_before(gate):
        return surgery.graph.node_copy(scores, lambda n: replaced.get(n, n))


def equal_shares(
    scores: Float[Tensor, "*shape"], dim: int, *, dtype: torch.dtype | None = None
) -> Float[Tensor, "*shape"]:
    """Weights that sum to one over `dim`, equal for all scores that are not masked: less than 50 below the highest."""
    allowed = scores >= scores.amax(dim, keepdim=True) - 50
    weights = allowed.to(dtype or scores.dtype)
    return weights / weights.sum(dim, keepdim=True)


def filled(x: Float[Tensor, "*shape"], mean: Float[Tensor, "*means"]) -> Float[Tensor, "*shape"]:
    """The means in the shape of x."""
    return mean.to(x.dtype).expand_as(x)


def gate_means(surgery: Surgery, network: fx.GraphModule, images: Float[Tensor, "n *input"]) -> None:
    """Puts the means over images of what may be a gate into `surgery.means`; softmax always becomes equal shares.

    Of feature maps (n c h w) over images and positions, of anything else over images.

    Args:
        surgery: of the graph of the network.
        network: runs a copy of that graph, with nothing taken out yet.
        images: at least one.

    Raises:
        InputError: there are no images, or the network does not take them.
    """
    if len(images) == 0:
        raise InputError("gates: there are no images to take the means over: give at least one")
    nodes = {node.name: node for node in surgery.graph.nodes}

    class Listening(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value, node = super().run_node(n), nodes[n.name]
            operation, gate = surgery.operation(node), None
            if operation in (nn.GLU, F.glu):  # the gate inside
                x: Any = self.map_nodes_to_values(first(n), n)
                gate = torch.sigmoid(x.chunk(2, *surgery.options(node, dim=-1))[1])
            elif operation in GATES and operation not in ops.SOFTMAX and value.is_floating_point():
                gate = value
            if gate is not None:
                surgery.means[node] = gate.mean((0, 2, 3) if gate.dim() == 4 else 0, keepdim=True)
            return value

    try:
        with torch.no_grad():
            Listening(network).run(images.to(like(network, images)))
    except Exception as error:  # runs the network's own code: anything may be raised
        shape = tuple(images.shape[1:])
        raise InputError(f"gates: the network does not take images of shape {shape} ({first_line(error)})") from error
