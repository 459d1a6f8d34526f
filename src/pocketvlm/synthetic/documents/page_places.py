"""A page, and the places of printed blocks on it: one that is free, and what is drawn around it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from pocketvlm.synthetic.documents.page_parts import (
    Box,
    Print,
    draw_ink,
)
from pocketvlm.synthetic.drawing.lines import Colour, draw_colours
from pocketvlm.synthetic.words.values import one_of

VIEW = 224


@dataclass(slots=True)
class Page:
    """What stands where on a page of `height` x `width` pixels.

    Attributes:
        side: about the side of a slice, in pixels.
        layout: the layout family, which says where the first block of small print stands.
        paper, ink: colours of the page and of the print on it.
        small: blocks of small print, each with its place.
        large: the title and the headings, each with its place; the title first.
        panels: pictures; a block of small print may lie on one.
    """

    height: int
    width: int
    side: float
    layout: str
    paper: Colour
    ink: Colour
    small: list[tuple[Print, Box]] = field(default_factory=list)
    large: list[tuple[Print, Box]] = field(default_factory=list)
    panels: list[Box] = field(default_factory=list)

    @property
    def cells(self) -> tuple[int, int]:
        """(rows, columns) of the slices of a page of this shape, as good as whole pixels tell."""
        return max(1, round(self.height / self.side)), max(1, round(self.width / self.side))

    @property
    def margin(self) -> int:
        return round(0.05 * math.sqrt(self.height * self.width))

    @property
    def edge(self) -> Box:
        """The page without half of its margin."""
        inset = self.margin // 2
        return Box(inset, inset, self.width - inset, self.height - inset)

    def is_free(self, box: Box, gap: int = 0) -> bool:
        """Whether `box` lies on the page and meets nothing there, not even within `gap` pixels."""
        taken = (*(place for _, place in self.small), *(place for _, place in self.large), *self.panels)
        return self.edge.holds(box) and not any(box.grown(gap).meets(other) for other in taken)


def fits(page: Page, block: Print) -> bool:
    edge = page.edge
    return block.width <= edge.right - edge.left and block.height <= edge.bottom - edge.top


def at(left: int, top: int, width: int, height: int) -> Box:
    return Box(left, top, left + width, top + height)


def place_large(rng: np.random.Generator, page: Page, block: Print, tries: int) -> bool:
    """Put the title at a free place near the top, or a heading somewhere below it; False where none was found."""
    edge = page.edge
    top, power = (page.large[0][1].bottom, 1) if page.large else (edge.top, 3)
    right, bottom = edge.right - block.width, edge.bottom - block.height
    for _ in range(tries):
        x = one_of(rng, (edge.left, edge.left, (edge.left + right) // 2, right))
        y = top + round((bottom - top) * float(rng.random()) ** power)
        if page.is_free(place := at(x, y, block.width, block.height)):
            page.large.append((block, place))
            return True
    return False


def place_small(rng: np.random.Generator, page: Page, block: Print, degrees: float) -> bool:
    """Put a block of small print and the panels that go with it on the page; False where no place was found."""
    block = _dress(rng, page, block, degrees)
    for _ in range(30):
        place = _draw_place(rng, page, block)
        panels = _panels_around(rng, page, place)
        if page.is_free(place) and all(page.is_free(panel) for panel in panels):
            page.small.append((block, place))
            page.panels += panels
            return True
    return False


def _dress(rng: np.random.Generator, page: Page, block: Print, degrees: float) -> Print:
    """Colours, frame and rotation of small print, as the layout wants them."""
    layout, ink = page.layout, page.ink
    if layout == "box" or (layout in ("corner", "between") and rng.random() < 0.5):
        paper, ink = draw_colours(rng, 1.0)
        return replace(block, ink=ink, paper=paper)
    if layout == "stamp":
        turn = float(rng.uniform(-degrees, degrees)) if rng.random() < 0.5 else 0.0
        return replace(block, ink=draw_ink(rng, page.paper), frame="border", degrees=turn)
    frame = {"footer": "above", "side note": "left"}.get(layout, "")
    return replace(block, ink=ink, frame=frame if rng.random() < 0.6 else "")


def _draw_place(rng: np.random.Generator, page: Page, block: Print) -> Box:
    """Where small print of the page's layout could stand: mostly inside one of the thirds (halves of a small page) that
    page designs are built on, and that are about the slices; now and then across their borders."""
    edge, layout = page.edge, page.layout
    right, bottom = edge.right - block.width, edge.bottom - block.height
    near = int(rng.integers(page.margin // 2 + 1))
    if rng.random() < 0.12:
        x, y = int(rng.integers(edge.left, right + 1)), int(rng.integers(edge.top, bottom + 1))
    else:
        rows, columns = page.cells
        x = _inside(rng, page.width / columns, int(rng.integers(columns)), edge.left, right, block.width)
        y = _inside(rng, page.height / rows, int(rng.integers(rows)), edge.top, bottom, block.height)
    if layout == "footer":
        y = bottom - near
    elif layout == "header":
        y = edge.top + near
    elif layout == "corner":
        x, y = one_of(rng, (edge.left + near, right - near)), one_of(rng, (edge.top + near, bottom - near))
    return at(x, y, block.width, block.height)


def _inside(rng: np.random.Generator, size: float, cell: int, first: int, last: int, length: int) -> int:
    """A start between `first` and `last` of something `length` long, inside the cell of that number where it fits."""
    low, high = math.ceil(cell * size) + 2, math.floor((cell + 1) * size) - 2 - length
    start = int(rng.integers(low, high + 1)) if low <= high else (low + high) // 2
    return min(max(start, first), last)


def _panels_around(rng: np.random.Generator, page: Page, place: Box) -> list[Box]:
    """The pictures that small print of the page's layout belongs to."""
    width, height = (round(float(share) * page.side) for share in rng.uniform((0.3, 0.3), (1.0, 0.8)))
    own_width, own_height = place.right - place.left, place.bottom - place.top
    if page.layout == "caption":
        width = max(width, own_width)
        left = one_of(rng, (place.left, place.left + (own_width - width) // 2, place.right - width))
        return [at(left, place.top - height, width, height)]
    if page.layout == "box":
        around = [int(v) for v in rng.integers(page.margin // 3, max(page.margin, round(0.4 * page.side)), 4)]
        edge = page.edge
        return [
            Box(
                max(edge.left, place.left - around[0]),
                max(edge.top, place.top - around[1]),
                min(edge.right, place.right + around[2]),
                min(edge.bottom, place.bottom + around[3]),
            )
        ]
    if page.layout == "side note":
        left = place.right if place.left + place.right < page.width else place.left - width
        return [at(left, place.top + (own_height - height) // 2, width, height)]
    if page.layout == "between":
        below = round(height * float(rng.uniform(0.5, 1.0)))
        return [
            at(place.left, place.top - height // 2, own_width, height // 2),
            at(place.left, place.bottom, own_width, below // 2),
        ]
    return []
