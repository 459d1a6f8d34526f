"""What the levels of printed pictures share: ranges of sizes, print, wear, and the error where nothing fits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pocketvlm.errors import ConfigError
from pocketvlm.synthetic.words.values import integer_in, one_of

#: Lowest and highest, both included.
Range = tuple[int, int]
#: Of the height and of the width, in pixels.
SizeRange = tuple[Range, Range]


def exactly(height: int, width: int) -> SizeRange:
    """The range with this one size."""
    return (height, height), (width, width)


#: Sizes of the three levels of tables, forms and charts: one view, up to 320 pixels a side, up to 448.
THREE_SIZES: tuple[tuple[SizeRange, ...], ...] = (
    (exactly(224, 224), exactly(224, 224), exactly(168, 280)),
    (((224, 320), (224, 320)),),
    (exactly(448, 448), ((336, 448), (336, 448))),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintedLevel:
    """How hard printed pictures are.

    Attributes:
        sizes: choices of (height, width) ranges, in pixels.
        font_pixels: smallest and largest size of the letters' em, in pixels.
        variety: 0 is always dark print on white, 1 the widest mix of grounds.
        wear: strength of blur and noise, 0 to 1.
    """

    sizes: tuple[SizeRange, ...]
    font_pixels: Range
    variety: float = 0.3
    wear: float = 0.2


def draw_size(rng: np.random.Generator, sizes: tuple[SizeRange, ...]) -> tuple[int, int]:
    """(height, width) in pixels."""
    heights, widths = one_of(rng, sizes)
    return integer_in(rng, heights), integer_in(rng, widths)


def no_room(what: str, level: PrintedLevel, height: int, width: int) -> ConfigError:
    """The error of a level whose print does not fit into its pictures."""
    return ConfigError(
        f"no {what} with print of {level.font_pixels[0]} pixels fits into {height} x {width} pixels",
        hint="Use smaller print or a bigger picture.",
    )
