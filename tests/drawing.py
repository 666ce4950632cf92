"""Few drawings, and a recipe small enough to train on them."""

from functools import cache

from lrc.data import shapes

TINY = {
    "data": {"validation": 16},
    "network": {"width": 4},
    "training": {"epochs": 2, "batch_size": 32},
}
HELD = ("bungalow", "palm", "puffer", "racer")


@cache
def few(split):
    return shapes(split, n={"train": 320, "test": 64}[split])
