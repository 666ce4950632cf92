"""The built-in data: houses, trees, fish and cars of four kinds each, drawn from a seed.

What tells the classes apart is under control: a *robust* cue (silhouette, parts, colours), or thin stripes in its
place, and a faint high-frequency pattern that gives each class away but drowns in any attack. Every number comes from
`torch.rand` through operations that IEEE 754 rounds exactly (no sine, no logarithm), so a seed gives the same bytes on
every machine.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lrc.data.images import Images
from lrc.hierarchy import Hierarchy, Level
from lrc.utils.errors import InputError

SIZES = {"train": 4800, "validation": 800, "test": 1600}  # images a split by default: multiples of the 16 classes
WORDS = {"split": tuple(SIZES), "cues": ("robust", "thin"), "palette": ("superclass", "kind", "none")}
CHUNK = 256  # images drawn at once: small enough for the cache, the same for every n so that a smaller n is a prefix
MARGIN = 16  # levels kept free below and above, so that the pattern is never clipped
CLUTTER = 4  # blots behind the object
NOISE = 15  # half the width of the noise, in levels: a standard deviation of 6
STRIPE, PERIOD = 8.0, 4.0  # thin cue: amplitude in levels, an attack of 8/255 can wipe it out; period in pixels
BODY, ACCENT, DARK, LIGHT = range(4)

Real = float | int  # a checker of types at run time takes no int for a float
Plane = Float[Tensor, "n height width"]
Picture = Float[Tensor, "n 3 height width"]
PerImage = Float[Tensor, " n"]
Frame = Float[Tensor, "n 2 3"]  # coordinates of an object: each a0 * right + a1 * up + a2


class Part(NamedTuple):
    """A filled trapezium or ellipse of an object that is about two units wide; y runs up, the ground is at -0.8."""

    round: float  # 1 for an ellipse
    x: float
    y: float
    foot: float  # half the width at the bottom
    top: float  # half the width at the top
    half: float  # half the height
    ink: int = BODY
    turn: float = 0.0  # tangent of half the angle it is turned by, to the left


def _box(x: Real, y: Real, width: Real | tuple[Real, Real], half: Real, ink: int = BODY, turn: Real = 0) -> Part:
    foot, top = width if isinstance(width, tuple) else (width, width)
    return Part(0.0, x, y, foot, top, half, ink, turn)


def _disc(x: Real, y: Real, width: Real, half: Real, ink: int = BODY, turn: Real = 0) -> Part:
    return Part(1.0, x, y, width, width, half, ink, turn)


FORMS: dict[str, dict[str, tuple[Part, ...]]] = {
    "house": {
        "cottage": (_box(0, -.40, .62, .40), _box(0, .28, (.80, 0), .34, ACCENT), _box(0, -.55, .13, .25, DARK),
                    _box(.38, -.32, .12, .12, LIGHT), _box(-.38, -.32, .12, .12, LIGHT)),
        "tower": (_box(0, -.20, .32, .65), _box(0, .70, (.44, 0), .28, ACCENT), _box(0, .15, .12, .14, LIGHT),
                  _box(0, -.65, .12, .20, DARK)),
        "barn": (_disc(0, -.05, .72, .60, ACCENT), _box(0, -.45, .72, .38), _box(0, -.50, .34, .33, DARK)),
        "bungalow": (_box(0, -.42, .85, .36), _box(0, .04, .95, .13, ACCENT), _box(-.30, -.34, .40, .16, LIGHT),
                     _box(.55, -.48, .14, .30, DARK)),
    },
    "tree": {
        "pine": (_box(0, -.72, .10, .22, ACCENT), _box(0, -.15, (.62, 0), .42), _box(0, .38, (.46, 0), .42)),
        "oak": (_box(0, -.58, .15, .36, ACCENT), _disc(0, .18, .80, .50)),
        "poplar": (_box(0, -.75, .09, .20, ACCENT), _disc(0, .12, .30, .78)),
        "palm": (_box(0, -.30, .09, .62, ACCENT), _disc(-.36, .36, .46, .17, BODY, .25),
                 _disc(.36, .36, .46, .17, BODY, -.25), _disc(0, .55, .20, .28)),
    },
    "fish": {
        "trout": (_box(-.72, 0, (.30, .03), .22, ACCENT, -1), _disc(.08, 0, .68, .27), _disc(.50, .07, .08, .08, DARK)),
        "angelfish": (_box(-.62, 0, (.24, .03), .20, ACCENT, -1), _box(-.08, .50, (.38, 0), .42, ACCENT),
                      _box(-.08, -.50, (.02, .38), .42, ACCENT), _disc(.05, 0, .48, .46),
                      _disc(.32, .10, .08, .08, DARK)),
        "shark": (_box(-.74, .05, (.42, .08), .16, ACCENT, -1), _box(0, .38, (.30, 0), .34, ACCENT),
                  _disc(.08, -.05, .72, .27), _disc(.22, -.20, .50, .10, LIGHT), _disc(.50, .03, .07, .07, DARK)),
        "puffer": (_box(-.76, 0, (.22, .03), .16, ACCENT, -1), _disc(.05, 0, .64, .60),
                   _disc(.08, -.28, .45, .26, LIGHT), _disc(.38, .18, .10, .10, DARK)),
    },
    "car": {
        "sedan": (_box(0, .18, (.54, .36), .24, ACCENT), _box(0, -.20, .88, .22), _disc(-.48, -.44, .20, .20, DARK),
                  _disc(.48, -.44, .20, .20, DARK)),
        "bus": (_box(0, .08, .90, .50), _box(0, .26, .80, .18, ACCENT), _disc(-.50, -.46, .18, .18, DARK),
                _disc(.50, -.46, .18, .18, DARK)),
        "truck": (_box(-.28, .16, .60, .48, LIGHT), _box(.60, -.06, .28, .32), _box(.66, .06, .16, .12, ACCENT),
                  _box(0, -.34, .88, .09, DARK), _disc(-.50, -.46, .19, .19, DARK), _disc(.56, -.46, .19, .19, DARK)),
        "racer": (_box(-.72, .02, .16, .22, ACCENT), _box(.05, -.28, .92, .14), _disc(-.05, -.10, .34, .17, ACCENT),
                  _disc(-.56, -.34, .27, .27, DARK), _disc(.56, -.34, .27, .27, DARK)),
    },
}  # fmt: skip
HUES = ((0.01, 0.09), (0.33, 0.08), (0.58, 0.53), (0.13, 0.80))  # of body and accent, a superclass
IMAGE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))  # the frame of the image itself
KINDS = 4  # subclasses of a superclass
CLASSES = tuple(kind for kinds in FORMS.values() for kind in kinds)

SHAPES = Hierarchy(
    CLASSES,
    (Level("superclass", tuple(FORMS), tuple(i // KINDS for i in range(len(CLASSES)))),),
    "built in: superclass = class // 4",
)


def shapes(
    split: str = "train",
    *,
    n: int | None = None,
    size: int = 32,
    difficulty: Real = 1.0,
    pattern: int = 3,
    cues: str = "robust",
    palette: str = "superclass",
    seed: int = 0,
) -> Images:
    """Drawings of 16 classes, class = 4 * superclass + subclass, with a hierarchy (`SHAPES`).

    Images, poses, colours and clutter follow from `seed` and `split` alone: the other arguments change the same scenes.
    Every 16 consecutive images hold each class once, and a smaller `n` gives a prefix of a larger one.

    Args:
        split: "train", "validation" or "test": streams that share no random number.
        n: number of images; by default 4,800, 800 and 1,600.
        size: height and width in pixels, 8 to 256.
        difficulty: factor of clutter, noise, light, and variation of pose and hue, 0 to 4.
        pattern: amplitude, in levels of 1/255, 0 to 16, of a pattern of +-1 added to each image. The class decides
            it: the 16 patterns are orthogonal to each other and vanish in any 4 x 4 mean. 0 leaves it away.
        cues: "robust" tells subclasses by silhouette and parts; "thin" draws the form at random among the four of the
            superclass, and only faint stripes (+-8/255, 4 pixels apart) tell the subclass by their direction.
        palette: what decides the hues of body and accent: the "superclass"; the "kind" (class % 4), so that one class
            of each superclass has the same; or "none", each image has hues of its own.
        seed: any integer.

    Raises:
        InputError: an argument out of its range.

    >>> images = shapes("test", n=160)
    >>> images.x.shape, images.y.bincount().tolist() == 16 * [10]
    (torch.Size([160, 3, 32, 32]), True)
    >>> images.hierarchy.levels[0].names, images.classes[:4]
    (('house', 'tree', 'fish', 'car'), ('cottage', 'tower', 'barn', 'bungalow'))
    """
    n = SIZES.get(split, 1) if n is None else n
    _check(n, size, difficulty, pattern, split=split, cues=cues, palette=palette)
    style = _Style(size, float(difficulty), pattern, cues == "thin", palette)
    with torch.device("cpu"):
        x, y = zip(*_chunks(f"shapes/{split}/{seed}", n, style), strict=True)
        return Images(torch.cat(x)[:n], torch.cat(y)[:n], CLASSES, SHAPES)


def _check(n: int, size: int, difficulty: Real, pattern: int, **words: str) -> None:
    for name, text in words.items():
        if text not in WORDS[name]:
            raise InputError(f"shapes: no {name} {text!r}, expected one of {', '.join(WORDS[name])}")
    limits = (
        ("n", n, 1, 10**7),
        ("size", size, 8, 256),
        ("difficulty", difficulty, 0, 4),
        ("pattern", pattern, 0, MARGIN),
    )
    for name, value, low, high in limits:
        whole = name != "difficulty"
        if not isinstance(value, int | float) or not low <= value <= high or (whole and value % 1):
            raise InputError(f"shapes: {name} is {value}, expected {'a whole number, ' * whole}{low} to {high}")


class _Style(NamedTuple):
    size: int
    difficulty: float
    pattern: int
    thin: bool
    palette: str


def _real(values: Any) -> Float[Tensor, "..."]:
    """A constant of the type that everything here has, whatever the default type is."""
    return torch.tensor(values, dtype=torch.float32)


def _each(values: PerImage) -> Float[Tensor, "n 1 1"]:
    return values[:, None, None]


@dataclass(frozen=True)
class _Dice:
    """Uniform random numbers, one set for each of `n` images."""

    n: int
    generator: torch.Generator

    def unit(self, *shape: int) -> Float[Tensor, "n ..."]:
        return torch.rand(self.n, *shape, generator=self.generator, dtype=torch.float32)

    def sign(self, *shape: int) -> Float[Tensor, "n ..."]:
        return 2 * self.unit(*shape) - 1

    def side(self) -> PerImage:
        return 2 * self.unit().round() - 1


def _chunks(name: str, n: int, style: _Style) -> Iterator[tuple[UInt8[Tensor, "n 3 h w"], Int64[Tensor, " n"]]]:
    for i in range(-(-n // CHUNK)):
        key = hashlib.sha256(f"{name}/{i}".encode()).digest()
        dice = _Dice(CHUNK, torch.Generator().manual_seed(int.from_bytes(key[:4], "big")))
        y = _Dice(CHUNK // 16, dice.generator).unit(16).argsort(1).flatten()
        yield _draw(dice, y, style), y


def _draw(dice: _Dice, y: Int64[Tensor, " n"], style: _Style) -> UInt8[Tensor, "n 3 h w"]:
    """One chunk of images of the classes `y`. Random numbers are drawn in the same order whatever the style."""
    size, d = style.size, style.difficulty
    picture = _background(dice, size, d)
    frame, pixels = _pose(dice, size, d)
    any_form = y // KINDS * KINDS + (dice.unit() * KINDS).long()
    inks = _inks(dice, y, style)
    picture, mask = _object(picture, frame, pixels, _forms()[any_form if style.thin else y], inks)
    stripes = _stripes(dice, y % KINDS, size)
    if style.thin:
        picture = picture + (mask * stripes)[:, None] * (STRIPE / (255 - 2 * MARGIN))
    light = 1 + 0.12 * d * _gradient(dice, size)
    noise = dice.unit(3, size, size) + dice.unit(3, size, size) - 1
    levels = (picture * light[:, None]).clamp_(0, 1) * (255 - 2 * MARGIN) + MARGIN + noise * (NOISE * d)
    levels = levels.clamp_(MARGIN, 255 - MARGIN).round() + style.pattern * _patterns(size)[y]
    return levels.to(torch.uint8, memory_format=torch.channels_last)


def _plane(a: Float[Tensor, "n 3"], size: int) -> Plane:
    """a0 * right + a1 * up + a2 at each pixel, right and up from -1 to 1 over the image."""
    axis = (torch.arange(size, dtype=torch.float32) * 2 + 1) / size - 1
    return (a[:, :1] * axis)[:, None, :] + (a[:, 2:] - a[:, 1:2] * axis)[:, :, None]


def _gradient(dice: _Dice, size: int) -> Plane:
    return _plane(torch.cat([dice.sign(2), _real([0.0]).expand(dice.n, 1)], 1), size)


def _moved(frame: Frame, x: PerImage, y: PerImage, tangent: PerImage) -> Frame:
    """Coordinates about the point (x, y), turned to the left by an angle, given by the tangent of its half.

    That makes sine and cosine rational, hence the same on every machine.
    """
    square = tangent * tangent
    cosine, sine = ((1 - square) / (1 + square))[:, None], (2 * tangent / (1 + square))[:, None]
    last = _real([0.0, 0.0, 1.0])
    u, v = frame[:, 0] - x[:, None] * last, frame[:, 1] - y[:, None] * last
    return torch.stack([cosine * u + sine * v, cosine * v - sine * u], 1)


def _cover(frame: Frame, part: Float[Tensor, "n 8"], pixels: PerImage, size: int) -> Plane:
    """How much of each pixel the part covers, by its distance in pixels from the edge; `pixels` make one unit."""
    rounded, x, y, foot, top, half, _, turn = part.unbind(1)
    u, v = (_plane(row, size) for row in (_moved(frame, x, y, turn) * _each(pixels)).unbind(1))
    middle, slope, half, foot = map(
        _each, (pixels * (foot + top) / 2, (foot - top) / (2 * half), pixels * half, pixels * foot)
    )
    box = torch.maximum((v * slope).add_(u.abs()).sub_(middle), v.abs().sub_(half))
    p, q = u.mul_(1 / foot), v.mul_(1 / half)
    disc = p.mul_(p).add_(q.mul_(q)).sqrt_().sub_(1).mul_(torch.minimum(foot, half))
    return torch.where(_each(rounded) > 0, disc, box).neg_().add_(0.5).clamp_(0, 1)


def _paint(picture: Picture, cover: Plane, colour: Float[Tensor, "n 3"]) -> Picture:
    return (colour[:, :, None, None] - picture).mul_(cover[:, None]).add_(picture)


def _rgb(hue: PerImage, saturation: PerImage, value: PerImage) -> Float[Tensor, "n 3"]:
    """Colour from hue (in turns), saturation and value in [0, 1]."""
    sector = (hue[:, None] * 6 + _real([5.0, 3.0, 1.0])) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(sector, 4 - sector).clamp(0, 1))


def _background(dice: _Dice, size: int, difficulty: float) -> Picture:
    """A dull colour with a gradient, and translucent blots on it."""
    base = _rgb(dice.unit(), 0.5 * dice.unit(), 0.25 + 0.6 * dice.unit())
    picture = base[:, :, None, None] + 0.15 * _gradient(dice, size)[:, None]
    frame = _real(IMAGE).expand(dice.n, 2, 3)
    pixels, nothing = _real([size / 2, 0.0])[:, None].expand(2, dice.n)
    for _ in range(CLUTTER):
        width, half = 0.15 + 0.35 * dice.unit(), 0.1 + 0.3 * dice.unit()
        blot = (dice.unit().round(), dice.sign(), dice.sign(), width, width, half, nothing, dice.sign())
        opacity = (0.8 * difficulty * dice.unit()).clamp(max=1)
        colour = _rgb(dice.unit(), 0.8 * dice.unit(), 0.2 + 0.75 * dice.unit())
        picture = _paint(picture, _cover(frame, torch.stack(blot, 1), pixels, size) * _each(opacity), colour)
    return picture


def _pose(dice: _Dice, size: int, difficulty: float) -> tuple[Frame, PerImage]:
    """The coordinates in which the object is drawn (shifted, turned, scaled, mirrored), and the pixels of one unit."""
    x, y = (0.15 * difficulty * dice.sign(2)).unbind(1)
    scale = 0.85 * (1 + 0.15 * difficulty * dice.sign())
    mirror = torch.stack([dice.side(), torch.ones_like(scale)], 1)
    frame = _moved(_real(IMAGE).expand(dice.n, 2, 3), x, y, 0.12 * difficulty * dice.sign())
    return frame * (mirror / scale[:, None])[:, :, None], scale * size / 2


def _inks(dice: _Dice, y: Int64[Tensor, " n"], style: _Style) -> Float[Tensor, "n 4 3"]:
    """Colours of body, accent, dark and light parts; the palette decides the hue, but for an odd one."""
    chance = dice.sign(2)
    hues = _real(HUES)[y % KINDS if style.palette == "kind" else y // KINDS]
    hue = chance / 2 if style.palette == "none" else hues + 0.05 * style.difficulty * chance
    odd = (dice.unit() < 0.1 * style.difficulty)[:, None] * dice.unit(2)
    body, accent = ((hue + odd) % 1).unbind(1)
    colours = (
        _rgb(body, 0.55 + 0.35 * dice.unit(), 0.45 + 0.5 * dice.unit()),
        _rgb(accent, 0.45 + 0.45 * dice.unit(), 0.35 + 0.6 * dice.unit()),
        _rgb(dice.unit(), 0.3 * dice.unit(), 0.05 + 0.15 * dice.unit()),
        _rgb(dice.unit(), 0.2 * dice.unit(), 0.82 + 0.15 * dice.unit()),
    )
    return torch.stack(colours, 1)


def _forms() -> Float[Tensor, "16 parts 8"]:
    """The parts of each class as rows of numbers, filled up with a part so narrow that it covers nothing."""
    forms = [kind for kinds in FORMS.values() for kind in kinds.values()]
    most, none = max(map(len, forms)), _box(0, 0, -9, 1)
    return _real([[*form, *[none] * (most - len(form))] for form in forms])


def _object(
    picture: Picture, frame: Frame, pixels: PerImage, form: Float[Tensor, "n parts 8"], inks: Float[Tensor, "n 4 3"]
) -> tuple[Picture, Plane]:
    """The picture with the objects painted on it, part by part, and the mask of what they cover."""
    mask = torch.zeros_like(picture[:, 0])
    for part in form.unbind(1):
        cover = _cover(frame, part, pixels, picture.shape[-1])
        ink = part[:, 6].long()[:, None, None].expand(-1, 1, 3)
        picture = _paint(picture, cover, inks.gather(1, ink)[:, 0])
        mask = torch.maximum(mask, cover)
    return picture, mask


def _stripes(dice: _Dice, kind: Int64[Tensor, " n"], size: int) -> Plane:
    """Stripes of +-1 at 0, 30, 60 or 90 degrees by subclass, leaning either way, of random phase."""
    across = _real([[1.0, 0.0], [0.75**0.5, 0.5], [0.5, 0.75**0.5], [0.0, 1.0]])[kind]
    x, y = (across * (size / 2 / PERIOD)).unbind(1)
    turns = _plane(torch.stack([x, y * dice.side(), dice.unit()], 1), size)
    return (turns % 1 < 0.5).float() * 2 - 1


def _patterns(size: int) -> Float[Tensor, "16 3 height width"]:
    """One pattern of +-1 a class, a Walsh function of period 4 down and 8 across in each colour, at random.

    No function serves two classes in one colour, so patterns are orthogonal; each sums to zero over any four rows.
    """
    pair = torch.tensor([[1, 1], [1, -1]])
    down = torch.kron(pair, pair)[1:]
    walsh = torch.kron(down, torch.kron(pair, torch.kron(pair, pair))).view(3, 8, 4, 8).flatten(0, 1)
    chance = _Dice(3, torch.Generator().manual_seed(0))
    tile = walsh[chance.unit(24).argsort(1)[:, :16].T]
    times = -(-size // 8)
    return tile.tile(1, 1, 2 * times, times)[..., :size, :size].float()
