"""Writes the reference that `lrc inspect` shows a network among: every shipped network for CIFAR-10, W and local map.

python tools/reference.py        needs CIFAR-10; two minutes on two cores
"""

import lrc
from lrc import zoo
from lrc.inspection import page
from lrc.utils.devices import device
from lrc.utils.files import write_json

IMAGES = 200  # the first of the test set, over which the Jacobian is averaged
ADVERSARIAL = ("adversarial", "trades", "mart", "fast")


def kind(name: str) -> str:
    """How the network was trained: without an adversary, with one, or so that it only looks robust."""
    record = zoo.info(name)
    if record["made_by"]["objective"]["name"] in ADVERSARIAL:
        return "adversarial"
    return "masked" if record["figures"]["flags"] else "standard"


def entry(name: str, test: lrc.Images) -> dict[str, object]:
    """What is known of one network."""
    model, record = zoo.load(name).to(device()), zoo.info(name)
    local = lrc.mean_local_map(model, test.subset(IMAGES).float().to(device())).cpu()
    assert test.hierarchy is not None
    return {
        "name": name,
        "kind": kind(name),
        "architecture": record["made_by"]["network"]["name"],
        "contrast": round(record["figures"]["contrast_centred"], 4),
        "contrast_local": round(lrc.contrast(lrc.class_correlation(local, centre=True), test.hierarchy.groups()), 4),
        "autoattack": record["figures"]["autoattack"]["robust"],
        "images": record["figures"]["autoattack"]["images"],
    }


def main() -> None:
    test = lrc.data.cifar10("test")
    names = [n for n in zoo.names() if zoo.info(n)["shipped"] and n.startswith("cifar10-")]
    found = {"made_by": "make reference", "local_images": IMAGES, "networks": [entry(n, test) for n in names]}
    write_json(page.REFERENCE, found)


if __name__ == "__main__":
    main()
