"""What is kept of networks: those that are shipped, with their records, and folders of those trained on this machine.

The folder of a training holds the recipe (`config.json`), checkpoints and metrics, and once it is finished the weights,
with recipe and metrics in the same file. Whether it is of the recipe that is wanted is asked here alone: `claim`.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrc.experiments.recipe import Recipe, identity, names, read, recipe, recipes
from lrc.utils.errors import InputError
from lrc.utils.files import load_tensors, read_json, read_lines, save_tensors, tensor_metadata, write_json
from lrc.utils.runs import differences, same_run

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "VERSION",
    "WEIGHTS",
    "WEIGHTS_FILE",
    "Metrics",
    "cached",
    "claim",
    "fill",
    "info",
    "keep",
    "kept",
    "metrics",
    "noted",
    "settings",
    "sha256",
    "shipped",
    "there",
    "weights",
]

VERSION = 1
"""What is in users' caches goes by the recipe and by this number. Raise it when the same recipe makes another network,
or a study measures other figures, by more than the last digits: they are then made anew."""

WEIGHTS = Path(__file__).parent / "weights"
WEIGHTS_FILE, CONFIG = "weights.safetensors", "config.json"
BEGUN = ("last.pt", "previous.pt", WEIGHTS_FILE)  # a folder without any of these holds no training yet

Metrics = list[dict[str, Any]]


def info(name: str) -> dict[str, Any]:
    """Recipe of the network, whether weights are shipped, and what was recorded when it was made, if it was.

    A record is the recipe it was made by, figures, metrics by epoch, versions and device; of shipped weights also the
    SHA-256; of others W and C, by `lrc.zoo.linear_part`.

    Raises:
        InputError: an unknown name, or a damaged record.
    """
    known = recipes().get(name) if isinstance(name, str) else None
    wanted, made = known or recipe(name), WEIGHTS / f"{name}.json"
    record = {"name": name, "recipe": wanted.written(), "shipped": (WEIGHTS / f"{name}.safetensors").exists()}
    return record | (read_json(made) if made.exists() else {})


def shipped(wanted: Recipe) -> str | None:
    """The name of the shipped network that this recipe makes, whatever the name it was asked for by."""
    same = identity(wanted)
    return next(
        (n for n in names() if (WEIGHTS / f"{n}.safetensors").exists() and identity(recipes()[n]) == same), None
    )


def weights(name: str) -> Path:
    """The file of the shipped weights, verified.

    Raises:
        InputError: an unknown name, a recipe whose weights are not shipped, or weights that are not those recorded.
    """
    record, path = info(name), WEIGHTS / f"{name}.safetensors"
    if not record["shipped"]:
        raise InputError(f"the weights of {name!r} are not shipped: lrc.zoo.obtain({name!r}) trains them")
    if sha256(path) != record.get("sha256"):
        raise InputError(f"{path} is not the file that was recorded: install the package again")
    return path


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def there(wanted: Recipe) -> bool:
    """Whether the network of a recipe is shipped, or has been trained on this machine."""
    return shipped(wanted) is not None or (kept(wanted) / WEIGHTS_FILE).exists()


def kept(wanted: Recipe) -> Path:
    """The folder in which the network of a recipe that is not shipped is trained and kept on this machine."""
    return cached("zoo", identity(wanted))


def cached(kind: str, *what: Any) -> Path:
    """The place in the cache of what depends on these plain values, and on `VERSION`."""
    from lrc.data.cache import folder  # here: `lrc zoo list` needs no PyTorch

    digest = hashlib.sha256(json.dumps([*what, VERSION], sort_keys=True).encode())
    return folder() / kind / digest.hexdigest()[:20]


def claim(place: Path, wanted: Recipe) -> None:
    """Notes in a folder by which recipe its network is made, or refuses the folder of another.

    A training that ended before its first checkpoint is none. What lies there without a note, as weights that were
    trained elsewhere, is taken to be of this recipe.

    Raises:
        InputError: the folder holds what another recipe makes, the message says what differs; or a damaged note.
    """
    note = place / CONFIG
    if note.exists() and any((place / name).exists() for name in BEGUN):
        same_run(identity(settings(place)), identity(wanted), place=place)
    else:
        write_json(note, noted(wanted))


def settings(place: Path) -> dict[str, Any]:
    """The recipe by which what lies in a folder is made, as it is noted beside the weights, or else in the folder.

    Raises:
        InputError: it is damaged, or no recipe.
    """
    made, note = place / WEIGHTS_FILE, place / CONFIG
    beside = _beside(made) if made.exists() else {}
    found = json.loads(beside["recipe"]) if "recipe" in beside else read_json(note, unsealed=True)
    read(found, where=str(note))
    return found


def _beside(made: Path) -> dict[str, str]:
    """The texts beside the weights, verified; only weights from elsewhere, without ours, may lack a digest."""
    beside = tensor_metadata(made)
    load_tensors(made, unsealed="recipe" not in beside)
    return beside


def keep(place: Path, model: "nn.Module", wanted: Recipe, history: Metrics) -> None:
    """Writes the weights of a network, with its recipe and the metrics of its training; what is there already stays."""
    made, weights = place / WEIGHTS_FILE, {k: v.detach().cpu() for k, v in model.state_dict().items()}
    beside = {"recipe": json.dumps(noted(wanted)), "metrics": json.dumps(history)}
    if made.exists() and _beside(made) == beside:
        there = load_tensors(made, unsealed=True)
        if there.keys() == weights.keys() and all(v.equal(there[k]) for k, v in weights.items()):
            return
    save_tensors(made, weights, beside)


def metrics(place: Path) -> Metrics:
    """What training measured after each epoch of the network in a folder.

    Raises:
        InputError: the file is damaged.
    """
    made = place / WEIGHTS_FILE
    beside = _beside(made)
    return json.loads(beside["metrics"]) if "metrics" in beside else read_lines(place / "metrics.jsonl", unsealed=True)


def fill(model: "nn.Module", path: Path) -> "nn.Module":
    """The network with the weights in a safetensors file.

    Raises:
        InputError: the file is missing or damaged, or of another network; the message says what differs.
    """
    tensors = load_tensors(path, unsealed=True)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        shapes = ({k: [*v.shape] for k, v in state.items()} for state in (tensors, model.state_dict()))
        raise InputError(f"{path} holds the weights of another network: {_apart(*shapes)}") from error
    return model


def _apart(there: dict[str, list[int]], own: dict[str, list[int]]) -> str:
    """What tells two sets of weights apart, by their shapes."""
    for prefix in ("module.", "_orig_mod."):  # of DataParallel and torch.compile
        if {k.removeprefix(prefix) for k in there} == {*own} and there.keys() != own.keys():
            return f"its keys begin with {prefix}: save those of the network within"
    name = differences(there, own)[0]
    return f"{name} has shape {there.get(name, 'none')} there, {own.get(name, 'none')} here"


def noted(wanted: Recipe) -> dict[str, Any]:
    """What is written down of a recipe: what `identity` makes the same of as of the recipe itself, whatever changes."""
    return wanted.written() | {k: v for k, v in identity(wanted).items() if k == "teacher"}
