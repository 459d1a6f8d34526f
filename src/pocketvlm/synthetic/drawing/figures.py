"""Figures with a name: a circle, a star … of a clear colour, smooth at every size, and the plain grounds they lie on.

Shared by single pictures, pairs and clips. Boxes are (left, top, right, bottom) in pixels of the picture, tight around
the ink; right and bottom are exclusive.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pocketvlm.synthetic.drawing.canvas import OVERSAMPLING, Canvas, PixelBox
from pocketvlm.synthetic.drawing.lines import Colour, draw_background
from pocketvlm.synthetic.sample import Picture
from pocketvlm.synthetic.words.values import one_of

#: Clear colours: `JITTER` up or down in each channel leaves each one nearest to itself.
COLOURS: dict[str, Colour] = {
    "red": (215, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 215, 50),
    "green": (50, 160, 70),
    "blue": (45, 95, 210),
    "purple": (125, 60, 165),
    "pink": (245, 120, 180),
    "brown": (125, 80, 45),
}
JITTER = 12
#: A colour and the ground it lies on differ by at least so much, summed over the channels and in one of them.
CONTRAST, CHANNEL_CONTRAST = 160, 105
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "heart")
TILTS = (-10, -5, 0, 0, 0, 5, 10)


@dataclass(frozen=True, slots=True)
class Look:
    """What a figure looks like.

    Attributes:
        shape: one of `SHAPES`.
        colour: one of `COLOURS`.
        pixels: its longer side before it is tilted.
        ink: the colour it is painted with.
        large: of the two classes of size.
        tilt: degrees, counter-clockwise.
    """

    shape: str
    colour: str
    pixels: int
    ink: Colour
    large: bool = False
    tilt: int = 0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def mask(self) -> NDArray[np.uint8]:
        """Its coverage, cut to the ink: uint8 [height, width]."""
        return draw_mask(self.shape, self.pixels, self.tilt)


@dataclass(frozen=True, slots=True)
class Figure:
    """A look in its place: `left` and `top` of the ink, in pixels."""

    look: Look
    left: int
    top: int

    @property
    def shape(self) -> str:
        return self.look.shape

    @property
    def colour(self) -> str:
        return self.look.colour

    @property
    def name(self) -> str:
        return self.look.name

    @property
    def box(self) -> PixelBox:
        height, width = self.look.mask.shape
        return self.left, self.top, self.left + width, self.top + height

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the middle of the box."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    def paint(self, canvas: Canvas) -> None:
        canvas.lay(self.look.mask, self.left, self.top, self.look.ink)
        canvas.mark(self.shape, self.box, self.colour)


def plural(shape: str) -> str:
    """Several of `shape`."""
    return shape + ("es" if shape.endswith("s") else "s")


def with_article(name: str) -> str:
    """`name` with "a" or "an" before it."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


@lru_cache(maxsize=4096)
def draw_mask(shape: str, pixels: int, tilt: int = 0) -> NDArray[np.uint8]:
    """Coverage of `shape`, `pixels` on its longer side, turned by `tilt` degrees and cut to its ink."""
    side = pixels * 3 // 2 + 2  # room for a corner that is turned outwards
    image = Image.new("L", (side * OVERSAMPLING, side * OVERSAMPLING))
    pen = ImageDraw.Draw(image)
    middle, radius = side * OVERSAMPLING / 2, pixels * OVERSAMPLING / 2
    if shape in ("circle", "ring"):
        for share, value in ((1.0, 255), (0.55, 0 if shape == "ring" else 255)):
            reach = radius * share
            pen.ellipse((middle - reach, middle - reach, middle + reach - 1, middle + reach - 1), fill=value)
    else:
        cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
        pen.polygon(
            [
                (middle + radius * (x * cos + y * sin), middle + radius * (y * cos - x * sin))
                for x, y in _outline(shape)
            ],
            fill=255,
        )
    mask = np.asarray(image.reduce(OVERSAMPLING))
    rows, columns = np.flatnonzero((mask > 127).any(axis=1)), np.flatnonzero((mask > 127).any(axis=0))
    out = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    out.setflags(write=False)  # it is shared
    return out


