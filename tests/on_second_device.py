"""What test_second_device.py runs in a process of its own: public functions on the CPU, and on a second device.

That is CUDA where there is one, else a stand-in which refuses to meet the CPU as CUDA does.
`python on_second_device.py` prints a line for each case: its name, and "same", or how the second device differs.
"""

import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from lrc import attacks, clustering, evaluation, linearization, plots
from lrc.attacks import pgd
from lrc.data import Images, batches
from lrc.data.colours import class_means
from lrc.hierarchy import Hierarchy
from lrc.inspection import inspect as inspected
from lrc.models import JPEG, Superclasses, build, resnet8
from lrc.training import objectives, train
from lrc.training.heads import with_new_head

CLASSES, GROUPS, EPS = ("ant", "bee", "car", "van"), [[0, 1], [2, 3]], 8 / 255
ANIMALS = Hierarchy.of({"animals": ["ant", "bee"], "vehicles": ["car", "van"]}, CLASSES)
SECOND = "cuda" if torch.cuda.is_available() else "second"
Case = Callable[[str], Any]
"""What it gives on the device of that name."""


def draw(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


class Double(nn.Module):
    """A network in double precision, in which no rounding turns the sign of a gradient."""

    input_shape = (3, 16, 16)

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.body = build("resnet8", classes=len(CLASSES), width=4, suppress=True, generator=draw(), **options).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.to(next(self.parameters()).dtype))  # inspection makes it single


def network(place: str, **options: Any) -> nn.Module:
    return Double(**options).to(place)


def coloured(n: int = 8, seed: int = 0) -> Images:
    y = torch.arange(n) % len(CLASSES)
    x = torch.randint(0, 256, (n, 3, 16, 16), generator=draw(seed))
    x[:, 0] = x[:, 0] // 2 + 30 * y[:, None, None]
    return Images(x.to(torch.uint8), y, CLASSES, ANIMALS)


