"""Any network that a user can name: built, its weights loaded, its outputs made logits, its inputs images in [0, 1]."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrc.inspection.architectures import Built, architecture
from lrc.inspection.weights import fit, read_weights
from lrc.models import Normalize
from lrc.utils.checks import check_network
from lrc.utils.errors import InputError
from lrc.utils.networks import untouched

__all__ = ["Logits", "Subject", "device_of", "load", "subject"]

CONTAINERS = ("_orig_mod", "module")  # of torch.compile and DataParallel
LOGITS = ("logits", "out", "output", "pred", "scores")  # names under which networks give them


@dataclass(frozen=True)
class Subject:
    """A network that can be asked: images in [0, 1] to logits (n, classes).

    Attributes:
        model: in eval mode, float32, on the CPU.
        name: what the user called it.
        data: options of the data set that it was trained on, for `lrc.data.named`; empty where nobody knows.
        shape: of an image, where the network says so.
        notes: what was done to it that the user did not ask for, a sentence each.
    """

    model: nn.Module
    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()


def load(
    spec: str,
    *,
    weights: str | Path | None = None,
    arguments: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
    classes: int | None = None,
) -> Subject:
    """The network that `spec` names, with its weights, as one from images in [0, 1] to logits.

    Args:
        spec: a network of the zoo; a folder that `lrc train` wrote; `torchvision:NAME`, `timm:NAME` or
            `transformers:FOLDER`; `FILE.py:NAME` or `PACKAGE.MODULE:NAME`, a function or class that builds it; a
            TorchScript or `torch.export` file.
        weights: a file with them: safetensors, or what `torch.save` wrote, read without running any code.
        arguments: of the function or class.
        pretrained: let torchvision, timm or transformers download weights of theirs.
        mean, std: of each channel, subtracted from images and divided by inside the network.
        shape: of an image (channels, height, width), to try the network on; by default the network's own, or 3x32x32.
        classes: number of classes; by default taken from the weights.

    Raises:
        InputError: a name that nothing has, a library that is not installed, weights that do not fit, code in a file of
            weights, outputs that are no logits, or a network that does not take images of that shape.
    """
    given = dict(arguments or {})
    built = architecture(spec, given, pretrained=pretrained)
    if weights is not None and built.scaled:
        raise InputError(f"{spec} has weights of its own: --weights goes with one's own network, MODULE:FUNCTION")
    if (mean is None) != (std is None):
        raise InputError("--mean and --std go together: give both, a number a channel")
    notes: list[str] = []
    if weights is not None:
        builds = {"": built}
        if built.side and shape is not None and built.side not in given:
            other = architecture(spec, {built.side: shape[-1]} | given, pretrained=pretrained)
            builds[f"it is built for images of side {shape[-1]}, as its weights are"] = other
        model = _fitted(builds, classes, Path(weights), spec, notes)
    else:
        model = built.make(classes)
    if weights is None and not built.loaded:
        notes.append("no weights were given: those of the network as it is built")
    inside = (mean, std) if mean is not None and std is not None else None
    if inside is None and built.normalization and not built.scaled:
        inside = built.normalization
        said = ", std ".join(", ".join(f"{v:.3g}" for v in values) for values in inside)
        notes.append(f"its own configuration normalizes images (mean {said})")
    try:
        found = subject(model, shape or built.shape or (3, 32, 32), name=spec, normalization=inside)
    except InputError as error:
        side = built.usual[-1] if built.usual and "does not take images" in str(error) else None
        raise InputError(f"{error}; it was made for --size {side}") if side else error from error
    found.model.eval()
    return replace(found, data=built.data, shape=built.shape, notes=(*notes, *found.notes))


def _fitted(builds: Mapping[str, Built], classes: int | None, path: Path, spec: str, notes: list[str]) -> nn.Module:
    """The first network that the weights fit, of some by what is to be said of each; else the misfit of the first."""
    state, remark = read_weights(path)
    errors = []
    for about, built in builds.items():
        said = [*remark, *([about] if about else [])]
        try:
            model = fit(built.make(classes), state, make=built.make, where=path, spec=spec, notes=said)
        except InputError as error:
            errors.append(error)
        else:
            notes += said
            return model
    raise errors[0]


def subject(
    model: Any,
    shape: Sequence[int],
    *,
    name: str = "the network",
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Subject:
    """The network as one from images in [0, 1] to logits; the module given stays as it was.

    Args:
        model: any module: compiled, scripted, in a container or in half precision, with any outputs that hold logits.
        shape: of an image (channels, height, width).
        name: what to call it.
        normalization: mean and std of each channel, to be subtracted and divided by inside the network.

    Raises:
        InputError: outputs that are no logits, or a network that does not take images of that shape.
    """
    notes: list[str] = []
    model = _plain(model, notes)
    if normalization is not None:
        if {len(values) for values in normalization} != {shape[0]}:
            raise InputError(f"--mean and --std have a number for each channel: the images have {shape[0]}")
        model = nn.Sequential(Normalize(*normalization).to(device_of(model)), model)
    return Subject(_as_logits(model, tuple(shape), name, notes), name, notes=tuple(notes))


def device_of(model: nn.Module) -> torch.device:
    """Where its weights are."""
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _plain(model: Any, notes: list[str]) -> nn.Module:
    """The network without the containers of torch.compile and DataParallel, in float32: a copy where it changes."""
    for name in CONTAINERS:
        inner = getattr(model, name, None)
        wraps = name == "_orig_mod" or isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
        if wraps and isinstance(inner, nn.Module):
            notes.append(f"{type(model).__name__} was taken off")
            model = inner
    check_network(model)
    other = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if other:
        notes.append(f"its weights were {', '.join(sorted(map(str, other)))}, and are float32 now")
        model = copy.deepcopy(model).float()
    return model


class Logits(nn.Module):
    """A network whose output is made logits (n, classes) by a stated rule.

    Args:
        model: images to some output.
        key: name or index of the logits in an output that holds several things; None: the output is a tensor.
        rule: "as they are"; "flatten" for (n, classes, 1, 1); "binary" for one logit z, which becomes (-z / 2, z / 2).
    """

    def __init__(self, model: nn.Module, key: str | int | None = None, rule: str = "as they are") -> None:
        super().__init__()
        self.model, self.key, self.rule = model, key, rule

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        z = self.model(x)
        if self.key is not None:
            z = z[self.key]
        if self.rule != "as they are":
            z = z.flatten(1)
        return torch.cat([-z / 2, z / 2], 1) if self.rule == "binary" else z


class OneByOne(nn.Module):
    """A network that was exported, traced or written for one image, as one for many; its outputs are tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n ..."]:
        return torch.cat([self.model(one) for one in x.split(1)])