@lru_cache(maxsize=16)
def _outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners of `shape` around (0, 0), its longer side from -1 to 1; y grows downwards."""
    points: list[tuple[float, float]]
    if shape == "square":
        points = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    elif shape == "triangle":
        points = [(0, -1), (1, 0.8), (-1, 0.8)]
    elif shape == "diamond":
        points = [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)]
    elif shape == "cross":
        arm = 0.34
        quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
        points = [(x * a - y * b, x * b + y * a) for a, b in ((1, 0), (0, 1), (-1, 0), (0, -1)) for x, y in quarter]
    elif shape == "star":
        angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
        points = [
            ((0.42 if i % 2 else 1) * math.cos(a), (0.42 if i % 2 else 1) * math.sin(a)) for i, a in enumerate(angles)
        ]
    elif shape == "heart":
        turns = [2 * math.pi * i / 60 for i in range(60)]
        points = [
            (16 * math.sin(t) ** 3, -13 * math.cos(t) + 5 * math.cos(2 * t) + 2 * math.cos(3 * t) + math.cos(4 * t))
            for t in turns
        ]
    else:
        raise ValueError(f"shape {shape!r} is not one of {', '.join(SHAPES)}")
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    top, bottom = min(y for _, y in points), max(y for _, y in points)
    scale = 2 / max(right - left, bottom - top)
    return tuple(((x - (left + right) / 2) * scale, (y - (top + bottom) / 2) * scale) for x, y in points)


def colours_on(paper: Colour) -> tuple[str, ...]:
    """The colours that stand out from `paper`."""
    names = []
    for name, colour in COLOURS.items():
        apart = [abs(a - b) for a, b in zip(colour, paper, strict=True)]
        if sum(apart) >= CONTRAST and max(apart) >= CHANNEL_CONTRAST:
            names.append(name)
    return tuple(names)


def draw_ink(rng: np.random.Generator, colour: str) -> Colour:
    """A tone of `colour`."""
    red, green, blue = (int(v) for v in np.clip(COLOURS[colour] + rng.integers(-JITTER, JITTER + 1, 3), 0, 255))
    return red, green, blue


def draw_look(
    rng: np.random.Generator, shape: str, colour: str, pixels: tuple[int, int], *, large: bool = False
) -> Look:
    """A figure of `shape` and `colour`, its longer side from pixels[0] to pixels[1]."""
    size = int(rng.integers(pixels[0], pixels[1] + 1))
    tilt = 0 if shape in ("circle", "ring") else one_of(rng, TILTS)
    return Look(shape, colour, size, draw_ink(rng, colour), large, tilt)


def draw_ground(rng: np.random.Generator, height: int, width: int, variety: float) -> tuple[Picture, Colour]:
    """(picture, its colour): white, with probability `variety` light, grey or dark, some of these with a texture."""
    if rng.random() >= variety:
        return np.full((height, width, 3), 255, np.uint8), (255, 255, 255)
    form = rng.random()
    if form < 0.55:
        red, green, blue = (int(v) for v in rng.integers(222, 256, 3))
    else:
        # Nearly without a hue: no ground has the colour of a figure.
        level = int(rng.integers(200, 235) if form < 0.75 else rng.integers(15, 45))
        red, green, blue = (level + int(v) for v in rng.integers(-10, 11, 3))
    paper = (red, green, blue)
    return draw_background(rng, height, width, paper, variety), paper


def other_name(rng: np.random.Generator, names: Collection[str], colours: Sequence[str]) -> str:
    """A colour with a shape that is not among `names`, half of the time near one of them: one part is the same."""
    known = sorted(names)
    while True:
        shape, colour = one_of(rng, SHAPES), one_of(rng, colours)
        if known and rng.random() < 0.5:
            near_colour, near_shape = one_of(rng, known).split()
            if rng.random() < 0.5:
                shape = near_shape
            else:
                colour = near_colour
        if f"{colour} {shape}" not in names:
            return f"{colour} {shape}"
