"""The linear sub-network as what it is: one matrix W, and the vector b."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lrc.linearization.checking import Quiet, image_shape
from lrc.linearization.network import linearize
from lrc.utils.errors import InputError, first_line
from lrc.utils.files import replacing

__all__ = ["affine_map", "differentiated", "linear_map"]

BUDGET = 64 * 2**20
"""Bytes of the largest gradient in a chunk of rows, unless the caller chooses; a few of that size live at once."""

TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""What safetensors calls the types."""


def linear_map(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    chunk: int | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    **choices: Any,
) -> Float[Tensor, " classes *input"]:
    """W, one row a class: the derivative of its logit by the image in the linear sub-network, the same at every image.

    All rows of a chunk come out of one backward pass, from one forward pass of a single image.

    Args:
        model: images to logits (n, classes); see `linearize`. It is left as it was.
        input_shape: of one image, (channels, height, width) as a rule; `model.input_shape` if absent.
        chunk: rows at a time, which bounds the memory; by default as many as make the largest gradient 64 MiB.
        out: a safetensors file for W, under that name in it. The rows go to the disk chunk by chunk, so memory never
            holds W; the file is there as a whole or not at all.
        progress: a bar on stderr, gone at the end; never in a file or a pipe.
        choices: of `linearize`, which say what the linear sub-network is; not those that linearize a part only.

    Returns:
        W in units of logits a unit of input, of the type and on the device of the model's parameters, detached. With
        `out` it lies on the CPU as a private memory map of the file: pages are read when they are needed, and what is
        written to the tensor stays in memory and never reaches the file.

    Raises:
        InputError: no input shape, or one that does not fit the network; an output that is not logits (n, classes);
            a W that is not finite; an `out` that is a folder; `keep`, `start` or `stop` among the choices; and as
            `linearize`.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3, bias=False))
    >>> W = linear_map(model, (1, 2, 2))
    >>> tuple(W.shape)
    (3, 1, 2, 2)
    >>> torch.allclose(W.flatten(1), model[3].weight @ model[1].weight)
    True
    """
    return affine_map(model, input_shape, chunk=chunk, out=out, progress=progress, **choices)[0]


def affine_map(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    chunk: int | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    **choices: Any,
) -> tuple[Float[Tensor, " classes *input"], Float[Tensor, " classes"]]:
    """W and b of the linear sub-network: `linearize(model)(x)` = W x + b, so b is its output at the black image.

    Args, Raises: as `linear_map`; b does not go into the file.

    >>> W, b = affine_map(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2))
    >>> tuple(W.shape), tuple(b.shape)
    ((2, 1, 2, 2), (2,))
    """
    if part := [name for name in ("keep", "start", "stop") if choices.get(name)]:
        raise InputError(
            f"{part[0]} leaves parts that are not linear, which no one W describes: take lrc.local_map of "
            "lrc.linearize(...) at the images in question"
        )
    x = _black_image(model, input_shape)
    linear = linearize(model, input_shape=x.shape[1:], **choices)
    if out is not None and Path(out).is_dir():
        raise InputError(f"out ({out}) is a folder: give the name of a file in it")
    with differentiated(linear, x, chunk=chunk, progress=progress) as (z, chunks):
        rows, shape = _finite(chunk[:, 0] for chunk in chunks), (z.shape[1], *x.shape[1:])
        W = _gather(rows, x.new_empty(shape)) if out is None else _store(rows, shape, x.dtype, Path(out))
        return W, z[0].detach()


