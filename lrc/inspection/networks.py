"""Any network that a user can name: built, its weights loaded, its outputs made logits, its inputs images in [0, 1]."""

import importlib
import importlib.util
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrc.inspection.weights import fit, read_weights
from lrc.models import Normalize
from lrc.utils.errors import InputError

__all__ = ["Logits", "Subject", "data_of", "load"]

LIBRARIES = ("torchvision", "timm", "transformers")
CONTAINERS = ("_orig_mod", "module")  # of torch.compile and DataParallel
LOGITS = ("logits", "out", "output")  # names under which networks give them


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


@dataclass(frozen=True)
class _Built:
    """What an architecture gives: how to build it for a number of classes, and what its own configuration says."""

    make: Callable[[int | None], Any]
    normalization: tuple[Sequence[float], Sequence[float]] | None = None
    shape: tuple[int, ...] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    loaded: bool = False  # with weights of its own
    scaled: bool = False  # takes images in [0, 1] as it is


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
    built = _architecture(spec, dict(arguments or {}), pretrained=pretrained)
    if weights is not None and built.scaled:
        raise InputError("--weights goes with one's own network, MODULE:FUNCTION")
    notes: list[str] = []
    model = built.make(classes)
    if weights is not None:
        state, remark = read_weights(Path(weights))
        notes += remark
        model = fit(model, state, make=None if classes else built.make, where=Path(weights), spec=spec, notes=notes)
    elif not built.loaded:
        notes.append("no weights were given: those of the network as it is built")
    model = _plain(model, notes)
    given = (mean, std) if mean is not None and std is not None else None
    if (mean is None) != (std is None):
        raise InputError("--mean and --std go together: give both, a number a channel")
    if inside := given or (None if built.scaled else built.normalization):
        model = nn.Sequential(Normalize(inside[0], inside[1]), model)
        if given is None:
            notes.append(
                f"its own configuration normalizes images (mean {_listed(inside[0])}, std {_listed(inside[1])})"
            )
    size = tuple(shape or built.shape or (3, 32, 32))
    model = _as_logits(model.eval(), size, spec, notes)
    return Subject(model.eval(), spec, built.data, tuple(built.shape) if built.shape else None, tuple(notes))


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.3g}" for v in values)


def _architecture(spec: str, arguments: dict[str, Any], *, pretrained: bool) -> _Built:
    """What `spec` names, not built yet."""
    path, (module, colon, name) = Path(spec), spec.partition(":")
    if path.is_dir():
        return _trained(path)
    if path.is_file():
        return _Built(lambda _: _from_file(path), loaded=True)
    if colon and module in LIBRARIES:
        return _library(module, name, arguments, pretrained=pretrained)
    if colon and not (module and name):
        raise InputError(f"{spec!r} names no function: expected a network of the zoo, or MODULE:FUNCTION")
    if colon:
        return _Built(_own(module, name, arguments))
    return _of_the_zoo(spec)


def data_of(spec: str) -> dict[str, Any]:
    """Name and options of the data set that a network of the zoo or of `lrc train` was trained on, else nothing.

    Raises:
        InputError: a folder that holds neither a network of `lrc train` nor one of transformers.
    """
    from lrc.experiments import store
    from lrc.experiments.recipe import read, recipes

    if Path(spec).is_dir() and not _of_transformers(Path(spec)):
        made = read(store.settings(Path(spec)), where=spec)
    elif spec in recipes():
        made = recipes()[spec]
    else:
        return {}
    return {k: v for k, v in made.written()["data"].items() if k not in ("validation", "limit")}


def _of_the_zoo(name: str) -> _Built:
    from lrc.experiments import store, zoo

    if name not in zoo.names():
        near = get_close_matches(name, zoo.names(), n=3, cutoff=0.4)
        hint = f"the nearest are {', '.join(near)}" if near else "lrc zoo list has them all"
        raise InputError(f"the zoo has no {name!r}; {hint}; or give a folder that lrc train wrote, or MODULE:FUNCTION")
    if not store.there(zoo.recipe(name)) and zoo.recipe(name).data.name != "shapes":
        raise InputError(f"{name} is not shipped, and training it takes hours: lrc zoo make {name} does that")
    return _Built(lambda _: zoo.obtain(name, progress=True).cpu(), data=data_of(name), loaded=True, scaled=True)


def _of_transformers(folder: Path) -> bool:
    try:
        return "model_type" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return False


def _trained(folder: Path) -> _Built:
    """A network in a folder that `lrc train` wrote, or one of transformers."""
    if _of_transformers(folder):
        return _library("transformers", str(folder), {}, pretrained=False)
    from lrc.experiments import fitting, store
    from lrc.experiments.recipe import read

    made = read(store.settings(folder), where=str(folder))
    return _Built(
        lambda _: fitting.restore(made, folder / store.WEIGHTS_FILE),
        data=data_of(str(folder)),
        loaded=True,
        scaled=True,
    )


def _library(library: str, name: str, arguments: dict[str, Any], *, pretrained: bool) -> _Built:
    if importlib.util.find_spec(library) is None:
        raise InputError(f"{library} is not installed: pip install {library}")
    return {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}[library](
        name, arguments, pretrained
    )


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _torchvision(name: str, arguments: dict[str, Any], pretrained: bool) -> _Built:
    from torchvision import models

    _known("torchvision", name, models.list_models())
    count = lambda n: {} if n is None else {"num_classes": n}  # noqa: E731
    weights = "DEFAULT" if pretrained else None
    normalization = IMAGENET if pretrained else None
    make = _named(f"torchvision:{name}", lambda n: models.get_model(name, weights=weights, **count(n), **arguments))
    return _Built(make, normalization, loaded=pretrained)


