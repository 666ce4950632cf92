"""The linear sub-network as what it is: one matrix W, and the vector b."""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrc.linearization.checking import image_shape
from lrc.linearization.jacobian import differentiated
from lrc.linearization.network import linearize
from lrc.linearization.tracing import like
from lrc.utils.checks import check_network
from lrc.utils.errors import InputError
from lrc.utils.files import replacing
from lrc.utils.processes import Fabric, place

TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""What safetensors calls the types."""


def linear_map(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    chunk: int | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    fabric: Fabric | None = None,
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
        fabric: processes that share the backward passes: `lrc.utils.processes.join`. All call this function alike, and
            get the whole; the first writes the file. With the same `chunk` the rows are those of one process to the
            last digit; by default there is a chunk for each process at least, and rounding may differ.
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
    return affine_map(model, input_shape, chunk=chunk, out=out, progress=progress, fabric=fabric, **choices)[0]


def affine_map(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    chunk: int | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    fabric: Fabric | None = None,
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
    check_network(model)
    x = _black_image(model, input_shape)
    linear = linearize(model, input_shape=x.shape[1:], **choices)
    if out is not None and Path(out).is_dir():
        raise InputError(f"out ({out}) is a folder: give the name of a file in it")
    with differentiated(linear, x, chunk=chunk, progress=progress, fabric=fabric) as (z, chunks):
        rows, shape = _finite(chunk[:, 0] for chunk in chunks), (z.shape[1], *x.shape[1:])
        W = _gather(rows, x.new_empty(shape)) if out is None else _store(rows, shape, x.dtype, Path(out), fabric)
        return W, z[0].detach()


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


def _store(
    rows: Iterator[Tensor], shape: tuple[int, ...], dtype: torch.dtype, path: Path, fabric: Fabric | None
) -> Tensor:
    """W on the disk, written by the first process, mapped into memory by all."""
    size = torch.Size(shape).numel() * dtype.itemsize
    entry = {"W": {"dtype": TYPES[dtype], "shape": shape, "data_offsets": [0, size]}}
    header = json.dumps(entry).encode()
    header += b" " * (-len(header) % 8)  # so that the numbers are aligned
    if place(fabric)[0]:
        deque(rows, 0)  # takes its part in computing them
    else:
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for some in rows:
                file.write(some.cpu().contiguous().view(torch.uint8).numpy().data)
    if fabric is not None:
        fabric.barrier()
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
    return torch.zeros(1, *image_shape(shape)).to(like(model, torch.empty(())))
