"""Defences that are layers of the network, so that the trained network carries them with it, and attacks see them."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn.utils import skip_init

from lrc.linearization.rules import RULES
from lrc.utils.checks import check_number
from lrc.utils.errors import InputError

__all__ = ["CAS", "JPEG", "Guarded", "labelled"]

# Tables K.1 (brightness) and K.2 (colour) of the JPEG standard, for quality 50
BRIGHTNESS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
COLOUR = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99, 99, 99, 99, 99, 99, 99, 99)] * 4,
)
TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))


class JPEG(nn.Module):
    """Images in [0, 1] as they look after JPEG compression, without subsampling of the colours.

    Colours are turned to brightness and two differences, blocks of 8 x 8 to their cosine transform, which is divided by
    the table of the quality and rounded; then all of it back, clipped to [0, 1]. Entropy coding loses nothing and is
    left out. Sides that are no multiple of 8 are continued by their last pixel.

    The rounding is passed *straight through* backward, as if it were the identity (it is constant almost everywhere,
    and its true gradient, 0, would only hide the network from attacks): the backward pass differentiable approximation
    of Athalye et al. (2018). The clipping has its own gradient. In the linear sub-network the layer is the identity,
    which is what is left of it without rounding and clipping.

    Args:
        quality: 1 to 100, as in libjpeg: 50 is the table of the standard, 100 rounds only.

    Source: ITU-T T.81 (1992), annexes A and K; as a defence, Das et al., *SHIELD* (2018).

    >>> x = torch.full((1, 3, 8, 8), 0.5)
    >>> (JPEG(quality=75)(x) - x).abs().amax() < 1 / 255
    tensor(True)
    """

    cosines: Tensor
    colours: Tensor
    back: Tensor
    offset: Tensor
    tables: Tensor

    def __init__(self, quality: int = 50) -> None:
        super().__init__()
        check_number("the quality of JPEG, in 1..100,", quality)
        if quality not in range(1, 101):
            raise InputError(f"the quality of JPEG must be in 1..100, not {quality}")
        self.quality = quality
        self.register_buffer("cosines", cosine_transform(8), persistent=False)
        colours = torch.tensor(TO_YCBCR, dtype=torch.double)
        self.register_buffer("colours", colours.float(), persistent=False)
        self.register_buffer("back", torch.linalg.inv(colours).float(), persistent=False)
        # brightness starts at 0, the differences are about 0 as they are
        self.register_buffer("offset", torch.tensor([128.0, 0.0, 0.0]).view(1, 3, 1, 1), persistent=False)
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        tables = torch.tensor((BRIGHTNESS, COLOUR, COLOUR))
        tables = ((tables * scale + 50) // 100).clamp(1, 255)
        self.register_buffer("tables", tables.float(), persistent=False)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        h, w = x.shape[2:]
        with torch.autocast(x.device.type, enabled=False):
            colours, back, offset, D = (b.to(x.dtype) for b in (self.colours, self.back, self.offset, self.cosines))
            z = torch.einsum("dc,nchw->ndhw", colours, 255 * x) - offset
            z = F.pad(z, (0, -w % 8, 0, -h % 8), mode="replicate")
            blocks = z.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # n c i j 8 8
            table = self.tables.to(x.dtype)[:, None, None]
            blocks = D.T @ (straight_round(D @ blocks @ D.T / table) * table) @ D
            z = blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, :h, :w] + offset
            return (torch.einsum("cd,ndhw->nchw", back, z) / 255).clamp(0, 1)

    def extra_repr(self) -> str:
        return f"quality={self.quality}"


class CAS(nn.Module):
    """Channels weighed by what they say for a class: channel-wise activation suppressing, after a late block.

    A linear layer on the channels' means takes the image for a class; each channel is multiplied by its weight for that
    class. Under `labelled` the class is the true one (as in training), else the one that the layer takes the image for,
    so that attacks and evaluation see a network that is not told the answer. In the linear sub-network the layer is the
    identity, since it multiplies the image by itself.

    Args:
        channels: of what comes in.
        classes: number of classes.
        generator: source of the initial weights; PyTorch's global one if absent.

    Source: Bai et al., *Improving adversarial robustness via channel-wise activation suppressing* (2021).
    """

    def __init__(self, channels: int, classes: int, *, generator: Generator | None = None) -> None:
        super().__init__()
        self.fc = skip_init(nn.Linear, channels, classes)
        nn.init.kaiming_normal_(self.fc.weight, nonlinearity="relu", generator=generator)  # as `lrc.models.initialize`
        nn.init.zeros_(self.fc.bias)
        self.labels: Tensor | None = None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        said = self.fc(x.mean((2, 3)))
        labels = said.argmax(1) if self.labels is None else self.labels
        return x * self.fc.weight[labels][:, :, None, None]


class Guarded(nn.Module):
    """A network behind a layer that takes images to images: `network(guard(x))`."""

    def __init__(self, guard: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.guard, self.network = guard, network
        self.input_shape: Sequence[int] | None = getattr(network, "input_shape", None)

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n features"]:
        """What the network's last linear layer sees."""
        features: Callable[[Tensor], Tensor] = self.network.features  # type: ignore[assignment]
        return features(self.guard(x))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.network(self.guard(x))


@contextmanager
def labelled(model: nn.Module, y: Int[Tensor, " n"]) -> Iterator[list[Tensor]]:
    """The CAS layers of the network know the labels of the batch while the context lasts.

    Yields:
        The list to which each layer adds the logits (n, classes) of its own.
    """
    layers = [module for module in model.modules() if isinstance(module, CAS)]
    heard: list[Tensor] = []

    def note(_: nn.Module, __: tuple[Tensor, ...], z: Tensor) -> None:
        heard.append(z)

    handles = [layer.fc.register_forward_hook(note) for layer in layers]
    try:
        for layer in layers:
            layer.labels = y
        yield heard
    finally:
        for layer, handle in zip(layers, handles, strict=True):
            layer.labels = None
            handle.remove()


def cosine_transform(size: int) -> Float[Tensor, "size size"]:
    """The orthogonal matrix of the discrete cosine transform (type II), one row a frequency."""
    k, i = torch.arange(size).double()[:, None], torch.arange(size).double()
    D = torch.cos(math.pi * k * (2 * i + 1) / (2 * size)) * math.sqrt(2 / size)
    D[0] /= math.sqrt(2)
    return D.float()


def straight_round(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x rounded, with the gradient of x."""
    return x + (x.detach().round() - x.detach())


RULES[JPEG] = RULES[CAS] = RULES[nn.ReLU]  # taken out of the linear sub-network