@contextmanager
def differentiated(
    network: nn.Module, x: Float[Tensor, "n *input"], *, chunk: int | None, progress: bool = False
) -> Iterator[tuple[Float[Tensor, "n classes"], Iterator[Tensor]]]:
    """The logits z of a batch x and, as long as the context lasts, their derivatives by it, some classes at a time.

    Args:
        network: images to logits, each image's of that image alone; run in the mode that it is in.
        x: at least one image.
        chunk: classes at a time; by default as many as make the largest gradient `BUDGET` bytes.
        progress: as in `linear_map`.

    Yields:
        z, and an iterator over tensors (some classes, n, *input): all classes in their order. Each is one backward pass
        through the graph of the one forward pass.

    Raises:
        InputError: a chunk below 1, or a network that does not give logits (n, classes) of x, or not differentiably.
    """
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk must be at least one row, not {chunk}")
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        x, z, widest = _logits(network, x)
        chunk = chunk or max(1, BUDGET // max(1, widest))
        units = torch.split(torch.eye(z.shape[1], dtype=z.dtype, device=z.device)[:, None], chunk)
        yield (
            z,
            (
                torch.autograd.grad(z, x, unit.expand(-1, len(z), -1), is_grads_batched=True, retain_graph=True)[0]
                for unit in _watched(units, progress)
            ),
        )


class _Widest(TorchFunctionMode):
    """Notes how large the largest tensor is that a function of PyTorch gives meanwhile."""

    bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.bytes = max(self.bytes, result.nbytes if isinstance(result, Tensor) else 0)
        return result


def _watched(units: Sequence[Tensor], progress: bool) -> Iterator[Tensor]:
    """The same, with a bar on stderr if wanted and if a person can see it."""
    console = Console(stderr=True)
    shown = progress and (console.is_terminal or console.is_jupyter)
    return iter(track(units, "rows of W", console=console, transient=True, disable=not shown))


def _finite(rows: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same, each chunk looked at as it comes."""
    for some in rows:
        if not some.isfinite().all():
            raise InputError(
                f"W is not finite: the network's linear part overflows in {str(some.dtype).removeprefix('torch.')} or "
                "divides by zero; try model.double(), or give the division a rule: linearize(..., rules=...)"
            )
        yield some


def _gather(rows: Iterator[Tensor], W: Tensor) -> Tensor:
    """W, filled with the rows."""
    done = 0
    for some in rows:
        W[done : done + len(some)] = some
        done += len(some)
    return W


def _store(rows: Iterator[Tensor], shape: tuple[int, ...], dtype: torch.dtype, path: Path) -> Tensor:
    """W on the disk, mapped into memory: a header, then the numbers row by row, as safetensors has it."""
    size = torch.Size(shape).numel() * dtype.itemsize
    entry = {"W": {"dtype": TYPES[dtype], "shape": shape, "data_offsets": [0, size]}}
    header = json.dumps(entry).encode()
    header += b" " * (-len(header) % 8)  # so that the numbers are aligned
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for some in rows:
            file.write(some.cpu().contiguous().view(torch.uint8).numpy().data)
    start = 8 + len(header)
    data = torch.from_file(str(path), shared=False, size=start + size, dtype=torch.uint8)
    return data[start:].view(dtype).view(shape)


def _black_image(model: nn.Module, input_shape: Sequence[int] | None) -> Tensor:
    """A batch of one zero image, of the type and on the device of the model."""
    shape = getattr(model, "input_shape", None) if input_shape is None else input_shape
    if shape is None:
        raise InputError(
            f"{type(model).__name__} does not say what it takes: pass the shape of one image, as in "
            "linear_map(model, (3, 32, 32)), or give it an attribute input_shape"
        )
    tensors = (t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
    like = next(tensors, torch.empty(()))
    return torch.zeros(1, *image_shape(shape), dtype=like.dtype, device=like.device)


def _logits(network: nn.Module, x: Tensor) -> tuple[Tensor, Float[Tensor, "n classes"], int]:
    """As `_run`, if what comes out is logits with a derivative."""
    images = "one image" if len(x) == 1 else f"{len(x)} images"
    try:
        x, z, widest = _run(network, x)
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
    if not z.requires_grad:
        raise InputError("the logits have no derivative by the image: the network must compute them differentiably")
    return x, z, widest


def _run(network: nn.Module, x: Tensor) -> tuple[Tensor, Any, int]:
    """The images as a leaf, what the network gives for them, and the bytes of the largest tensor on the way.

    In the memory format that convolutions are fastest in, unless the network cannot do with it.
    """
    with suppress(RuntimeError):  # x.view(n, -1), for one
        return _run_in(torch.channels_last, network, x)
    return _run_in(torch.contiguous_format, network, x)


def _run_in(layout: torch.memory_format, network: nn.Module, x: Tensor) -> tuple[Tensor, Any, int]:
    def laid_out(t: Tensor) -> Tensor:
        return t.detach().contiguous(memory_format=layout) if t.dim() == 4 else t.detach()

    quiet = Quiet(network)
    weights = {name: laid_out(p) for name, p in quiet.named_parameters()}  # detached: no derivatives by them
    leaf = laid_out(x).clone().requires_grad_()
    with _Widest() as widest:
        z = torch.func.functional_call(quiet, weights, leaf.clone())  # a clone, as networks may begin in place
    return leaf, z, widest.bytes
