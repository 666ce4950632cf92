"""Averages of the weights over the steps, which often classify better than the last weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]
"""All that a network remembers, by the names of its `state_dict`: parameters and buffers."""


def copied(model: nn.Module) -> Weights:
    """The network's weights as they are now."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def update(average: Weights, model: nn.Module, *, decay: float, step: int) -> None:
    """Takes the weights after the given step, from 1, into their exponential moving average, in place.

    The average is ``sum_i decay^(t - i) w_i / sum_i decay^(t - i)`` over the steps i = 1..t, so that a short training
    has nothing of the initial weights in it. The running statistics of batch norm are averaged like weights: those of
    the last step would belong to the last weights, and they are averages over steps already. Whole numbers (batches
    counted) are copied.

    >>> average, model = {}, nn.Linear(1, 1, bias=False)
    >>> for step, value in enumerate((1.0, 4.0), 1):
    ...     _ = nn.init.constant_(model.weight, value)
    ...     update(average, model, decay=0.5, step=step)
    >>> average["weight"].item()  # (0.5 * 1 + 4) / 1.5
    3.0
    """
    if not average:
        average.update(copied(model))
    share = (1 - decay) / (1 - decay**step)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, share)
        else:
            average[name].copy_(value)


@contextmanager
def using(weights: Weights, model: nn.Module) -> Iterator[None]:
    """The network with other weights, then with its own again; without any, the network as it is."""
    if not weights:
        yield
        return
    own = copied(model)
    model.load_state_dict(weights)
    try:
        yield
    finally:
        model.load_state_dict(own)