def _timm(name: str, arguments: dict[str, Any], pretrained: bool) -> _Built:
    import timm

    if not timm.is_model(name.split(".")[0]):
        _known("timm", name, timm.list_models())
    configuration = timm.get_pretrained_cfg(name)
    normalization = (configuration.mean, configuration.std) if configuration is not None else None
    shape = tuple(configuration.input_size) if configuration is not None else None
    count = lambda n: {} if n is None else {"num_classes": n}  # noqa: E731
    make = _named(f"timm:{name}", lambda n: timm.create_model(name, pretrained=pretrained, **count(n), **arguments))
    return _Built(make, normalization, shape, loaded=pretrained)


def _transformers(name: str, arguments: dict[str, Any], pretrained: bool) -> _Built:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    if not Path(name).is_dir() and not pretrained:
        raise InputError(
            f"there is no folder {name}: give one that save_pretrained wrote, or --pretrained to download it"
        )
    offline = {"local_files_only": not pretrained}
    make = _named(
        f"transformers:{name}",
        lambda _: AutoModelForImageClassification.from_pretrained(name, **offline, **arguments),
    )
    try:
        processor = AutoImageProcessor.from_pretrained(name, **offline)
        normalization = (processor.image_mean, processor.image_std) if processor.do_normalize else None
        size = processor.size
        shape = (3, size["height"], size["width"]) if "height" in size else None
    except Exception:  # a folder without a processor: its normalization is the user's to say
        normalization = shape = None
    return _Built(make, normalization, shape, loaded=True)


def _known(library: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = (
            ", ".join(get_close_matches(name, names, n=3, cutoff=0.4)) or f"none like it; see {library}.list_models()"
        )
        raise InputError(f"{library} has no network {name!r}; the nearest: {near}")


def _named(what: str, make: Callable[[int | None], Any]) -> Callable[[int | None], Any]:
    """The same, with errors of somebody else's code as one line."""

    def guarded(classes: int | None) -> Any:
        try:
            return make(classes)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"cannot build {what}: {type(error).__name__}: {_line(error)}") from error

    return guarded


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _own(module: str, name: str, arguments: dict[str, Any]) -> Callable[[int | None], Any]:
    """What the user's function or class builds; with a number of classes where it takes one."""

    def make(classes: int | None) -> Any:
        function = _attribute(module, name)
        options = dict(arguments)
        takes = [n for n in ("num_classes", "classes", "n_classes") if n in inspect.signature(function).parameters]
        if classes is not None and takes and takes[0] not in options:
            options[takes[0]] = classes
        network = function(**options)
        if not isinstance(network, nn.Module):
            raise InputError(f"{module}:{name} gave a {type(network).__name__}, not a torch.nn.Module")
        return network

    return _named(f"{module}:{name}", make)


def _attribute(module: str, name: str) -> Callable[..., Any]:
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise InputError(f"there is no file {module}: give FILE.py:FUNCTION, or PACKAGE.MODULE:FUNCTION")
        spec = importlib.util.spec_from_file_location(Path(module).stem, module)
        assert spec is not None and spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = found
        spec.loader.exec_module(found)
    else:
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, here)  # a module beside the user
        found = importlib.import_module(module)
    if not hasattr(found, name):
        near = get_close_matches(name, [n for n in vars(found) if not n.startswith("_")], n=3)
        hint = f"; the nearest: {', '.join(near)}" if near else ""
        raise InputError(f"cannot build {module}:{name}: there is no {name!r}{hint}")
    return getattr(found, name)


def _from_file(path: Path) -> nn.Module:
    """A TorchScript or `torch.export` file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is old; files of it are still about
            return torch.export.load(path).module() if path.suffix == ".pt2" else torch.jit.load(str(path))
    except Exception as error:
        mend = "give the architecture first and this file as --weights" if path.suffix != ".py" else "add :FUNCTION"
        raise InputError(f"{path} is neither a TorchScript nor a torch.export file: {mend}") from error


def _plain(model: Any, notes: list[str]) -> nn.Module:
    """The network without the containers of torch.compile and DataParallel, in float32."""
    for name in CONTAINERS:
        inner = getattr(model, name, None)
        wraps = name == "_orig_mod" or isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
        if wraps and isinstance(inner, nn.Module):
            notes.append(f"{type(model).__name__} was taken off")
            model = inner
    if not isinstance(model, nn.Module):
        raise InputError(f"a {type(model).__name__} is no torch.nn.Module")
    other = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if other:
        notes.append(f"its weights were {', '.join(sorted(map(str, other)))}, and are float32 now")
        model = model.float()
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


@torch.no_grad()
def _as_logits(model: nn.Module, shape: tuple[int, ...], spec: str, notes: list[str]) -> nn.Module:
    """The network with outputs (n, classes), by the rules of `Logits`; what cannot be made so is refused."""
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    try:
        output = model(x)
    except Exception as error:
        size = "x".join(map(str, shape))
        raise InputError(f"{spec} does not take images of {size}: {type(error).__name__}: {_line(error)}") from error
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