def labelled(place: str, **options: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """A network and images, labelled as it sees them."""
    model, x = network(place, **options).eval(), coloured().float().to(place)
    return model, x, model(x).argmax(1)


def correlation(place: str) -> Tensor:
    return clustering.class_correlation(torch.randn(4, 3, 4, 4, generator=draw()).to(place))


def attacked(attack: Callable[..., Tensor], **options: Any) -> Case:
    def case(place: str) -> Any:
        model, x, y = labelled(place)
        found = attack(model, x, y, generator=draw(), **options)
        assert found.device == x.device
        return found

    return case


def on_matrix(function: Callable[..., Any], *arguments: Any, **options: Any) -> Case:
    """The arguments go to the device too."""

    def case(place: str) -> Any:
        return function(
            correlation(place), *(a.to(place) if isinstance(a, Tensor) else a for a in arguments), **options
        )

    return case


def verdicts(place: str) -> Any:
    model, x, y = labelled(place)
    found = attacks.autoattack(model, x[:2], y[:2], eps=EPS, version={"pgd": partial(pgd, steps=2)}, generator=draw())
    return vars(found)


def objective(name: str, **options: Any) -> Case:
    """The value, and the gradient of the first weight."""

    def case(place: str) -> Any:
        model, x, y = labelled(place, jpeg=90 if name == "jpeg" else None)
        given = options | ({"teacher": network(place)} if name == "distillation" else {})
        value = objectives.named(name, **given)(model.train(), x, y, generator=draw())
        return value, torch.autograd.grad(value, next(model.parameters()))

    return case


class Broken(Exception):
    pass


left = 0  # steps until the next training breaks off


def trades(model: nn.Module, x: Tensor, y: Tensor, *, generator: Generator) -> Tensor:
    global left
    left -= 1
    if left < 0:
        raise Broken
    return objectives.named("trades", steps=1)(model, x, y, generator=generator)


def training(place: str) -> Any:
    """Two epochs of two steps, broken off in the last, and gone on with: metrics and weights."""
    global left
    with TemporaryDirectory() as out:
        run = partial(
            train, data=coloured(), objective=trades, epochs=2, batch_size=4, lr=0.05, ema=0.5, out=out,
            checkpoint_every=1, validation=coloured(8, 1), attack=partial(pgd, eps=EPS, steps=1),
            watch=objectives.watch_collapse(coloured(4, 2).float(), torch.arange(4), steps=1),
        )  # fmt: skip
        left = 3
        with pytest.raises(Broken):
            run(network(place))
        left, model = 1, network(place)
        metrics = run(model)
    return [{k: v for k, v in record.items() if "seconds" not in k} for record in metrics], model.state_dict()


def judged(place: str) -> Any:
    """A small evaluation, and what it reads from its folder the next time."""
    model, data = network(place), coloured()
    cheap = {"pgd": partial(pgd, steps=2), "square": partial(attacks.square, queries=5), "both": attacks.autoattack}
    cheap["both"] = partial(attacks.autoattack, version={"a": cheap["pgd"], "b": partial(attacks.fab, steps=2)})
    with TemporaryDirectory() as out:
        run = partial(evaluation.evaluate, model, data, attacks=cheap, batch_size=3, out=out)
        first, again = run(masking=False, generator=draw()), run(masking=False, generator=draw())
    found = {name: result.predictions for name, result in first.results.items()}
    assert found == {name: result.predictions for name, result in again.results.items()}
    assert first.versions["device"] == place
    return found


def images_there(place: str) -> Any:
    """Images that lie on the device, in shuffled and augmented batches, split, selected and counted."""
    data = coloured().to(place)
    shuffled = list(batches(data, 3, shuffle=True, augment=True, generator=draw()))
    rest, held = data.split(4)
    return shuffled, rest.x, held.y, data.select(["bee", "van"]).x, data.subset([1, 5]).y, data.digest(), data.float()


def to_file(place: str) -> Any:
    with TemporaryDirectory() as folder:
        return linearization.linear_map(network(place), out=Path(folder, "W.safetensors")).clone()


def inspection(place: str) -> Any:
    found = inspected(Double().float().to(place), coloured(12), masking=False, local=4, generator=draw())
    assert found.to_html()
    return found.figures()


def plotted(place: str) -> Any:
    C, W = correlation(place), linearization.linear_map(network(place))
    plots.matrix(C, CLASSES, groups=GROUPS)
    plots.tree(clustering.tree(C), CLASSES)
    plots.images(plots.rows(W))
    return plots.rows(W)


def refusals(place: str) -> Any:
    """What CUDA refuses when the two devices meet, and what it lets through."""
    here, there = torch.ones(3), torch.ones(3).to(place)
    first, last = torch.tensor([0]), torch.tensor([2]).to(place)
    mixed: list[Callable[[], Any]] = [
        lambda: here + there,
        lambda: there.mul_(here),
        lambda: torch.cat([there, here]),
        lambda: torch.stack([there.sum(), here.sum()]),
        lambda: there @ here,
        lambda: here[last],
        lambda: there.index_select(0, first),
        lambda: torch.rand(3, generator=draw(), device=place),
        lambda: there.numpy(),
    ]
    for act in mixed if place != "cpu" else []:
        with pytest.raises((RuntimeError, TypeError)):
            act()
    return there + here.sum(), there[first], there.copy_(2 * here), torch.where(there > 1, here.sum(), there).tolist()


MATRIX = torch.rand(4, 4, generator=draw(3)).cov()
CASES: dict[str, Case] = {
    "refusals": refusals,
    "attacks.apgd": attacked(attacks.apgd, eps=EPS, steps=5, loss="dlr", targets=2),
    "attacks.autoattack": verdicts,
    "attacks.cw": attacked(attacks.cw, steps=5, searches=2),
    "attacks.fab": attacked(attacks.fab, eps=EPS, steps=3, targets=2),
    "attacks.fgsm": attacked(attacks.fgsm, eps=EPS, random_start=True),
    "attacks.linbp": attacked(attacks.linbp, eps=EPS, steps=2),
    "attacks.linear_backward": lambda p: attacks.linear_backward(network(p).eval())(coloured().float().to(p)),
    "attacks.mifgsm": attacked(attacks.mifgsm, eps=EPS, steps=3, diversity=0.7, norm="l2"),
    "attacks.nattack": attacked(attacks.nattack, eps=EPS, queries=20, samples=5),
    "attacks.nes": attacked(attacks.nes, eps=EPS, queries=20, samples=4),
    "attacks.pgd": attacked(attacks.pgd, eps=EPS, steps=3, restarts=2),
    "attacks.sgm": attacked(attacks.sgm, eps=EPS, steps=2),
    "attacks.skip_gradient": lambda p: attacks.skip_gradient(network(p), gamma=0.5).eval()(coloured().float().to(p)),
    "attacks.square": attacked(attacks.square, eps=EPS, queries=10),
    "attacks.square in l2": attacked(attacks.square, eps=0.5, queries=10, norm="l2"),
    "attacks.apgd in l2": attacked(attacks.apgd, eps=0.5, steps=5, norm="l2"),
    "attacks.fab in l2": attacked(attacks.fab, steps=3, norm="l2"),
    "clustering.agreement": on_matrix(lambda C: clustering.agreement(clustering.cut(clustering.tree(C), 2), GROUPS)),
    "clustering.agreements": on_matrix(lambda C: clustering.agreements(clustering.tree(C), GROUPS)),
    "clustering.bootstrap": on_matrix(lambda C: clustering.bootstrap(torch.mean, C.flatten(), generator=draw())),
    "clustering.class_correlation": lambda p: [correlation(p), clustering.class_correlation(network(p), centre=True)],
    "clustering.contrast": on_matrix(clustering.contrast, GROUPS),
    "clustering.cophenetic": on_matrix(lambda C: clustering.cophenetic(clustering.tree(C))),
    "clustering.cophenetic_correlation": on_matrix(
        lambda C: clustering.cophenetic_correlation(clustering.tree(C), 1 - C)
    ),
    "clustering.cut": on_matrix(lambda C: clustering.cut(clustering.tree(C), 2)),
    "clustering.effective_rank": on_matrix(clustering.effective_rank, centre=True),
    "clustering.eigengap": on_matrix(clustering.eigengap),
    "clustering.eigenvalues": on_matrix(clustering.eigenvalues),
    "clustering.feature_distance": on_matrix(clustering.feature_distance, torch.arange(4) // 2),
    "clustering.holm": on_matrix(lambda C: clustering.holm(C[0].abs().clamp(max=1).tolist())),
    "clustering.mantel_test": on_matrix(clustering.mantel_test, MATRIX, samples=9, generator=draw()),
    "clustering.p_value": on_matrix(lambda C: clustering.p_value(0.1, C[0])),
    "clustering.permutation_test": on_matrix(clustering.permutation_test, GROUPS),
    "clustering.permutation_tests": on_matrix(clustering.permutation_tests, ANIMALS),
    "clustering.random_contrasts": lambda p: clustering.random_contrasts(
        lambda g: resnet8(4, width=4, generator=g).double().to(p), GROUPS, n=2, generator=draw()
    ),
    "clustering.t_interval": on_matrix(lambda C: clustering.t_interval(C[0])),
    "clustering.tree": on_matrix(lambda C: torch.from_numpy(clustering.tree(C))),
    "clustering.triplet_agreement": on_matrix(clustering.triplet_agreement, MATRIX),
    "evaluation.accuracy": lambda p: evaluation.accuracy(
        network(p), coloured(), attack=partial(pgd, eps=EPS, steps=1), generator=draw(), batch_size=3
    ),
    "evaluation.confusions": lambda p: evaluation.confusions(torch.tensor([0, 1, 3]).to(p), torch.arange(3), GROUPS),
    "evaluation.evaluate": judged,
    "evaluation.logits": lambda p: evaluation.logits(network(p), coloured().to(p)),
    "evaluation.masking_flags": lambda p: evaluation.masking_flags(
        network(p), coloured(4), images=4, surrogate=network(p), generator=draw(), batch_size=3
    ),
    "evaluation.per_superclass": lambda p: evaluation.per_superclass(torch.eye(3).to(p), torch.tensor([0, 1, 1])),
    "evaluation.wilson": lambda p: evaluation.wilson(1, 2),
    "linearization.affine_map": lambda p: linearization.affine_map(network(p), batchnorm="fold"),
    "linearization.alignment": lambda p: linearization.alignment(
        linearization.local_map(network(p), coloured(2).float().to(p)), linearization.linear_map(network(p))
    ),
    "linearization.linear_map": lambda p: linearization.linear_map(network(p), chunk=3),
    "linearization.linear_map to a file": to_file,
    "linearization.linearize": lambda p: linearization.linearize(
        network(p), gates=coloured(2).float().to(p), input_shape=(3, 16, 16)
    )(coloured(2).float().to(p)),
    "linearization.local_map": lambda p: linearization.local_map(network(p), coloured(2).float().to(p)),
    "linearization.mean_local_map": lambda p: linearization.mean_local_map(
        network(p), coloured(3).float().to(p), batch_size=2
    ),
    "linearization.superposition_error": lambda p: (
        linearization.superposition_error(linearization.linearize(network(p), input_shape=(3, 16, 16)), (3, 16, 16))
        < 1e-12
    ),
    "models.JPEG": lambda p: JPEG(50).to(p)(coloured().float().to(p)),
    "models.Superclasses": lambda p: Superclasses(network(p), GROUPS, by="sum").eval()(coloured().float().to(p)),
    "data": images_there,
    "data.class_means": lambda p: class_means(coloured().to(p)),
    "inspection": inspection,
    "plots": plotted,
    "training": training,
    "training.with_new_head": lambda p: with_new_head(network(p), coloured(), layers="all", epochs=1, batch_size=4),
}
for _name in objectives.METHODS:
    _cheap = {"steps": 1} if "steps" in signature(objectives.METHODS[_name]).parameters else {}
    CASES[f"method {_name}"] = objective(_name, **_cheap)
for _on in ("features", "logits", "rows"):
    CASES[f"clustering on {_on}"] = objective("fast", groups=GROUPS, clustering=0.1, on=_on, squeezing=0.1)
CASES["weight perturbation"] = objective("trades", steps=1, awp=0.01)


def flat(value: Any) -> Iterator[Any]:
    """The numbers in a result, those of tensors on the CPU."""
    if isinstance(value, Tensor):
        yield value.detach().cpu().flatten()
    elif isinstance(value, nn.Module):
        yield from flat(value.state_dict())
    elif is_dataclass(value):
        yield from flat(vars(value))
    elif isinstance(value, Mapping):
        yield from flat(list(value.items()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from flat(each)
    else:
        yield value


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)
    return one == other or isinstance(one, float) and abs(one - other) <= 1e-4 * abs(one) + 1e-6


def compared(case: Case) -> str:
    """Says "same", or how the second device differs."""
    try:
        one, other = list(flat(case("cpu"))), list(flat(case(SECOND)))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)
        inside = [f"{Path(f.filename).name}:{f.lineno}" for f in place if "/lrc/" in f.filename][-2:]
        return f"{type(error).__name__} {' '.join(str(error).split())} at {', '.join(inside)}"
    differ = [(a, b) for a, b in zip(one, other, strict=True) if not alike(a, b)]
    return " ".join(f"{len(differ)} of {len(one)} values differ: {differ[0]}".split()) if differ else "same"


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if SECOND == "second":
        import second_device  # noqa: F401 -- here: from now on it is this process's accelerator

    for name in sys.argv[1:] or CASES:
        print(f"{name}: {compared(CASES[name])}", flush=True)


if __name__ == "__main__":
    main()
