"""Classifiers for 32 x 32 images in [0, 1]: normalization is a layer of the network, so that eps means one thing."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.utils import skip_init

from lrc.models.layers import CAS, JPEG, Guarded
from lrc.utils import own
from lrc.utils.checks import check_choice
from lrc.utils.errors import InputError
from lrc.utils.typed import typed


class Normalize(nn.Module):
    """(x - mean) / std by channel, inside the network, so that users, attacks and eps only ever see [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        mean, std = _by_channel("mean", mean), _by_channel("std", std)
        if len(mean) != len(std) or min(std) <= 0:
            raise InputError(f"std must be > 0 and of as many channels as mean, not {std} beside {mean}")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return (x - self.mean) / self.std


def _by_channel(name: str, values: Sequence[float]) -> list[float]:
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError, RuntimeError):
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise InputError(f"{name} must be finite numbers, one a channel, not {values!r:.80}")
    return found


# skip_init: all weights come from `initialize`, so that a generator leaves PyTorch's global one alone
def _conv(inputs: int, outputs: int, *, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    padding = (kernel - 1) // 2
    return skip_init(nn.Conv2d, inputs, outputs, kernel, stride=stride, padding=padding, bias=False)


def _stem(outputs: int, stem: Sequence[int]) -> nn.Conv2d:
    if len(stem) != 2:
        raise InputError(f"stem must be the size of a kernel and its stride, as (3, 1), not {stem!r:.60}")
    kernel, stride = stem
    return _conv(3, outputs, kernel=kernel, stride=stride)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, with a 1 x 1 convolution where the shape changes (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, stride=stride, kernel=1), nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Classifier(nn.Module):
    """What the networks share: one linear layer on features, which are those of the `stack` if not said otherwise."""

    stack: nn.Sequential
    fc: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.input_shape = (3, 32, 32)

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n features"]:
        """What the last linear layer sees."""
        return self.stack(x)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.fc(self.features(x))


class ResNet(Classifier):
    """Residual network for 32 x 32 images, of any depth and width, with global average pooling and one linear layer.

    Args:
        blocks: number of basic blocks in each stage; each stage after the first halves the resolution and doubles
            the width.
        width: channels of the first stage.
        classes: number of classes.
        stem: kernel size and stride of the first convolution; (3, 1) is the CIFAR ResNet, (4, 2) a quarter of its cost.
        mean, std: normalization by channel as the first layer.
        suppress: put a `lrc.models.layers.CAS` layer after each block of the last stage.
        generator: source of the initial weights; PyTorch's global one if absent.
    """

    @typed
    def __init__(
        self,
        blocks: Sequence[int],
        *,
        width: int,
        classes: int,
        stem: Sequence[int] = (3, 1),
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        suppress: bool = False,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.stem, self.bn = _stem(width, stem), nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        inputs = width
        for i, depth in enumerate(blocks):
            outputs = width * 2**i
            for j in range(depth):
                stages.append(BasicBlock(inputs, outputs, stride=2 if i > 0 and j == 0 else 1))
                inputs = outputs
                if suppress and i == len(blocks) - 1:
                    stages.append(CAS(outputs, classes, generator=generator))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = skip_init(nn.Linear, inputs, classes)
        initialize(self, generator)

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n features"]:
        """What the last linear layer sees."""
        x = F.relu(self.bn(self.stem(self.normalize(x))))
        return self.pool(self.stages(x)).flatten(1)


class VGG(Classifier):
    """3 x 3 convolutions with batch norm, ReLU and max pooling, and one linear layer (Simonyan & Zisserman, 2015).

    Args:
        layers: channels of each convolution; 0 stands for a 2 x 2 max pooling.
        classes: number of classes.
        mean, std, generator: as in `ResNet`.
    """

    @typed
    def __init__(
        self,
        layers: Sequence[int],
        *,
        classes: int,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        stack: list[nn.Module] = [Normalize(mean, std)]
        inputs = 3
        for outputs in layers:
            if outputs == 0:
                stack.append(nn.MaxPool2d(2))
                continue
            stack += [_conv(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        self.stack = nn.Sequential(*stack, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = skip_init(nn.Linear, inputs, classes)
        initialize(self, generator)


class AlexNet(Classifier):
    """Five convolutions, the first two of 5 x 5, three overlapping max poolings, and two linear layers.

    After Krizhevsky et al., 2012, at the size of 32 x 32 images; with batch norm, so that it trains by the recipes
    of the other networks.

    Args:
        width: channels of the first convolution; the others have two, three, three and two times as many.
        classes, mean, std, generator: as in `ResNet`.
    """

    @typed
    def __init__(
        self,
        *,
        width: int,
        classes: int,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        stack: list[nn.Module] = [Normalize(mean, std)]
        inputs = 3
        for times, kernel, stride in ((1, 5, 2), (2, 5, 1), (3, 3, 1), (3, 3, 1), (2, 3, 1)):
            outputs = width * times
            stack += [_conv(inputs, outputs, kernel=kernel, stride=stride), nn.BatchNorm2d(outputs), nn.ReLU()]
            stack += [] if times == 3 else [nn.MaxPool2d(3, 2, 1)]
            inputs = outputs
        self.stack = nn.Sequential(*stack, nn.Flatten())
        self.hidden = skip_init(nn.Linear, 4 * inputs, 4 * inputs)
        self.fc = skip_init(nn.Linear, 4 * inputs, classes)
        initialize(self, generator)

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n features"]:
        """What the last linear layer sees."""
        return F.relu(self.hidden(self.stack(x)))


class DenseLayer(nn.Module):
    """Batch norm, ReLU and a 3 x 3 convolution, whose output is put beside the input (Huang et al., 2017)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(inputs), _conv(inputs, growth)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return torch.cat([x, self.conv(F.relu(self.bn(x)))], 1)


class DenseNet(Classifier):
    """Blocks of layers that each see all layers before them in the block, and one linear layer (Huang et al., 2017).

    Args:
        blocks: number of layers in each block; between blocks a 1 x 1 convolution halves the channels and average
            pooling the resolution.
        growth: channels that each layer adds; the stem has twice as many.
        stem, classes, mean, std, generator: as in `ResNet`.
    """

    @typed
    def __init__(
        self,
        blocks: Sequence[int],
        *,
        growth: int,
        classes: int,
        stem: Sequence[int] = (3, 1),
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        inputs = 2 * growth
        stack: list[nn.Module] = [Normalize(mean, std), _stem(inputs, stem)]
        for i, depth in enumerate(blocks):
            if i > 0:
                stack += [nn.BatchNorm2d(inputs), nn.ReLU(), _conv(inputs, inputs // 2, kernel=1), nn.AvgPool2d(2)]
                inputs //= 2
            stack += [DenseLayer(inputs + j * growth, growth) for j in range(depth)]
            inputs += depth * growth
        stack += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.stack = nn.Sequential(*stack)
        self.fc = skip_init(nn.Linear, inputs, classes)
        initialize(self, generator)


@torch.no_grad()
def initialize(model: nn.Module, generator: Generator | None = None) -> None:
    """He initialization of all convolutions and linear layers, in place, from `generator` (He et al., 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@typed
def resnet18(classes: int = 10, *, width: int = 64, **options: Any) -> ResNet:
    """ResNet-18 for CIFAR, the network of the paper at width 64 (11.2 M parameters)."""
    return ResNet((2, 2, 2, 2), width=width, classes=classes, **options)


@typed
def resnet8(classes: int = 10, *, width: int = 48, stem: Sequence[int] = (4, 2), **options: Any) -> ResNet:
    """Small ResNet for the CPU: three stages of one block after a 4 x 4 convolution of stride 2 (0.69 M parameters)."""
    return ResNet((1, 1, 1), width=width, classes=classes, stem=stem, **options)


@typed
def alexnet(classes: int = 10, *, width: int = 32, **options: Any) -> AlexNet:
    """Small AlexNet for the CPU: five convolutions, three max poolings and two linear layers (0.32 M parameters)."""
    return AlexNet(width=width, classes=classes, **options)


@typed
def densenet12(classes: int = 10, *, width: int = 16, stem: Sequence[int] = (4, 2), **options: Any) -> DenseNet:
    """Small DenseNet for the CPU: three blocks of three layers that add `width` channels each (0.08 M parameters)."""
    return DenseNet((3, 3, 3), growth=width, classes=classes, stem=stem, **options)


@typed
def vgg6(classes: int = 10, *, width: int = 32, **options: Any) -> VGG:
    """Small VGG for the CPU: five convolutions, three max poolings and a linear layer (0.29 M parameters)."""
    w = width
    return VGG((w, 0, 2 * w, 2 * w, 0, 4 * w, 4 * w, 0), classes=classes, **options)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "resnet8": resnet8,
    "vgg6": vgg6,
    "alexnet": alexnet,
    "densenet12": densenet12,
}


def build(name: str, *, jpeg: int | None = None, **options: Any) -> nn.Module:
    """The network called `name`, with the options of its builder.

    Args:
        name: of an architecture of `lrc`; or of a function or class of one's own, FILE.py:NAME or PACKAGE.MODULE:NAME,
            for images in [0, 1]. Its initial weights follow the generator's seed, and PyTorch's global draws stay as
            they were.
        jpeg: quality of a JPEG compression in front of the network, as a part of it; none if absent.

    Raises:
        InputError: there is no such network, the message lists those there are; or it cannot be built, for an option
            that it does not have, or memory that there is not.
    """
    if not isinstance(name, str) or ":" not in name:
        check_choice("network", name, BUILDERS)
    try:
        network = _own(name, **options) if ":" in name else BUILDERS[name](**options)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, MemoryError) as error:
        reason = " ".join(str(error).split())[:120]
        shown = {k: v for k, v in options.items() if k != "generator"}
        raise InputError(f"the network {name} cannot be built with {shown}: {reason}") from error
    return network if jpeg is None else Guarded(JPEG(jpeg), network)


def _own(name: str, *, generator: Generator | None = None, classes: int | None = None, **arguments: Any) -> nn.Module:
    if generator is None:
        return own.network(name, arguments, classes=classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        return own.network(name, arguments, classes=classes)
