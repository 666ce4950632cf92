"""Jacobians of the logits by the images, some rows at a time: what `linear_map` and `local_map` are made of."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar, no_type_check

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lrc.linearization.checking import Quiet
from lrc.utils.checks import check_network, check_whole
from lrc.utils.errors import InputError, first_line
from lrc.utils.networks import preserved, replaced, untouched
from lrc.utils.processes import Fabric, in_turn, place

T = TypeVar("T")

BUDGET = 64 * 2**20
"""Bytes of the largest gradient in a chunk of rows, unless the caller chooses; a few of that size live at once."""
MANY = 8  # images: with so many in it a backward pass a class takes less time than one of a batch of vectors


@contextmanager
def differentiated(
    network: nn.Module,
    x: Float[Tensor, "n *input"],
    *,
    chunk: int | None = None,
    progress: bool = False,
    learning: bool = False,
    fabric: Fabric | None = None,
) -> Iterator[tuple[Float[Tensor, "n classes"], Iterator[Tensor]]]:
    """The logits z of a batch x and, as long as the context lasts, their derivatives by it, some classes at a time.

    Args:
        network: images to logits, each image's of that image alone. It is run in eval mode, and left as it was.
        x: at least one image.
        chunk: classes at a time; by default as many as make the largest gradient `BUDGET` bytes.
        progress: a bar on stderr, as in `linear_map`.
        learning: the derivatives keep their graph to the parameters; the network is then run in the mode that it is in.
        fabric: processes that share the backward passes, chunk by chunk, and all get what each computed.

    Yields:
        z, and an iterator over tensors (some classes, n, *input): all classes in their order. Each is one backward pass
        through the graph of the one forward pass.

    Raises:
        InputError: a chunk below 1, or a network that does not give logits (n, classes) of x, or not differentiably.
    """
    check_network(network)
    if chunk is not None:
        chunk = check_whole("chunk", chunk, 1)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(x.device.type, enabled=False))
        stack.enter_context(preserved(network) if learning else untouched(network, eager=True))
        x, z, widest = _logits(network, x, relaid=not learning)
        chunk = chunk or max(1, min(widest.rows, -(-z.shape[1] // place(fabric)[1])))
        yield z, jacobian_rows(z, x, chunk=chunk, learning=learning, progress=progress, fabric=fabric)


def jacobian_rows(
    z: Float[Tensor, "n classes"],
    x: Float[Tensor, "n *input"],
    *,
    chunk: int,
    learning: bool = False,
    progress: bool = False,
    fabric: Fabric | None = None,
) -> Iterator[Float[Tensor, "some n *input"]]:
    """The derivatives of logits by the images that they were computed from, a chunk of classes after the other.

    One backward pass a chunk; one a class where the images are many, or where some part of the network has no
    derivative in batches, as a backward of its own may not.
    """
    units = torch.split(torch.eye(z.shape[1], dtype=z.dtype, device=z.device)[:, None], chunk)
    rank, processes = place(fabric)
    rounds = [units[i : i + processes] for i in range(0, len(units), processes)]  # of a chunk for each process
    for some in _watched(rounds, progress and rank == 0):
        own = [_pulled_back(z, x, unit.expand(-1, len(z), -1), learning) for unit in some[rank : rank + 1]]
        yield from own if processes == 1 else in_turn(own, [(len(unit), *x.shape) for unit in some], x)


def _pulled_back(z: Tensor, x: Tensor, vectors: Float[Tensor, "some n classes"], learning: bool) -> Tensor:
    options: dict[str, Any] = {
        "retain_graph": True, "create_graph": learning, "allow_unused": True, "materialize_grads": True,
    }  # fmt: skip
    if len(z) < MANY:
        try:
            return torch.autograd.grad(z, x, vectors, is_grads_batched=True, **options)[0]
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:  # the network's own derivatives run, on tensors of a kind that they may not know
            pass
    try:
        return torch.stack([torch.autograd.grad(z, x, v, **options)[0] for v in vectors])
    except NotImplementedError as error:
        raise InputError(f"the network has a part without a derivative: {first_line(error)}") from error


class _Widest(TorchFunctionMode):
    """Notes how large the largest tensor is that a function of PyTorch gives meanwhile.

    Attributes:
        bytes: its size.
    """

    bytes = 1

    @property
    def rows(self) -> int:
        """How many gradients of that size `BUDGET` holds, at least one."""
        return max(1, BUDGET // self.bytes)

    @no_type_check
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.bytes = max(self.bytes, result.nbytes if isinstance(result, Tensor) else 0)
        return result


def _watched(rounds: Sequence[T], progress: bool) -> Iterator[T]:
    """The same, with a bar on stderr if wanted and if a person can see it."""
    console = Console(stderr=True)
    shown = progress and (console.is_terminal or console.is_jupyter)
    return iter(track(rounds, "rows of W", console=console, transient=True, disable=not shown))


def _logits(network: nn.Module, x: Tensor, *, relaid: bool) -> tuple[Tensor, Float[Tensor, "n classes"], _Widest]:
    """As `_run`, if what comes out is logits with a derivative."""
    images = "one image" if len(x) == 1 else f"{len(x)} images"
    try:
        x, z, widest = _run(network, x, relaid=relaid)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the network's own code runs: anything may be raised
        raise InputError(
            f"the network does not take images of shape {tuple(x.shape[1:])}: {first_line(error)}"
        ) from error
    if not isinstance(z, Tensor) or z.dim() != 2 or len(z) != len(x):
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise InputError(
            f"expected logits of shape ({len(x)}, classes) for {images}, got {got}: wrap the network to give them"
        )
    if z.is_complex():
        raise InputError(f"the network must give real logits, not {z.dtype}")
    if not z.requires_grad:
        raise InputError("the logits have no derivative by the image: the network must compute them differentiably")
    return x, z, widest


def _run(network: nn.Module, x: Tensor, *, relaid: bool) -> tuple[Tensor, Any, _Widest]:
    """The images as a leaf, what the network gives for them, and the largest tensor on the way.

    In the memory format that convolutions are fastest in, unless the network cannot do with it.
    """
    with suppress(RuntimeError):  # x.view(n, -1), for one
        return _run_in(torch.channels_last, network, x, relaid=relaid)
    return _run_in(torch.contiguous_format, network, x, relaid=relaid)


def _run_in(layout: torch.memory_format, network: nn.Module, x: Tensor, *, relaid: bool) -> tuple[Tensor, Any, _Widest]:
    def laid_out(t: Tensor) -> Tensor:
        return t.detach().contiguous(memory_format=layout) if t.dim() == 4 else t.detach()

    leaf = laid_out(x).clone().requires_grad_()
    relaid = relaid and not any(isinstance(m, torch.jit.ScriptModule) for m in network.modules())
    weights = {id(p): laid_out(p) for p in network.parameters()} if relaid else {}
    with replaced(network, weights), _Widest() as widest:
        z = Quiet(network)(leaf.clone())  # a clone, as networks may begin in place
    return leaf, z, widest
