"""The whole network near given images: its Jacobian there, and how it lies to the linear sub-network."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrc.linearization.jacobian import differentiated
from lrc.utils.checks import check_flag, check_network, check_rows, check_tensor, check_whole
from lrc.utils.errors import InputError
from lrc.utils.networks import check_independent
from lrc.utils.processes import Fabric, first_of, place


def local_map(
    model: nn.Module, x: Float[Tensor, "n *input"], *, chunk: int | None = None
) -> Float[Tensor, "n classes *input"]:
    """The Jacobian of the logits at each image: the linear map that the network is there.

    It is that of the whole network in eval mode, its gates as the image sets them. One forward pass of all the images,
    then one backward pass a chunk of classes, or a class where the images are many.

    Args:
        model: images to logits (n, classes), each image's of that image alone. It is left as it was.
        x: images, in [0, 1] as a rule; not changed.
        chunk: classes at a time, which bounds the memory beside the result; by default as many as make the largest
            gradient 64 MiB.

    Returns:
        Element (i, j) is the derivative of logit j by image i, in logits a unit of input; detached.

    Raises:
        InputError: no images, images of integers or such as do not fit the network, an output that is not logits or
            has no derivative, or depends on the other images of the batch.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), model[0].bias.data.zero_()
    >>> local_map(model, torch.tensor([[1.0, 1.0], [1.0, -0.6]]))  # the second image shuts the gate of the first unit
    tensor([[[1., 2.],
             [3., 4.]],
            [[0., 0.],
             [3., 4.]]])
    """
    _check(model, x)
    with differentiated(model, x, chunk=chunk) as (z, chunks):
        check_independent(model, x)
        J, done = x.new_empty(len(x), z.shape[1], *x.shape[1:]), 0
        for rows in chunks:
            J[:, done : done + len(rows)] = rows.transpose(0, 1)
            done += len(rows)
    return J


def mean_local_map(
    model: nn.Module,
    x: Float[Tensor, "n *input"],
    *,
    batch_size: int = 50,
    chunk: int | None = None,
    fabric: Fabric | None = None,
) -> Float[Tensor, " classes *input"]:
    """The mean of `local_map` over the images, which are never held all at once: to be compared with `linear_map`.

    Args:
        model, chunk: as in `local_map`.
        x: any number of images.
        batch_size: images at a time.
        fabric: processes that share the images: `lrc.utils.processes.join`. All call this function alike, with all of
            the images, and get the mean over all; they add up in another order than one process does.

    Raises:
        InputError: a batch size below 1, and as `local_map`.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> torch.allclose(mean_local_map(model, torch.rand(7, 1, 2, 2), batch_size=3).flatten(1), model[1].weight)
    True
    """
    _check(model, x)
    batch_size = check_whole("batch_size", batch_size, 1)
    rank, processes = place(fabric)
    batches, total = x.split(min(batch_size, -(-len(x) // processes))), x.new_zeros(0)
    for batch in batches[rank::processes]:
        with differentiated(model, batch, chunk=chunk) as (z, chunks):
            if not len(total):
                check_independent(model, batch)
                total = x.new_zeros(z.shape[1], *x.shape[1:])
            done = 0
            for rows in chunks:
                total[done : done + len(rows)] += rows.sum(1)
                done += len(rows)
    if fabric is not None:
        shape = first_of(fabric, lambda: total.shape)  # a process for which no image is left does not know it
        total = cast(Tensor, fabric.all_reduce(total if len(total) else x.new_zeros(shape), reduce_op="sum"))
    return total.div_(len(x))


def alignment(
    local: Float[Tensor, "n classes *input"], W: Float[Tensor, " classes *input"], *, centre: bool = False
) -> Float[Tensor, "n classes"]:
    """The cosine between each class' row of the local maps and its row of W, in [-1, 1].

    Args:
        local: of `local_map`; a mean one as `mean_local_map(...)[None]`.
        W: of `linear_map`.
        centre: subtract the mean over the classes from both first: to add one vector to all rows changes no decision,
            so that only what is left says something about the classifier; see `class_correlation`.

    Raises:
        InputError: shapes that do not belong together; a row of either that is zero (once centred, if so) or not
            finite, and so points nowhere.

    >>> W = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> alignment(torch.tensor([[[3.0, 0.0], [4.0, 3.0]]]), W)
    tensor([[1.0000, 0.6000]])
    """
    check_rows("local maps", local)
    check_rows("W", W)
    check_flag("centre", centre)
    if local.dim() < 3 or local.shape[1:] != W.shape:
        fitting = ", ".join(map(str, ("n", *W.shape)))
        raise InputError(
            f"local maps of shape {tuple(local.shape)} do not go with a W of shape {tuple(W.shape)}: "
            f"they have ({fitting}), a mean one as mean_local_map(...)[None]"
        )
    a, b = _directions(local, "the local maps", centre), _directions(W[None], "W", centre)
    return (a * b).sum(-1).clamp(-1, 1)


def _check(network: object, x: Any) -> None:
    check_network(network)
    check_tensor("images", x)
    if not x.dim():
        raise InputError("images must be (n, ...), not one number")
    if not len(x):
        raise InputError("there are no images to differentiate at: give at least one")
    if not x.is_floating_point():
        raise InputError(f"images of {x.dtype} have no derivatives: give numbers such as x.float() / 255")


def _directions(maps: Tensor, name: str, centre: bool) -> Float[Tensor, "n classes pixels"]:
    """The rows at length one."""
    rows = maps.flatten(2)
    floor = torch.zeros_like(rows[:, :1, 0])
    if centre:
        floor = 4 * torch.finfo(rows.dtype).eps * rows.abs().amax((1, 2))[:, None]  # what rounding leaves of equal rows
        rows = rows - rows.mean(1, keepdim=True)
    largest = rows.abs().amax(2)
    useless = (~(largest > floor) | ~largest.isfinite()).nonzero().tolist()
    if useless:
        image, k = useless[0]
        what = "equals the mean row" if centre else "is zero"
        raise InputError(
            f"the row of class {k} in {name} (map {image}) {what} or is not finite, one of {len(useless)}: "
            "it has no direction"
        )
    return nn.functional.normalize(rows / largest[..., None], dim=2)  # divided first: no square over- or underflows
