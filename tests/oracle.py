"""The linear sub-network by other means: the network itself runs, its operations replaced by their linear stand-ins.

It knows nothing of graphs. A mode of PyTorch intercepts every operation while the network runs on real tensors; what
depends on the image is what autograd says so. Since an operation is met before it is known whether its result is a
feature or a gate, a tensor carries what it would be in other roles: `gate`, with all gates in it held; `empty`, as
scores without content; whether it is a `scale` made of norms. A product then takes the role that fits.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

IDENTITY = {
    *(
        "relu",
        "leaky_relu",
        "prelu",
        "elu",
        "selu",
        "celu",
        "rrelu",
        "softplus",
        "logsigmoid",
        "hardshrink",
        "threshold",
    ),
    *("softshrink", "tanhshrink", "round", "floor", "ceil", "trunc", "clamp_min", "clamp_max", "clip"),
    *("layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm", "normalize"),
}
GATES = {
    **dict.fromkeys(("gelu", "silu", "mish", "hardswish"), (1, 1.0)),
    **dict.fromkeys(("tanh", "erf", "hardtanh", "softsign", "clamp", "relu6"), (2, 1.0)),
    **dict.fromkeys(("sigmoid", "hardsigmoid", "expit"), (3, 1.0)),
}
DROPOUT = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
PRODUCTS = {"mul", "multiply", "matmul", "mm", "bmm", "einsum", "mv", "dot", "tensordot", "__rmul__", "__rmatmul__"}
QUOTIENTS = {"div", "true_divide", "divide", "__truediv__", "__rdiv__", "__rtruediv__", "reciprocal"}
SUMS = {"add", "sub", "subtract", "rsub", "__rsub__", "__radd__", "cat", "concat", "concatenate", "stack", "hstack"}
MOVES = {
    *("flatten", "unflatten", "reshape", "view", "ravel", "squeeze", "unsqueeze", "movedim", "moveaxis", "permute"),
    *(
        "transpose",
        "swapaxes",
        "swapdims",
        "t",
        "__getitem__",
        "narrow",
        "select",
        "chunk",
        "split",
        "unbind",
        "expand",
    ),
    *("tensor_split", "broadcast_to", "contiguous", "unfold", "diagonal", "to", "float", "double", "clone", "flip"),
    *("roll", "rot90", "repeat", "tile", "repeat_interleave", "index_select", "gather", "pad", "pixel_shuffle"),
    *("pixel_unshuffle", "channel_shuffle", "interpolate", "tril", "triu", "vstack", "view_as", "reshape_as"),
    *("expand_as", "type_as", "fold", "T", "mT", "type", "data", "native_channel_shuffle", "constant_pad_nd"),
    *("upsample_nearest2d", "grid_sample", "half", "bfloat16", "neg", "masked_fill", "where"),
}
LAYERS = {
    *("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "bilinear"),
}
MEANS = {
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    *("mean", "sum", "cumsum"),
}
PASSING = PRODUCTS | QUOTIENTS | SUMS | MOVES | DROPOUT
SCALES = {"norm", "vector_norm", "std", "var", "linalg_norm", "linalg_vector_norm"}
NUMBERS = {"gt", "ge", "greater", "greater_equal", "lt", "le"}


class Linear(TorchFunctionMode):
    """Runs a network as its linear sub-network, by the paper's choice of pooling."""

    def __init__(self, batchnorm: str) -> None:
        super().__init__()
        self.batchnorm = batchnorm

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        name = func.__self__.__name__ if name == "__get__" else name
        in_place = name.endswith("_") and not name.endswith("__")
        plain = {"__iadd__": "add", "__imul__": "mul", "__isub__": "sub", "__itruediv__": "div"}.get(name, name)
        plain = plain.removesuffix("_") if in_place else plain
        deps = list(tensors((args, kwargs)))
        if not deps:
            return func(*args, **kwargs)
        stand_in = getattr(self, f"_{plain}", None)
        if stand_in is not None:
            return stand_in(func, args, kwargs)
        x = args[0] if args else kwargs.get("input")
        if plain in IDENTITY:
            y = forget(x) if in_place else x.clone()
            y.rectified = plain == "relu"  # its square is an activation
            return y
        if plain in GATES:
            return self._gate(plain, x, args, kwargs, in_place)
        if plain in PRODUCTS:
            return self._product(func, args, kwargs)
        if plain in QUOTIENTS and len(deps) > 1 or (plain == "reciprocal" or (plain in QUOTIENTS and "__r" in plain)):
            return self._quotient(func, args, kwargs)
        return self._through(func, plain, args, kwargs, in_place)

    def _through(self, func: Any, plain: str, args: Any, kwargs: Any, in_place: bool) -> Any:
        """What is linear, for features, gates and scores alike; anything else on the image is worth nothing."""
        deps = list(tensors((args, kwargs)))
        before = substitute((args, kwargs), lambda t: t.clone()) if in_place else (args, kwargs)
        roles = {t: role(t) for t in deps}
        result = func(*args, **kwargs)
        known = plain in PASSING | LAYERS | MEANS | {"__setitem__", "zero", "fill", "copy"}
        for y in tensors(args[0] if plain == "__setitem__" else result, every=True):
            forget(y)
        if (source := next((t.of for t in deps if getattr(t, "of", None) is not None), None)) is not None:
            each(result, lambda y: None if y.requires_grad else setattr(y, "of", source))
        if not known:
            nothing = plain not in SCALES | NUMBERS | {"abs", "sqrt", "rsqrt", "pow", "square", "shape", "size"}
            if plain in SCALES or (
                plain in ("sqrt", "rsqrt", "pow", "abs") and all(r["scale"] for r in roles.values())
            ):
                each(result, lambda y: setattr(y, "scale", True))
            if plain == "abs":
                each(result, lambda y: setattr(y, "even", True))
            if plain in NUMBERS and isinstance(args[0], Tensor) and args[0].requires_grad and len(deps) == 1:
                result.of, result.gate, result.rank = args[0], torch.ones_like(args[0]), 2
            if nothing or plain in ("abs", "sqrt", "rsqrt", "pow", "square"):
                each(result, lambda y: y.data.fill_(float("nan")) if y.requires_grad else y)
            return result
        if plain not in PASSING and plain not in LAYERS and plain not in MEANS:
            return result
        if all(r["scale"] or (plain in MEANS and r["even"]) for r in roles.values()):
            each(result, lambda y: setattr(y, "scale", True))
        gates = all(r["gate"] is not None for r in roles.values())
        gates = gates and (plain in PASSING | MEANS or (plain in LAYERS and all(r["shares"] for r in roles.values())))
        if gates:
            held = by_identity(before, (args, kwargs), {id(t): roles[t]["gate"] for t in deps})
            for y, z in zip(tensors(result), tensors(rerun(func, held), every=True), strict=False):
                become_gate(y, z, roles.values())
        if plain in PASSING:
            empties = {id(t): roles[t]["empty"] for t in deps}
            for i, y in enumerate(list(tensors(result))):
                y.empty = lambda i=i: list(
                    tensors(
                        rerun(func, by_identity(before, (args, kwargs), {k: e() for k, e in empties.items()})),
                        every=True,
                    )
                )[i]
        if plain in ("add", "__radd__") and any(isinstance(a, int | float) and a == 3 for a in args):
            each(result, lambda y: setattr(y, "shifted", True))
        return result

    def _gate(self, plain: str, x: Tensor, args: Any, kwargs: Any, in_place: bool) -> Tensor:
        rank, value = GATES[plain]
        shifted = getattr(x, "shifted", False)
        y = forget(x) if in_place else x.clone()
        low, high = ([*args[1:], None, None] + [])[:2]
        low, high = kwargs.get("min", kwargs.get("min_val", low)), kwargs.get("max", kwargs.get("max_val", high))
        if plain == "relu6":
            rank, value = (2, 6.0) if shifted else (0, 1.0)
        if plain == "hardtanh":
            value = 1.0 if high is None else high
        if plain == "clamp":
            bounded = low in (0, -1) and isinstance(high, int | float)
            rank, value = (2, high) if bounded else (0, 1.0)
        if rank:
            y.gate, y.rank = torch.full_like(x, value).detach(), rank
        return y

    def _product(self, func: Any, args: Any, kwargs: Any) -> Any:
        deps = list(tensors((args, kwargs)))
        plain = "mul" if func.__name__.rstrip("_") in ("mul", "multiply", "__rmul__", "__imul__") else func.__name__
        if len(deps) == 1:
            y = self._through(func, plain, args, kwargs, func.__name__.endswith("_") or func.__name__ == "__imul__")
            if plain == "mul" and y is not deps[0]:
                y.multiple_of = deps[0]
            return y
        if deps[0] is deps[1]:
            rectified = deps[0].__dict__.get("rectified", False)  # whose square is an activation, and even too
            y = deps[0].clone() if rectified else func(*args, **kwargs) * float("nan")
            y.even = True
            if (gate := role(deps[0])["gate"]) is not None:
                become_gate(y, gate * gate, [role(deps[0])])
            return y
        scales = [t for t in deps if role(t)["scale"]]
        deps = [t for t in deps if not role(t)["scale"]]
        instead = {id(t): torch.ones_like(t).detach() for t in scales}
        ranks = [role(t)["rank"] for t in deps]
        values = [t for t, r in zip(deps, ranks, strict=True) if r == min(ranks)]
        if len(deps) > 1 and len(values) > 1:
            y = func(*args, **kwargs) * float("nan")  # which is the gate?
        else:
            instead |= {id(t): role(t)["gate"] for t in deps if t is not values[0]}
            y = rerun(func, by_identity((args, kwargs), (args, kwargs), instead))
        if all(role(t)["gate"] is not None for t in deps) and len(deps) > 1:  # a product of gates is one
            gate = rerun(func, by_identity((args, kwargs), (args, kwargs), {id(t): role(t)["gate"] for t in deps}))
            become_gate(y, gate, map(role, deps))
        if plain == "mul":
            y.empty = lambda: sum(role(t)["empty"]() for t in deps)
        return y

    def _quotient(self, func: Any, args: Any, kwargs: Any) -> Any:
        first, *rest = args if "__r" not in func.__name__ else (args[1], args[0])
        divisor = rest[0] if rest else first
        if isinstance(divisor, Tensor) and divisor.requires_grad:
            ones = torch.ones_like(divisor).detach()
            if role(divisor)["scale"] and isinstance(first, Tensor) and first.requires_grad:
                y = torch.div(first, ones)
                y.scale = role(first)["scale"]
            else:
                y = func(*args, **kwargs) * float("nan")
                y.scale = role(divisor)["scale"]
                gates = [role(t)["gate"] for t in (first, divisor) if isinstance(t, Tensor)]
                if len(gates) == 2 and all(gate is not None for gate in gates):  # shares of several softmaxes
                    become_gate(y, torch.div(*gates), (role(first), role(divisor)))
            y.empty = lambda: torch.div(role(first)["empty"]() if isinstance(first, Tensor) else first, ones)
            return y
        return self._through(func, "div", args, kwargs, func.__name__.endswith("_"))

    # --- operations with a stand-in of their own

    def _softmax(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        x, dim = args[0], kwargs.get("dim", [*args, None][1])
        y = x * float("nan")  # a softmax weighs something, or is worth nothing
        y.gate, y.rank, y.shares = uniform(role(x)["empty"](), dim), 4, True
        return y

    def _batch_norm(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = dict(zip(names, args, strict=False)) | kwargs
        return given["input"].clone() if self.batchnorm == "remove" else by_formula(**given)

    def _max_pool2d(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
        given = dict(zip(names, args, strict=False)) | kwargs
        x = given.pop("input").clone()
        x = torch.where(x.isinf(), 0.0, x)  # what a maximum leaves out is padding of the mean
        given = {k: v for k, v in given.items() if k not in ("dilation", "return_indices")}
        return F.avg_pool2d(x, **given)

    def _adaptive_max_pool2d(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        return F.adaptive_avg_pool2d(args[0], args[1] if len(args) > 1 else kwargs["output_size"])

    def _amax(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        return torch.mean(*args, **kwargs)

    def _max(self, func: Any, args: Any, kwargs: Any) -> Any:
        if len(args) > 1 and isinstance(args[1], Tensor):
            return self._maximum(func, args, kwargs)
        if len(args) == 1 and not kwargs:
            return args[0].mean()
        mean = torch.mean(*args, **kwargs)
        return torch.return_types.max((mean, mean.detach().long()))

    def _maximum(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        for x, other in (args, args[::-1]):
            if x.requires_grad and (not other.requires_grad or other is x or getattr(other, "multiple_of", None) is x):
                return x.clone()
        return (args[0] + args[1]) / 2

    def _where(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        condition, a, b = args if func is torch.where else (args[1], args[0], args[2])
        if getattr(condition, "of", None) is not None:
            return a.clone() if condition.of is a else a * float("nan")
        return self._through(func, "where", args, kwargs, False)

    def _square(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        return self._product(torch.mul, (args[0], args[0]), {})

    def _pow(self, func: Any, args: Any, kwargs: Any) -> Any:
        if len(args) > 1 and args[1] == 2:
            return self._product(torch.mul, (args[0], args[0]), {})
        return self._through(func, "pow", args, kwargs, False)

    def _addcmul(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        return args[0] + self._product(torch.mul, args[1:3], {}) * kwargs.get("value", 1)

    def _addmm(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        return args[0] + self._product(torch.matmul, args[1:3], {})

    _baddbmm = _addmm

    def _lerp(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        with self:
            return args[0] + (args[1] - args[0]) * args[2]

    def _sort(self, func: Any, args: Any, kwargs: Any) -> Any:
        return torch.return_types.sort((args[0].clone(), args[0].detach().long()))

    def _expand_as(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        return self._through(Tensor.expand, "expand", (args[0], args[1].shape), {}, False)

    def _glu(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        return args[0].chunk(2, kwargs.get("dim", [*args, -1][1]))[0].clone()

    def _scaled_dot_product_attention(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
        given = dict(zip(names, args, strict=False)) | kwargs
        q, k, v, mask = given["query"], given["key"], given["value"], given.get("attn_mask")
        scores = torch.zeros(*q.shape[:-1], k.shape[-2], dtype=v.dtype)
        if mask is not None:
            scores = torch.where(mask, scores, -1e9) if mask.dtype is torch.bool else scores + role(mask)["empty"]()
        if given.get("is_causal"):
            scores = scores + torch.full(scores.shape[-2:], -1e9).triu(1)
        return uniform(scores, -1) @ v

    def _multi_head_attention_forward(self, func: Any, args: Any, kwargs: Any) -> Any:
        names = ("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias")
        names += ("bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias")
        given = dict(zip(names, args, strict=False)) | kwargs
        assert given.get("attn_mask") is None and given.get("key_padding_mask") is None
        v, width = given["value"], given["embed_dim_to_check"]
        v = F.linear(v, given["in_proj_weight"][2 * width :], given["in_proj_bias"][2 * width :])
        mixed = v.mean(0, keepdim=True).expand(len(given["query"]), *v.shape[1:])
        return F.linear(mixed, given["out_proj_weight"], given["out_proj_bias"]), None


def uniform(scores: Tensor, dim: int) -> Tensor:
    """Equal weights for what is less than 50 below the highest."""
    scores = scores.detach()
    kept = (scores.amax(dim, keepdim=True) - scores <= 50).to(scores.dtype)
    return kept / kept.sum(dim, keepdim=True)


def by_formula(
    input: Tensor, running_mean: Tensor, running_var: Tensor, weight: Any, bias: Any, *_: Any, **o: Any
) -> Tensor:
    """Batch norm in eval mode, whose own derivative is not to be relied on for one image."""
    over = (1, -1, *[1] * (input.dim() - 2))
    y = (input - running_mean.view(over)) / (running_var.view(over) + o.get("eps", _[2] if len(_) > 2 else 1e-5)).sqrt()
    y = y if weight is None else y * weight.view(over)
    return y if bias is None else y + bias.view(over)


def role(t: Tensor) -> dict[str, Any]:
    """What a tensor is in other roles; of a constant, itself."""
    if not t.requires_grad and getattr(t, "of", None) is None:
        return {"gate": t, "rank": 0, "empty": lambda: t, "scale": False, "even": False, "shares": True}
    empty = t.__dict__.get("empty", lambda: torch.zeros_like(t).detach())
    rank = t.__dict__.get("rank", 0)
    found = {name: t.__dict__.get(name, False) for name in ("scale", "even", "shares")}
    return {"gate": t.__dict__.get("gate"), "rank": rank, "empty": empty, **found}


def become_gate(y: Tensor, value: Tensor, made_of: Iterable[dict[str, Any]]) -> None:
    """Gives a tensor the role of a gate, as sure as the surest of those that it was made of."""
    made_of = list(made_of)
    y.gate, y.rank = value, max(part["rank"] for part in made_of)
    y.shares = all(part["shares"] for part in made_of)  # heads that talk: of softmax alone


def forget(t: Tensor) -> Tensor:
    for name in ("gate", "rank", "shares", "empty", "scale", "even", "rectified", "of", "shifted", "multiple_of"):
        t.__dict__.pop(name, None)
    return t


def tensors(value: Any, every: bool = False) -> Iterator[Tensor]:
    """The tensors in a value that depend on the image."""
    if isinstance(value, Tensor):
        if every or value.requires_grad or getattr(value, "of", None) is not None:
            yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part, every)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()), every)


def each(value: Any, function: Callable[[Tensor], Any]) -> None:
    for t in tensors(value, every=True):
        function(t)


def substitute(value: Any, function: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple | list):
        return type(value)(substitute(part, function) for part in value)
    return {k: substitute(v, function) for k, v in value.items()} if isinstance(value, dict) else value


def by_identity(before: Any, arguments: Any, instead: dict[int, Any]) -> Any:
    """The arguments as they were, with other tensors for some."""
    if isinstance(arguments, Tensor):
        return instead.get(id(arguments), before)
    if isinstance(arguments, tuple | list):
        return type(arguments)(by_identity(*pair, instead) for pair in zip(before, arguments, strict=True))
    if isinstance(arguments, dict):
        return {k: by_identity(before[k], arguments[k], instead) for k in arguments}
    return arguments


def rerun(func: Any, arguments: Any) -> Any:
    """The call with other tensors; in place on a copy."""
    args, kwargs = arguments
    name = func.__name__
    if (name.endswith("_") and not name.endswith("__")) or name.startswith("__i"):
        args = (args[0].clone(), *args[1:])
    result = func(*args, **kwargs)
    return args[0] if name == "__setitem__" else result


def oracle_map(model: nn.Module, shape: tuple[int, ...], batchnorm: str = "remove") -> tuple[Tensor, Tensor]:
    """W and b of the linear sub-network of a network in float64."""
    modes = {m: m.training for m in model.modules()}
    grads = {p: p.requires_grad for p in model.parameters()}
    model.eval().requires_grad_(False)
    try:
        x = torch.zeros(1, *shape, dtype=torch.float64, requires_grad=True)
        with Linear(batchnorm):
            z = model(x.clone())
        z = getattr(z, "logits", z)
        return torch.stack([torch.autograd.grad(v, x, retain_graph=True)[0][0] for v in z[0]]), z[0].detach()
    finally:
        for m, mode in modes.items():
            m.training = mode
        for p, grad in grads.items():
            p.requires_grad_(grad)


class _Formula(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        formula = func is F.batch_norm and args[0].requires_grad and args[1] is not None
        return by_formula(*args, **(kwargs or {})) if formula else func(*args, **(kwargs or {}))


def backward_map(model: nn.Module, x: Tensor) -> Tensor:
    """The Jacobian at each image, one backward pass a logit."""
    x = x.clone().requires_grad_()
    with _Formula():
        z = model(x.clone())
    z = getattr(z, "logits", z)
    return torch.stack([torch.autograd.grad(z[:, k].sum(), x, retain_graph=True)[0] for k in range(z.shape[1])], 1)
