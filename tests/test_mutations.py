"""Whatever happens to a file that the package wrote: what is read is what was written, or one line says that it is not.

LRC_MUTATIONS=300 makes that many of each kind instead of the suite's few.
"""

import shutil
from functools import partial

import pytest
import torch
from damaging import outcomes
from torch import nn

from lrc.data import cache
from lrc.evaluation import Cost, Flag, Report, Result
from lrc.evaluation.store import ANSWERS, Batch, Store
from lrc.experiments import store
from lrc.experiments.recipe import recipe
from lrc.experiments.studies import records
from lrc.inspection import page
from lrc.training import checkpoints
from lrc.training.checkpoints import State
from lrc.utils.errors import InputError
from lrc.utils.files import read_json, read_lines, write_json, write_lines

RUN = {"eps": 0.03, "model": "a" * 64, ANSWERS: [0.5, -0.5]}
HISTORY = [{"epoch": 1, "loss": 0.5, "clean": 0.25}, {"epoch": 2, "loss": 0.25, "clean": 0.5}]


def verdicts(folder):
    kept = Store.of(folder, RUN, seed=1)
    kept.add("pgd", "pgd()", Batch("pgd", tuple(range(40)), tuple(i % 7 - 1 for i in range(40)), Cost(1.5, 40, 9, 8)))
    (path,) = (folder / "pgd").iterdir()
    return path, lambda: kept.read("pgd", "pgd()")


def run_of_verdicts(folder):
    Store.of(folder, RUN, seed=1)
    return folder / "run.json", lambda: Store.of(folder, RUN, seed=None)


def flags(folder):
    kept = Store.of(folder, RUN, seed=1)
    kept.keep_flags("masking", (Flag("weak", True, {"images": 3.0, "of": None}, "why"),))
    return folder / "masking.json", lambda: kept.flags("masking")


def report(folder):
    result = Result("pgd()", (0, 1, 1, 0), Cost(1.0, 4, 2, 1))
    made = Report(("cat", "dog"), (0, 1, 0, 1), {"clean": result, "pgd": result}, 0.03, "linf", 1)
    (path := folder / "report.json").write_text(made.to_json())
    return path, lambda: Report.from_json(path.read_text(errors="replace")).to_json()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def weights(folder):
    store.keep(folder, network(), recipe("cifar10-resnet8-at"), HISTORY)
    path = folder / store.WEIGHTS_FILE
    return path, lambda: plain(store.fill(network(), path).state_dict())


def beside_weights(folder):
    path, _ = weights(folder)
    return path, lambda: (store.settings(folder), store.metrics(folder))


def shipped_record(folder):
    name = "cifar10-resnet8-at"
    shutil.copy(store.WEIGHTS / f"{name}.json", path := folder / f"{name}.json")
    return path, partial(elsewhere, store, "WEIGHTS", folder, lambda: store.info(name)["metrics"])


def shipped_weights(folder):
    name = "cifar10-small-fast"
    for end in ("json", "safetensors"):
        shutil.copy(store.WEIGHTS / f"{name}.{end}", folder)
    return folder / f"{name}.safetensors", partial(elsewhere, store, "WEIGHTS", folder, lambda: store.weights(name))


def reference(folder):
    shutil.copy(page.REFERENCE, path := folder / "reference.json")
    return path, partial(elsewhere, page, "REFERENCE", path, page.reference)


def elsewhere(module, name, place, read):
    """What is read where the package has its files in another place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, place)
        return read()


def checkpoint(folder):
    model = network()
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.rand(4, 3, 2, 2)).sum().backward()
    sgd.step()
    state, arguments = State(model, sgd, history=list(HISTORY)), {"lr": 0.1, "network": {"answers": None}}
    checkpoints.save(folder, arguments, state)

    def read():
        checkpoints.resume(folder, arguments, state)
        return repr(checkpoints.contents(state))

    return folder / checkpoints.LAST, read


def metrics(folder):
    write_lines(path := folder / "metrics.jsonl", HISTORY)
    return path, lambda: read_lines(path)


def figures(folder):
    write_json(path := folder / "figures.json", {"figures": {"clean": 0.5, "pgd20": 0.25}, "epochs": 2})
    return path, lambda: read_json(path)


def study(folder):
    shutil.copy(records.RECORDS / "palettes.jsonl", path := folder / "palettes.jsonl")
    return path, partial(elsewhere, records, "RECORDS", folder, partial(records.recorded, "palettes"))


def decoded(folder):
    x = torch.arange(240, dtype=torch.uint8).view(5, 4, 4, 3)
    cache.store("some-test", {"x": x, "y": torch.arange(5)}, source="s")
    (path,) = cache.folder().glob("*.safetensors")
    read = partial(cache.load, "some-test", source="s")
    return path, lambda: plain(read()) if read() is not None else refuse()


def refuse():
    raise InputError("to be decoded again")


def plain(tensors):
    return {name: (t.dtype, t.tolist()) for name, t in tensors.items()}


KINDS = (
    verdicts,
    run_of_verdicts,
    flags,
    report,
    weights,
    beside_weights,
    shipped_record,
    shipped_weights,
    reference,
    checkpoint,
    metrics,
    figures,
    study,
    decoded,
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_damage_goes_unseen(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("LRC_CACHE", str(tmp_path))
    counts = outcomes(*kind(tmp_path), kind.__name__)
    assert counts["refused"] > counts["right"]
