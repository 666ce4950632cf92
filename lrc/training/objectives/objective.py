"""Training objectives: a loss on adversarial examples, regularization terms, adversarial weight perturbation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from lrc.utils.checks import (
    check_function,
    check_generator,
    check_images,
    check_labels,
    check_logits,
    check_network,
    check_number,
    explained,
)
from lrc.utils.errors import InputError
from lrc.utils.hashes import described
from lrc.utils.networks import preserved, replaced
from lrc.utils.processes import mean_over_processes
from lrc.utils.tensors import Labels, Logits, Pixels, Scalar
from lrc.utils.typed import typed

Loss = Callable[..., Tensor]
"""`loss(model, x, y, x_adv) -> scalar`: the formula, on adversarial examples that are made already."""

InnerAttack = Callable[..., Tensor]
"""`attack(model, x, y, *, generator) -> x_adv`: an attack, its options fixed by `functools.partial`."""


@dataclass(frozen=True, eq=False)
class TermInputs:
    """Inputs of a regularization term: the batch, its adversarial examples, and the logits the loss computed on them.

    Attributes:
        x, y: images in [0, 1] and labels.
        x_adv, z_adv: adversarial examples (without an attack x itself) and their logits, at least float32, with graph.
        generator: of a term's random numbers.
    """

    x: Pixels
    y: Labels
    x_adv: Pixels
    z_adv: Logits
    generator: Generator | None = None


Term = Callable[[nn.Module, TermInputs], Tensor]
"""`term(model, inputs) -> scalar`: what is added to a loss, its options fixed by `functools.partial`."""


@dataclass(frozen=True, eq=False, repr=False)
class Objective:
    """The quantity a training step minimizes: `objective(model, x, y, generator=...)` is a scalar with its graph.

    Attributes:
        loss: the formula.
        attack: the inner maximization, in eval mode and with frozen parameters; absent, the loss is of the images.
        terms: weights and terms that are added to the loss.
        gamma: size of the adversarial weight perturbation; 0 for none. See `awp`.

    `str(objective)` is the same in every process, so that a checkpoint can tell whether it is resumed as it was begun.

    >>> from lrc.training.objectives import named
    >>> named("trades", beta=3.0)
    Objective(loss=trades(beta=3.0), attack=trades_attack(eps=0.031..., loss='kl', step=0.007, steps=10))
    """

    loss: Loss
    attack: InnerAttack | None = None
    terms: tuple[tuple[float, Term], ...] = ()
    gamma: float = 0.0

    def __call__(self, model: nn.Module, x: Pixels, y: Labels, *, generator: Generator | None = None) -> Scalar:
        """The loss of a batch, images in [0, 1]; the generator is of the attack's and the terms' random numbers.

        Raises:
            InputError: no network, images or labels that no training has (`lrc.utils.checks`), or a network that fails
                on them or gives no logits.
        """
        check_network(model)
        check_images(x)
        check_labels(y, len(x))
        check_generator(generator)
        x, y = x.clone(), y.long()  # a network may write into what it is given
        x_adv = x if self.attack is None else self.attack(model, x, y, generator=generator)
        if not self.gamma:
            return self._value(model, x, y, x_adv, generator)
        with preserved(model):
            worse = _worse_weights(model, self._value(model, x, y, x_adv, generator), self.gamma)
        with replaced(model, worse):
            return self._value(model, x, y, x_adv, generator)

    def _value(self, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, generator: Generator | None) -> Scalar:
        if not self.terms:
            return self.loss(model, x, y, x_adv)
        recording = _Recording(model)
        value = self.loss(recording, x, y, x_adv)
        captured = [z for at, z in recording.captured if at.is_set_to(x_adv)]
        if not captured:
            raise InputError("the loss never runs the network on x_adv itself, so a term cannot use the logits of it")
        inputs = TermInputs(x, y, x_adv, wide(captured[-1]), generator)
        return value + torch.stack([weight * term(model, inputs) for weight, term in self.terms]).sum()

    def __repr__(self) -> str:
        kept = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return f"Objective({', '.join(f'{k}={described(v)}' for k, v in kept.items())})"


def adding(objective: Objective, term: Term, *, weight: float) -> Objective:
    """The objective with `weight * term(model, inputs)` added to its loss; the network is not run again."""
    check_function("term", term, "model", "inputs")
    check_number("weight", weight, "(-inf, inf)")  # below 0 what the term measures grows
    return replace(objective, terms=(*objective.terms, (weight, term)))


@typed
def awp(objective: Objective, *, gamma: float) -> Objective:
    """The objective at worse weights: ``min_w max_{v in V} L(w + v)``, with V the weights within gamma of w, by layers.

    The examples are made once, at w. One step up the loss, d, is scaled layer by layer to the length of the weights,
    ``v_l = gamma |w_l| / |d_l| d_l``, for weights of more than one dimension (biases and batch norm stay). The loss is
    taken at w + v and its gradient there becomes that of w, v being constant. The weights themselves are never changed,
    and the running statistics see the last pass alone. Where the training is spread over processes d is their mean.

    Args:
        objective: any; its terms are taken at the worse weights too.
        gamma: 0.01 with adversarial training, 0.005 with TRADES (the authors' values).

    Source: Wu, Xia & Wang, *Adversarial weight perturbation helps robust generalization* (2020).
    """
    return replace(objective, gamma=gamma)


def logits(model: nn.Module, x: Pixels) -> Logits:
    """The logits in at least float32: a loss of half-precision logits, as under autocast, would be coarse."""
    with explained(model, x):
        z = model(x)
    return wide(check_logits(z, len(x), values=False))


def refuse_compiled(model: nn.Module) -> None:
    """Raises `InputError` for a network under `torch.compile`, which does not see hooks that come and go."""
    if any(module._compiled_call_impl is not None for module in model.modules()):
        raise InputError("this loss looks inside the network, which torch.compile hides: train without compile")


def wide(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """z in at least float32."""
    return z if z.dtype == torch.float64 else z.float()


@contextmanager
def head_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs of the last linear layer, captured while the context lasts.

    Raises InputError: there is no linear layer, or the network is compiled.
    """
    refuse_compiled(model)
    heads = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not heads:
        raise InputError("the network has no linear layer, so no features before it")
    captured: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        captured.append(inputs[0])

    handle = heads[-1].register_forward_pre_hook(note)
    try:
        yield captured
    finally:
        handle.remove()


class _Recording(nn.Module):
    """The network, with its inputs and logits recorded. A hook would do the same, but not on a compiled network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.captured: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Pixels) -> Logits:
        z = self.model(x)
        self.captured.append((x, z))
        return z


def _worse_weights(model: nn.Module, value: Scalar, gamma: float) -> dict[int, Tensor]:
    """The weights of more than one dimension after the step up the loss, by the `id` of the parameter."""
    weights = [p for p in model.parameters() if p.dim() > 1 and p.requires_grad]
    steps = torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True)
    pairs = zip(weights, mean_over_processes(steps), strict=True)
    return {id(p): p + _scaled(d, p.detach(), gamma) for p, d in pairs}


def _scaled(d: Tensor, w: Tensor, gamma: float) -> Tensor:
    """d at gamma times the length of w; 0 where d is 0."""
    length = torch.linalg.vector_norm(d)
    return d * torch.where(length > 0, gamma * torch.linalg.vector_norm(w) / length, 0.0)
