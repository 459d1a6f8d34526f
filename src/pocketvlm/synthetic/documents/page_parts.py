"""The parts of a page and how they look: blocks of print with frames and labels, pictures of large shapes, gradients.

A page may have over three million pixels: everything is painted where it stands, nothing is worked out for the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pocketvlm.synthetic.drawing.lines import Colour, blend, luminance, rotate
from pocketvlm.synthetic.drawing.paper import Sheet, print_sheet
from pocketvlm.synthetic.sample import CharacterBox, Picture


class Box(NamedTuple):
    """A rectangle in pixels of the page; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    def grown(self, by: int) -> Box:
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def holds(self, other: Box) -> bool:
        return (
            self.left <= other.left
            and self.top <= other.top
            and other.right <= self.right
            and other.bottom <= self.bottom
        )


class Entry(NamedTuple):
    """What a row of print says; `name` and `value` are empty where it is just words."""

    text: str
    name: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class Print:
    """A block of print on the page.

    Attributes:
        sheet: the set rows.
        entries: what they say; of a title or heading, one.
        padding: around the rows, in pixels.
        ink: colour of the letters and of the frame.
        paper: colour of a label of its own under the rows; None on the page itself.
        frame: "", "border" (a line all around), "above" or "left" (a rule).
        degrees: rotation counter-clockwise.
    """

    sheet: Sheet
    entries: tuple[Entry, ...]
    padding: int
    ink: Colour = (0, 0, 0)
    paper: Colour | None = None
    frame: str = ""
    degrees: float = 0.0

    @property
    def text(self) -> str:
        return "\n".join(entry.text for entry in self.entries)

    @property
    def width(self) -> int:
        return self.sheet.width + 2 * self.padding

    @property
    def height(self) -> int:
        return self.sheet.height + 2 * self.padding


def draw_ink(rng: np.random.Generator, paper: Colour) -> Colour:
    """Any colour at least 100 darker than `paper`, or lighter where there is more room."""
    room = luminance(paper) - 100
    dark = room > 55
    share = (room if dark else 155 - luminance(paper)) / 255
    red, green, blue = (int(v * share) for v in rng.integers(0, 256, 3))
    return (red, green, blue) if dark else (255 - red, 255 - green, 255 - blue)


def paint_gradient(
    rng: np.random.Generator, height: int, width: int, start: NDArray[np.float32], end: NDArray[np.float32]
) -> Picture:
    """[H, W, 3] from one colour to another, downwards or to the right."""
    axis = int(rng.integers(2))
    share = np.linspace(0, 1, (height, width)[axis], dtype=np.float32)[:, None]
    line = np.clip(start + (end - start) * share, 0, 255).astype(np.uint8)
    # One line of colours is repeated: on a large page anything worked out pixel by pixel takes most of the time.
    picture = np.empty((height, width, 3), np.uint8)
    picture[...] = line[:, None] if axis == 0 else line[None]
    return picture


def paint_panel(rng: np.random.Generator, panel: Box) -> Picture:
    """A picture without fine detail: a few large shapes on a gradient."""
    width, height = panel.right - panel.left, panel.bottom - panel.top
    start, end = rng.integers(0, 256, (2, 3)).astype(np.float32)
    image = Image.fromarray(paint_gradient(rng, height, width, start, end))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(5))):
        red, green, blue = (int(v) for v in rng.integers(0, 256, 3))
        w, h = (max(2, int(v)) for v in rng.uniform(0.25, 0.7, 2) * (width, height))
        x, y = (int(v) for v in rng.uniform(-0.1, 0.8, 2) * (width, height))
        shape = int(rng.integers(3))
        if shape == 0:
            pen.ellipse((x, y, x + w, y + h), fill=(red, green, blue))
        elif shape == 1:
            pen.rectangle((x, y, x + w, y + h), fill=(red, green, blue))
        else:
            pen.polygon(((x, y + h), (x + int(w * rng.random()), y), (x + w, y + h)), fill=(red, green, blue))
    return np.asarray(image)


def print_block(image: Picture, block: Print, place: Box) -> list[CharacterBox]:
    """Print `block` into `image` [H, W, 3]; returns the boxes of its characters."""
    coverage = np.zeros((block.height, block.width), np.uint8)
    boxes = print_sheet(block.sheet, coverage, block.padding, block.padding, block.sheet.width)
    line = max(1, block.sheet.pixels // 12)
    if block.frame == "above":
        coverage[:line] = 255
    elif block.frame == "left":
        coverage[:, :line] = 255
    elif block.frame == "border":
        near, far = block.padding // 2, block.padding // 2 + line
        for strip in (coverage[near:-near, near:far], coverage[near:-near, -far:-near]):
            strip[...] = 255
        for strip in (coverage[near:far, near:-near], coverage[-far:-near, near:-near]):
            strip[...] = 255
    if block.degrees:
        coverage, boxes = rotate(coverage, boxes, block.degrees, margin=line)
    ground = image[place.top : place.bottom, place.left : place.right]
    if block.paper is not None:
        ground[...] = block.paper
    ground[...] = blend(ground, coverage, block.ink)
    x, y = place.left, place.top
    return [CharacterBox(c, left + x, top + y, right + x, bottom + y) for c, left, top, right, bottom in boxes]
