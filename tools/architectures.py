"""Linearizes every classification builder of torchvision at its true size: writes book/architectures.md.

python tools/architectures.py [NAME ...]

Takes half an hour of one core and up to 8 GB. What is done is remembered in _build/architectures.json, and a run that
was broken off goes on where it stopped; remove that file after a change to the rules.
"""

import argparse
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.swin_transformer import shifted_window_attention

import lrc
from lrc.linearization import RULES, superposition_error
from lrc.linearization import operations as ops
from lrc.linearization.surgery import Surgery
from lrc.linearization.tracing import trace

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "book" / "architectures.md"
DONE = ROOT / "_build" / "architectures.json"
VERSIONS = [str(torch.__version__).partition("+")[0], str(torchvision.__version__).partition("+")[0]]
CLASSES = [1, 500, 998]
KINDS = {
    "batch norm": ops.BATCH_NORMS,
    "norm": ops.NORMS,
    "gate": ops.SIGMOIDS,
    "activation": ops.ACTIVATIONS,
    "max pool": [nn.MaxPool2d, nn.functional.max_pool2d],
    "attention": [*ops.ATTENTION, *ops.SOFTMAX, shifted_window_attention],
    "dropout": ops.DROPOUT,
}
HEADER = """# Architectures

`lrc.linearize` on every classification builder of torchvision, at the size of image that its first weights were made
for, in float64, with random weights and random batch statistics (folded). `make architectures` made this page, with
torch {0} and torchvision {1}.

The superposition error is $\\max |f((x + y) / 2) - (f(x) + f(y)) / 2|$ for two random images, relative to the largest
value; the row error is that of three rows of `lrc.linear_map` against three backward passes through the linearized
network, one a row, relative to the largest entry. Nodes are those of the network before and after. Counted are the
operations that are not linear, by the rule that they fall under; an activation inside a gate goes with it.

{2} of {3} builders; the largest superposition error is {4:.1e}, the largest row error {5:.1e}.

| builder | parameters, M | image | nodes | not linear | superposition error | row error |
| --- | ---: | ---: | ---: | --- | ---: | ---: |
"""


class Some(nn.Module):
    """Some of the logits, so that W has these rows alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, CLASSES]


def main() -> None:
    """Measures what is not done yet, then writes the page."""
    names = torchvision.models.list_models(torchvision.models)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="builders to measure; all if none is named")
    done = recall()
    for name in parser.parse_args().names or names:
        if name not in done:
            done[name] = measure(name)
            print(row(name, done[name]), end="", flush=True)
            remember(done)
    rows = {name: done[name] for name in names if name in done}
    worst = [max(r[key] for r in rows.values()) for key in ("superposition", "row")]
    text = HEADER.format(*VERSIONS, len(rows), len(names), *worst) + "".join(row(*item) for item in rows.items())
    PAGE.write_text(text, encoding="utf-8")


def recall() -> dict[str, Any]:
    """The rows that are done, if with these versions."""
    stored = json.loads(DONE.read_text(encoding="utf-8")) if DONE.exists() else {}
    return stored.get("rows", {}) if stored.get("versions") == VERSIONS else {}


def remember(done: dict[str, Any]) -> None:
    """Stores the rows so that an interruption leaves the old file or the new one."""
    DONE.parent.mkdir(exist_ok=True)
    new = DONE.with_suffix(".new")
    new.write_text(json.dumps({"versions": VERSIONS, "rows": done}), encoding="utf-8")
    os.replace(new, DONE)


def measure(name: str) -> dict[str, Any]:
    """A row of the table."""
    model = build(name)
    shape = (3, *[image_size(name)] * 2)
    linear = lrc.linearize(model, batchnorm="fold")
    W = lrc.linear_map(Some(model), shape, batchnorm="fold")
    x = torch.zeros(1, *shape, dtype=torch.double).requires_grad_()
    z = linear(x)[0, CLASSES]
    rows = torch.cat([torch.autograd.grad(logit, x, retain_graph=True)[0] for logit in z])
    nodes, kinds = inventory(model)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "size": shape[1],
        "nodes": [nodes, len(linear.graph.nodes)],
        "kinds": kinds,
        "superposition": superposition_error(linear, shape),
        "row": float((W - rows).abs().max() / rows.abs().max()),
    }


def image_size(name: str) -> int:
    """The side of the images that the first weights were made for; a vision transformer is built for one size only."""
    weights = next(iter(torchvision.models.get_model_weights(name)))
    return 224 if name.startswith("vit") else int(weights.transforms().crop_size[0])


def build(name: str) -> nn.Module:
    """The network in float64 with everything random that W could depend on, in eval mode."""
    builder = torchvision.models.get_model_builder(name)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    tables = name.startswith(("swin", "maxvit", "regnet"))  # their constructors compute with the values of tensors
    with torch.device("cpu" if tables else "meta"):
        model = builder(**options)
    model = (model if tables else model.to_empty(device="cpu")).double().eval().requires_grad_(False)
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.normal_(0, (p[0].numel() if p.dim() > 1 else 100) ** -0.5, generator=g)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor, low, high in (
            (norm.running_mean, -0.2, 0.2),
            (norm.running_var, 0.5, 1.5),
            (norm.weight, 0.5, 1.5),
        ):
            assert tensor is not None
            tensor.uniform_(low, high, generator=g)
    return model


def inventory(model: nn.Module) -> tuple[int, dict[str, int]]:
    """The number of nodes, and how many there are of each kind that is not linear."""
    root, graph = trace(model, RULES)
    surgery = Surgery(root, graph, RULES, "fold", "average")
    found = [next((k for k, of in KINDS.items() if surgery.operation(n) in of), "") for n in surgery.depending()]
    return len(graph.nodes), {kind: Counter(found)[kind] for kind in KINDS if kind in found}


def row(name: str, r: dict[str, Any]) -> str:
    """A line of the table."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in r["kinds"].items())
    nodes = "{} → {}".format(*r["nodes"])
    errors = f"{r['superposition']:.1e} | {r['row']:.1e}"
    return f"| {name} | {r['parameters'] / 1e6:.1f} | {r['size']} | {nodes} | {kinds} | {errors} |\n"


if __name__ == "__main__":
    main()
