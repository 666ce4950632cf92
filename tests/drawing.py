"""Few drawings, and a recipe small enough to train on them."""

from functools import cache, wraps

from lrc.data import shapes

TINY = {
    "data": {"validation": 16},
    "network": {"width": 4},
    "training": {"epochs": 2, "batch_size": 32},
}
HELD = ("bungalow", "palm", "puffer", "racer")


@cache
@wraps(shapes)  # with its options, which recipes are checked against
def few(split, **options):
    return shapes(split, **options | {"n": {"train": 320, "test": 64}[split]})
