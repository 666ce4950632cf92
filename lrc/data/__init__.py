"""Labelled images: CIFAR, the built-in shapes, one's own arrays or folders."""

from lrc.data.cifar import cifar10, cifar100
from lrc.data.folders import Folder, folder
from lrc.data.images import Images, batches
from lrc.data.shapes import SHAPES, shapes
from lrc.data.sources import named

__all__ = ["SHAPES", "Folder", "Images", "batches", "cifar10", "cifar100", "folder", "named", "shapes"]
