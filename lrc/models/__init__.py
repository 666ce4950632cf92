"""Networks that the package trains and ships, and layers that are defences."""

from lrc.models.layers import CAS, JPEG, Guarded
from lrc.models.networks import (
    BUILDERS,
    VGG,
    AlexNet,
    DenseNet,
    Normalize,
    ResNet,
    alexnet,
    build,
    densenet12,
    resnet8,
    resnet18,
    vgg6,
)
from lrc.models.superclasses import Superclasses

__all__ = [
    "BUILDERS",
    "AlexNet",
    "CAS",
    "DenseNet",
    "Guarded",
    "JPEG",
    "Normalize",
    "ResNet",
    "Superclasses",
    "VGG",
    "alexnet",
    "build",
    "densenet12",
    "resnet18",
    "resnet8",
    "vgg6",
]