def _takes_one(model: nn.Module, x: Float[Tensor, "1 c h w"]) -> bool:
    try:
        with untouched(model):
            return isinstance(model(x), Tensor)
    except Exception:
        return False


@torch.no_grad()
def _as_logits(model: nn.Module, shape: tuple[int, ...], spec: str, notes: list[str]) -> nn.Module:
    """The network with outputs (n, classes), by the rules of `Logits`; what cannot be made so is refused."""
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0)).to(device_of(model))
    try:
        with untouched(model):
            output = model(x)
    except Exception as error:
        if not isinstance(model, OneByOne) and _takes_one(model, x[:1]):
            notes.append("it takes one image at a time, and is slow: export it for any number (dynamic_shapes)")
            return _as_logits(OneByOne(model), shape, spec, notes)
        size, reason = "x".join(map(str, shape)), " ".join(str(error).split())[:200]
        raise InputError(f"{spec} does not take images of {size}: {type(error).__name__}: {reason}") from error
    if (key := _key(output, spec)) is not None:
        output = output[key]
        notes.append(f"of its outputs the logits are taken ({key!r})")
    z, rule = _ruled(output, len(x), spec, notes)
    if rule != "binary" and _probabilities(z):
        if isinstance(model, nn.Sequential) and isinstance(model[-1], nn.Softmax):
            notes.append("its last layer, a softmax, was taken off: attacks need logits")
            return _as_logits(model[:-1], shape, spec, notes)
        raise InputError(f"{spec} gives probabilities: leave out its softmax, since attacks need logits")
    return model if key is None and rule == "as they are" else Logits(model, key, rule)


def _key(output: Any, spec: str) -> str | int | None:
    """Where in an output of several things the logits are; None for a tensor."""
    if isinstance(output, Mapping):
        if found := next((name for name in LOGITS if name in output), None):
            return found
        raise InputError(f"{spec} gives {', '.join(map(str, output))}, and which are the logits is not clear")
    return 0 if isinstance(output, tuple | list) and output else None


def _ruled(output: Any, n: int, spec: str, notes: list[str]) -> tuple[Tensor, str]:
    """The output as (n, classes), and by which rule."""
    if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != n:
        what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"{spec} gives {what} for {n} images: expected logits (n, classes)")
    if output.is_complex():
        raise InputError(f"{spec} gives {output.dtype}: expected logits, which are real")
    z = output.flatten(1)
    if z.shape[1] != output.shape[1]:
        raise InputError(f"{spec} gives {tuple(output.shape)} for {n} images: expected logits (n, classes)")
    if z.shape[1] == 1:
        notes.append("it gives one logit z, taken as (-z / 2, z / 2) of two classes")
        return z, "binary"
    if output.dim() > 2:
        notes.append(f"its outputs {tuple(output.shape[1:])} are flattened")
        return z, "flatten"
    return z, "as they are"


def _probabilities(z: Float[Tensor, "n classes"]) -> bool:
    return bool((z >= 0).all() and ((z.sum(1) - 1).abs() < 1e-4).all())
