"""Labelled images: CIFAR, the built-in shapes, one's own arrays or folders."""

from lrc.data.batches import batches
from lrc.data.breeds import BREEDS, breeds
from lrc.data.cifar import cifar10, cifar100
from lrc.data.colours import COLOURS, class_means, recoloured
from lrc.data.folders import Folder, folder
from lrc.data.given import as_images, grey, stored
from lrc.data.images import Images
from lrc.data.parts import as_superclasses, cifar20, subpopulations
from lrc.data.shapes import SHAPES, shapes
from lrc.data.sources import SOURCES, labelled, named
from lrc.data.stl10 import stl10

__all__ = [
    "BREEDS",
    "COLOURS",
    "SHAPES",
    "SOURCES",
    "Folder",
    "Images",
    "as_images",
    "as_superclasses",
    "batches",
    "breeds",
    "cifar10",
    "cifar20",
    "cifar100",
    "class_means",
    "folder",
    "grey",
    "labelled",
    "named",
    "recoloured",
    "shapes",
    "stl10",
    "stored",
    "subpopulations",
]
