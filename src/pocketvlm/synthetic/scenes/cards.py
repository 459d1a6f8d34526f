"""Small pictures that are seen together: a few figures or one printed word on a plain, framed or banded ground.

Areas and boxes are (left, top, right, bottom) in pixels of the picture; right and bottom are exclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pocketvlm.synthetic.drawing.canvas import Canvas, PixelBox, readable_on
from pocketvlm.synthetic.drawing.figures import Figure, Look, draw_ground
from pocketvlm.synthetic.drawing.fonts import Face, FontFile, load_face
from pocketvlm.synthetic.drawing.lines import Colour, set_line
from pocketvlm.synthetic.sample import Picture
from pocketvlm.synthetic.scenes.arrangements import MARGIN, is_near, place_figures
from pocketvlm.synthetic.words.values import integer_in

TRAIN_FORMS = ("plain", "framed", "banded", "panel")
HELDOUT_FORMS = ("sidebar", "double frame")
FORMS = TRAIN_FORMS + HELDOUT_FORMS


@dataclass(frozen=True, slots=True)
class Ground:
    """What lies under a card: the picture, the colour of its paper, and the area that is free."""

    image: Picture
    paper: Colour
    area: PixelBox

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the free area."""
        left, top, right, bottom = self.area
        return bottom - top, right - left


@dataclass(frozen=True, slots=True)
class Print:
    """A word or a number in its place: `x` is where its ink starts; all in pixels."""

    text: str
    face: Face
    x: int
    baseline: int


@dataclass(frozen=True, slots=True)
class Card:
    """What one of the pictures shows."""

    figures: tuple[Figure, ...] = ()
    print: Print | None = None

    @property
    def text(self) -> str:
        """What is printed; empty for nothing."""
        return self.print.text if self.print else ""


def draw_form(rng: np.random.Generator, form: str, height: int, width: int, variety: float) -> Ground:
    """A ground of `form`, one of `FORMS`, with the area that it leaves free."""
    image, paper = draw_ground(rng, height, width, variety)
    canvas = Canvas(image)
    # Greys only: decoration must not look like a figure, and must differ from the paper.
    level = int(rng.integers(90, 150))
    grey = (level, level, level)
    side, line = int(rng.integers(2, 5)), int(rng.integers(1, 3))
    area = (0, 0, width, height)
    if form in ("framed", "double frame"):
        canvas.frame((side, side, width - side, height - side), grey, line)
        inset = side + line
        if form == "double frame":
            canvas.frame((inset + 2, inset + 2, width - inset - 2, height - inset - 2), grey, 1)
            inset += 3
        area = (inset, inset, width - inset, height - inset)
    elif form == "banded":
        depth = int(rng.integers(6, 13))
        if rng.random() < 0.5:
            canvas.fill((0, 0, width, depth), grey)
            area = (0, depth, width, height)
        else:
            canvas.fill((0, height - depth, width, height), grey)
            area = (0, 0, width, height - depth)
    elif form == "sidebar":
        depth = int(rng.integers(6, 13))
        if rng.random() < 0.5:
            canvas.fill((0, 0, depth, height), grey)
            area = (depth, 0, width, height)
        else:
            canvas.fill((width - depth, 0, width, height), grey)
            area = (0, 0, width - depth, height)
    elif form == "panel":
        inset = int(rng.integers(3, 8))
        canvas.frame((0, 0, width, height), grey, inset)
        area = (inset, inset, width - inset, height - inset)
    elif form != "plain":
        raise ValueError(f"form {form!r} is not one of {', '.join(FORMS)}")
    return Ground(canvas.image, paper, area)


def paint(card: Card, ground: Ground) -> Canvas:
    """The picture of `card` on `ground`."""
    canvas = Canvas(ground.image)
    for figure in card.figures:
        figure.paint(canvas)
    if card.print:
        line = set_line(card.print.face, card.print.text)
        canvas.print(card.print.face, line, card.print.x, card.print.baseline, readable_on(ground.paper))
    return canvas


def set_print(
    rng: np.random.Generator, text: str, file: FontFile, font_pixels: tuple[int, int], ground: Ground
) -> Print | None:
    """`text` somewhere on `ground`, in print of font_pixels[0] to font_pixels[1] an em; None where it does not fit."""
    left, top, right, bottom = ground.area
    pixels = integer_in(rng, font_pixels)
    while pixels >= font_pixels[0]:
        face = load_face(file, pixels)
        line = set_line(face, text)
        free_x, free_y = right - left - 2 * MARGIN - line.width, bottom - top - 2 * MARGIN - line.height
        if free_x >= 0 and free_y >= 0:
            x, y = left + MARGIN + int(rng.integers(free_x + 1)), top + MARGIN + int(rng.integers(free_y + 1))
            return Print(text, face, x, y - line.top)
        pixels = min(pixels - 1, pixels * (right - left - 2 * MARGIN) // max(line.width, 1))
    return None


def set_again(text: str, like: Print, ground: Ground) -> Print | None:
    """`text` in place of what `like` says, as near as it fits; None where it does not."""
    left, _, right, bottom = ground.area
    line = set_line(like.face, text)
    x = min(like.x, right - MARGIN - line.width)
    below = like.baseline + line.bottom > bottom - 1 or like.baseline + line.top < ground.area[1] + 1
    return None if x < left + MARGIN or below else Print(text, like.face, x, like.baseline)


def place_on(rng: np.random.Generator, layout: str, looks: Sequence[Look], ground: Ground) -> tuple[Figure, ...] | None:
    """`looks` on `ground` by `layout`; None where they do not fit."""
    figures = place_figures(rng, layout, looks, *ground.size)
    if figures is None:
        return None
    left, top = ground.area[:2]
    return tuple(Figure(figure.look, figure.left + left, figure.top + top) for figure in figures)


def place_at(look: Look, centre: tuple[float, float], others: Sequence[Figure], ground: Ground) -> Figure | None:
    """`look` about `centre`; None where it would touch others or the edges of the free area."""
    height, width = look.mask.shape
    figure = Figure(look, round(centre[0] - width / 2), round(centre[1] - height / 2))
    left, top, right, bottom = figure.box
    area = ground.area
    inside = left > area[0] and top > area[1] and right < area[2] and bottom < area[3]
    return figure if inside and not any(is_near(figure.box, other.box) for other in others) else None


def place_freely(rng: np.random.Generator, look: Look, others: Sequence[Figure], ground: Ground) -> Figure | None:
    """`look` somewhere on `ground` where it touches nothing; None where no place was found."""
    left, top, right, bottom = ground.area
    for _ in range(20):
        figure = place_at(look, (rng.uniform(left, right), rng.uniform(top, bottom)), others, ground)
        if figure:
            return figure
    return None
