"""What a user can name as a network: how to build it, and what its own configuration says of its images."""

import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrc.inspection.causes import IMAGENET
from lrc.utils.errors import InputError
from lrc.utils.own import guarded, network

__all__ = ["Built", "architecture", "data_of", "usual_side"]

LIBRARIES = ("torchvision", "timm", "transformers")


@dataclass(frozen=True)
class Built:
    """What an architecture gives.

    Attributes:
        make: builds it, for a number of classes where it takes one.
        normalization: mean and std of each channel, by its own configuration.
        shape: of an image, by its own configuration.
        usual: of an image that it was designed for; others may do.
        data: options of the data set that it was trained on.
        loaded: it comes with weights of its own.
        scaled: it takes images in [0, 1] as it is.
        side: argument for the side of its images, where some of its networks are built for one.
    """

    make: Callable[[int | None], Any]
    normalization: tuple[Sequence[float], Sequence[float]] | None = None
    shape: tuple[int, ...] | None = None
    usual: tuple[int, ...] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    loaded: bool = False
    scaled: bool = False
    side: str = ""


def architecture(spec: str, arguments: dict[str, Any], *, pretrained: bool) -> Built:
    """What `spec` names, not built yet."""
    path, (module, colon, name) = Path(spec), spec.partition(":")
    if path.is_dir():
        return _trained(path)
    if path.is_file():
        return Built(lambda _: _from_file(path), loaded=True)
    if colon and module in LIBRARIES:
        return _library(module, name, arguments, pretrained=pretrained)
    if colon and not (module and name):
        raise InputError(f"{spec!r} names no function: expected a network of the zoo, or MODULE:FUNCTION")
    if colon:
        return Built(lambda classes: network(spec, arguments, classes=classes))
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


def usual_side(spec: str) -> int:
    """Side of the images that the network was designed for; 0 where nobody knows."""
    built = architecture(spec, {}, pretrained=False)
    return built.usual[-1] if built.usual else 0


def _of_the_zoo(name: str) -> Built:
    from lrc.experiments import store, zoo

    try:
        zoo.recipe(name)
    except InputError as error:
        raise InputError(f"{error}; or give a folder that lrc train wrote, or MODULE:FUNCTION") from error
    if not store.there(zoo.recipe(name)) and zoo.recipe(name).data.name != "shapes":
        raise InputError(f"{name} is not shipped, and training it takes hours: lrc zoo make {name} does that")
    return Built(lambda _: zoo.obtain(name, progress=True).cpu(), data=data_of(name), loaded=True, scaled=True)


def _of_transformers(folder: Path) -> bool:
    try:
        return "model_type" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return False


def _trained(folder: Path) -> Built:
    """A network in a folder that `lrc train` wrote, or one of transformers."""
    if _of_transformers(folder):
        return _library("transformers", str(folder), {}, pretrained=False)
    from lrc.experiments import fitting, store
    from lrc.experiments.recipe import read

    made = read(store.settings(folder), where=str(folder))
    return Built(
        lambda _: fitting.restore(made, folder / store.WEIGHTS_FILE),
        data=data_of(str(folder)),
        loaded=True,
        scaled=True,
    )


def _library(library: str, name: str, arguments: dict[str, Any], *, pretrained: bool) -> Built:
    if importlib.util.find_spec(library) is None:
        raise InputError(f"{library} is not installed: pip install {library}")
    return {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}[library](
        name, arguments, pretrained
    )


def _torchvision(name: str, arguments: dict[str, Any], pretrained: bool) -> Built:
    from torchvision import models

    _known("torchvision", name, models.list_models())
    count = lambda n: {} if n is None else {"num_classes": n}  # noqa: E731
    weights = "DEFAULT" if pretrained else None
    normalization = IMAGENET if pretrained else None
    make = _guarded(f"torchvision:{name}", lambda n: models.get_model(name, weights=weights, **(count(n) | arguments)))
    side = 299 if name.startswith("inception") else 224
    return Built(make, normalization, usual=(3, side, side), loaded=pretrained, side="image_size")


def _timm(name: str, arguments: dict[str, Any], pretrained: bool) -> Built:
    import timm

    if not timm.is_model(name.split(".")[0]):
        _known("timm", name, timm.list_models())
    configuration = timm.get_pretrained_cfg(name)
    normalization = (configuration.mean, configuration.std) if configuration is not None else None
    shape = tuple(configuration.input_size) if configuration is not None else None
    count = lambda n: {} if n is None else {"num_classes": n}  # noqa: E731
    make = _guarded(f"timm:{name}", lambda n: timm.create_model(name, pretrained=pretrained, **(count(n) | arguments)))
    return Built(make, normalization, usual=shape, loaded=pretrained, side="img_size")


def _transformers(name: str, arguments: dict[str, Any], pretrained: bool) -> Built:
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

    if not Path(name).is_dir() and not pretrained:
        raise InputError(
            f"there is no folder {name}: give one that save_pretrained wrote, or --pretrained to download it"
        )
    offline = {"local_files_only": not pretrained}
    make = _guarded(
        f"transformers:{name}",
        lambda _: AutoModelForImageClassification.from_pretrained(name, **offline, **arguments),
    )
    try:
        processor = AutoImageProcessor.from_pretrained(name, **offline)
        normalization = (processor.image_mean, processor.image_std) if processor.do_normalize else None
    except Exception:  # a folder without a processor: its normalization is the user's to say
        normalization = None
    side = getattr(
        guarded(f"transformers:{name}", lambda: AutoConfig.from_pretrained(name, **offline)), "image_size", 0
    )
    return Built(make, normalization, usual=(3, side, side) if isinstance(side, int) and side else None, loaded=True)


def _known(library: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = (
            ", ".join(get_close_matches(name, names, n=3, cutoff=0.4)) or f"none like it; see {library}.list_models()"
        )
        raise InputError(f"{library} has no network {name!r}; the nearest: {near}")


def _guarded(what: str, make: Callable[[int | None], Any]) -> Callable[[int | None], Any]:
    """The same, with errors of somebody else's code as one line."""
    return lambda classes: guarded(what, lambda: make(classes))


def _from_file(path: Path) -> nn.Module:
    """A TorchScript or `torch.export` file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is old; files of it are still about
            if path.suffix != ".pt2":
                return torch.jit.load(str(path), map_location="cpu")
            found = torch.export.load(path).module()
            del found.train, found.eval  # which refuse to be called; what is exported has one mode
            return found
    except Exception as error:
        mend = "give the architecture first and this file as --weights" if path.suffix != ".py" else "add :FUNCTION"
        raise InputError(f"{path} is neither a TorchScript nor a torch.export file: {mend}") from error
