"""What test_maps_processes.py runs alone, and under torchrun: linear maps, shared by several processes."""

import sys
from pathlib import Path

import torch
from spreading import coloured, tiny

from lrc.linearization import affine_map, jacobian, linear_map, mean_local_map
from lrc.utils.processes import Fabric, join

CHUNKS = (1, 2, None)
CLASSES = 5
SIZES = (1, 2, 3, 7)


def maps(folder: Path, fabric: Fabric | None = None) -> dict:
    """Maps of a tiny network of five classes, W on the disk too, and how many rows this process computed for each."""
    rows, original = [0], jacobian._pulled_back

    def counted(z, x, vectors, learning):
        rows[0] += len(vectors)
        return original(z, x, vectors, learning)

    model, x = tiny(classes=CLASSES), coloured(max(SIZES)).float()
    jacobian._pulled_back, found = counted, {}
    for chunk in CHUNKS:
        rows[0] = 0
        found[f"W {chunk}"] = affine_map(model, chunk=chunk, fabric=fabric)
        found[f"rows {chunk}"] = rows[0]
    found["on the disk"] = linear_map(model, chunk=2, out=folder / "W.safetensors", fabric=fabric).clone()
    for n in SIZES:
        found[f"local {n}"] = mean_local_map(model.double(), x[:n].double(), batch_size=2, fabric=fabric)
    jacobian._pulled_back = original
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    fabric = join(torch.device("cpu"))
    torch.save(maps(folder, fabric), folder / f"{fabric.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
