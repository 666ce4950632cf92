"""Labelled images: CIFAR, the built-in shapes, or one's own arrays."""

from lrc.data.cifar import cifar10, cifar100
from lrc.data.images import Images, batches
from lrc.data.shapes import SHAPES, shapes

__all__ = ["SHAPES", "Images", "batches", "cifar10", "cifar100", "shapes"]
