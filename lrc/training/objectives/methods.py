"""The defences by the names that the field gives them, with the published options as defaults."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Generator, Tensor, nn

from lrc.attacks import fgsm, pgd
from lrc.training.objectives import losses, regularizers
from lrc.training.objectives.inner_attacks import (
    gaussian_noise,
    gradient_norm_attack,
    local_linearity_attack,
    trades_attack,
)
from lrc.training.objectives.objective import Objective, adding, awp
from lrc.training.objectives.regularizers import Groups
from lrc.utils.errors import InputError
from lrc.utils.tensors import Labels, Scalar
from lrc.utils.typed import typed

EPS = 8 / 255  # not 0.031, which some published scripts have


@typed
def named(
    name: str,
    *,
    groups: Groups | None = None,
    clustering: float = 0.0,
    on: str = "logits",
    reduction: str = "sum",
    squeezing: float = 0.0,
    awp: float = 0.0,
    **options: Any,
) -> Objective:
    """The objective of the method called `name`.

    Args:
        name: one of `METHODS`.
        groups: superclasses, for the clustering term.
        clustering: weight of the clustering term (the paper's beta is 0.1); 0 for none.
        on, reduction: of that term, see `clustered`: what it acts on, "features", "logits" or "rows" of the linear map;
            and "sum" or "mean" (the paper's for CIFAR-20, where the weight is 1).
        squeezing: weight of `logit_penalty`, which makes logits small without regard to superclasses; 0 for none.
        awp: size gamma of the adversarial weight perturbation (0.01, with TRADES 0.005); 0 for none.
        options: of the method; see `METHODS[name]` for those it has.

    Raises:
        InputError: an unknown method or option, the message lists those there are; an option that the method cannot
            do without; a clustering term without groups.

    >>> named("adversarial", clustering=0.1, groups=[[0, 1], [2, 3]])
    Objective(loss=cross_entropy, attack=pgd(eps=0.031..., step=0.007, steps=10),
        terms=[[0.1, clustering(groups=[[0, 1], [2, 3]], reduction='sum')]])
    >>> named("trade")
    Traceback (most recent call last):
    lrc.utils.errors.InputError: no method is called 'trade'; there are standard, label_smoothing, ...
    """
    if not isinstance(name, str) or name not in METHODS:
        raise InputError(f"no method is called {name!r}; there are {', '.join(METHODS)}")
    parameters = inspect.signature(METHODS[name]).parameters
    possible, needed = list(parameters), [k for k, p in parameters.items() if p.default is p.empty]
    unknown = [option for option in options if option not in possible]
    if unknown:
        others = ", ".join([*possible, "groups", "clustering", "on", "reduction", "squeezing", "awp"])
        raise InputError(f"{name} has no option {unknown[0]!r}; there are {others}")
    if missing := [option for option in needed if option not in options]:
        raise InputError(f"{name} needs the option {missing[0]!r}: give it too")
    objective = typed(METHODS[name])(**options)
    if clustering:
        if groups is None or not len(groups):
            raise InputError("the clustering term needs groups: lists of the classes of each superclass")
        objective = clustered(objective, groups, weight=clustering, on=on, reduction=reduction)
    if squeezing:
        objective = adding(objective, regularizers.logit_penalty, weight=squeezing)
    return _perturbed(objective, gamma=awp) if awp else objective


_perturbed = awp  # `named` has an option of that name


@typed
def clustered(
    objective: Objective, groups: Groups, *, weight: float | None = None, on: str = "logits", reduction: str = "sum"
) -> Objective:
    """The objective with a clustering term: the classes of a superclass are drawn together.

    Args:
        groups: the superclasses, lists of the numbers of their classes.
        weight: of the term; absent, the paper's beta: 0.1 with "sum" (CIFAR-10), 1 with "mean" (CIFAR-20), and 1 for
            features and rows, where there is no published one.
        on: "features", of the adversarial examples (`feature_clustering`), "logits", of these examples (the
            paper's `clustering_term`), or "rows", of the linear map (`row_clustering`).
        reduction: of the term on logits.

    Raises:
        InputError: something else that it could act on.
    """
    fixed = _as_tuples(groups)
    published = 0.1 if on == "logits" and reduction == "sum" else 1.0
    possible = {
        "features": partial(regularizers.feature_clustering, groups=fixed),
        "logits": partial(regularizers.clustering, groups=fixed, reduction=reduction),
        "rows": partial(regularizers.row_clustering, groups=fixed),
    }
    if on not in possible:
        raise InputError(f'the clustering term acts on "features", "logits" or "rows", not {on!r}')
    return adding(objective, possible[on], weight=published if weight is None else weight)


def _as_tuples(groups: Groups) -> Groups:
    """The groups as numbers that do not change, and that look the same wherever they come from."""
    return tuple(tuple(int(k) for k in group) for group in groups)


def standard(model: nn.Module, x: Float[Tensor, "n c h w"], y: Labels, *, generator: Generator | None = None) -> Scalar:
    """Cross-entropy on the images as they are: `named("standard")`."""
    return named("standard")(model, x, y, generator=generator)


def adversarial(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Labels,
    *,
    eps: float = EPS,
    steps: int = 10,
    step: float | None = 0.007,
    generator: Generator | None = None,
) -> Scalar:
    """Cross-entropy on PGD examples of the images, made in eval mode: ``min_w max_{|d| <= eps} CE(f_w(x + d), y)``.

    Args:
        eps, steps, step: of the attack (Linf, random start); the paper's by default.
        generator: of the random start.

    Source: Madry et al. (2018), equation 2.1; step and eval mode as in the paper's official code.
    """
    return named("adversarial", eps=eps, steps=steps, step=step)(model, x, y, generator=generator)


def _standard(*, temperature: float = 1.0) -> Objective:
    """Cross-entropy on the images as they are."""
    if temperature == 1.0:
        return Objective(losses.cross_entropy)
    return Objective(partial(losses.cross_entropy, temperature=temperature))


def _label_smoothing(*, smoothing: float = 0.1, within: Groups | None = None) -> Objective:
    """Cross-entropy with a tenth of the label spread over all classes, or within its superclass."""
    if within is not None and not len(within):
        raise InputError("within names no superclass: give lists of the classes of each")
    loss = partial(losses.cross_entropy, smoothing=smoothing)
    return Objective(loss if within is None else partial(loss, groups=_as_tuples(within)))


def _noise(*, sigma: float = 0.25) -> Objective:
    """Cross-entropy on images with Gaussian noise (Cohen et al., 2019), here clipped to [0, 1]: no adversary."""
    return Objective(losses.cross_entropy, partial(gaussian_noise, sigma=sigma))


def _fast(*, eps: float = EPS, random_start: bool = True) -> Objective:
    """Fast adversarial training: FGSM of step 1.25 eps from a random start (Wong et al., 2020), or of eps without."""
    return Objective(losses.cross_entropy, partial(fgsm, eps=eps, random_start=random_start))


def _adversarial(
    *,
    eps: float = EPS,
    steps: int = 10,
    step: float | None = 0.007,
    smoothing: float = 0.0,
    within: Groups | None = None,
) -> Objective:
    """Adversarial training by PGD (Madry et al., 2018), options of the paper; labels may be smoothed as above."""
    if within is not None and not smoothing:
        raise InputError("within says where a share of the label is spread: give smoothing, that share, too")
    plain = _label_smoothing(smoothing=smoothing, within=within) if smoothing else _standard()
    return replace(plain, attack=partial(pgd, eps=eps, steps=steps, step=step))


def _trades(*, beta: float = 6.0, eps: float = EPS, steps: int = 10, step: float = 0.007) -> Objective:
    """TRADES (Zhang et al., 2019); the authors' script has eps 0.031."""
    attack = partial(trades_attack, eps=eps, steps=steps, step=step, loss="kl")
    return Objective(partial(losses.trades, beta=beta), attack)


def _mart(*, beta: float = 5.0, eps: float = EPS, steps: int = 10, step: float = 0.007) -> Objective:
    """MART (Wang et al., 2020); the authors' script has eps 0.031, and for ResNet-18 lr 0.01, weight decay 3.5e-3."""
    return Objective(
        partial(losses.mart, beta=beta), partial(trades_attack, eps=eps, steps=steps, step=step, loss="ce")
    )


def _distillation(*, teacher: nn.Module, temperature: float = 20.0) -> Objective:
    """Defensive distillation (Papernot et al., 2016)."""
    return Objective(partial(losses.distillation, teacher=teacher, temperature=temperature))


def _jacobian(*, weight: float = 0.01, projections: int = 1) -> Objective:
    """Jacobian regularization (Hoffman et al., 2019)."""
    return adding(_standard(), partial(regularizers.jacobian, projections=projections), weight=weight)


def _orthogonality(*, weight: float = 0.1, iterations: int = 2) -> Objective:
    """Spectral restricted isometry, SRIP (Bansal et al., 2018)."""
    return adding(_standard(), partial(regularizers.orthogonality, iterations=iterations), weight=weight)


def _soft_orthogonality(*, weight: float = 0.01) -> Objective:
    """Soft orthogonality (Bansal et al., 2018); the authors lower the weight as the training goes on."""
    return adding(_standard(), regularizers.soft_orthogonality, weight=weight)


def _parseval(*, weight: float = 0.003) -> Objective:
    """Parseval frames (Cisse et al., 2017), by a step of the learning rate times the weight."""
    return adding(_standard(), regularizers.parseval, weight=weight)


def _spectral_norm(*, weight: float = 0.01, iterations: int = 2) -> Objective:
    """Spectral norm regularization (Yoshida & Miyato, 2017)."""
    return adding(_standard(), partial(regularizers.spectral_norm, iterations=iterations), weight=weight)


def _local_linearity(*, weight: float = 4.0, slope: float = 3.0, eps: float = EPS, steps: int = 2) -> Objective:
    """Local linearity, LLR (Qin et al., 2019)."""
    return Objective(
        partial(losses.local_linearity, weight=weight, slope=slope),
        partial(local_linearity_attack, eps=eps, steps=steps),
    )


def _local_flatness(*, weight: float | None = None, eps: float = EPS, steps: int = 2) -> Objective:
    """Local flatness, LFR (Xu et al., 2020)."""
    loss = partial(losses.local_flatness, weight=eps if weight is None else weight)
    return Objective(loss, partial(gradient_norm_attack, eps=eps, steps=steps))


def _clustr(*, gap: float = 1.0, beta: float = 12.5, eps: float = EPS) -> Objective:
    """ClusTR with its quick consistency (Alfarra et al., 2020)."""
    attack = partial(trades_attack, eps=eps, steps=1, step=1.25 * eps, sigma=eps / 2, loss="kl")
    return Objective(partial(losses.clustr, gap=gap, beta=beta), attack)


def _cas(*, beta: float = 2.0, eps: float = EPS, steps: int = 10, step: float = 2 / 255) -> Objective:
    """Channel-wise activation suppressing (Bai et al., 2021): `lrc.models.build(..., suppress=True)`."""
    return Objective(partial(losses.suppressed, beta=beta), partial(pgd, eps=eps, steps=steps, step=step))


def _jpeg() -> Objective:
    """Cross-entropy on images that a layer of the network compresses first: `lrc.models.build(..., jpeg=50)`."""
    return Objective(losses.behind_jpeg)


METHODS: dict[str, Callable[..., Objective]] = {
    "standard": _standard,
    "label_smoothing": _label_smoothing,
    "noise": _noise,
    "fast": _fast,
    "adversarial": _adversarial,
    "trades": _trades,
    "mart": _mart,
    "distillation": _distillation,
    "jacobian": _jacobian,
    "orthogonality": _orthogonality,
    "soft_orthogonality": _soft_orthogonality,
    "parseval": _parseval,
    "spectral_norm": _spectral_norm,
    "local_linearity": _local_linearity,
    "local_flatness": _local_flatness,
    "clustr": _clustr,
    "cas": _cas,
    "jpeg": _jpeg,
}
"""From the name of a method to the function of its options that gives the objective."""
