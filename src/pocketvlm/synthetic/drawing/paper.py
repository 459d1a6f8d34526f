"""Rows of print on a sheet of paper: a name on the left, a price on the right, titles in the middle, rules between.

Takes rows and fonts, gives the ink's coverage (uint8 [H, W]) and the characters' boxes in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketvlm.synthetic.drawing.fonts import Face, FontFile, load_face
from pocketvlm.synthetic.drawing.lines import Line, print_line, set_line
from pocketvlm.synthetic.sample import CharacterBox

TRIAL_PIXELS = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One row of print.

    Attributes:
        left, right: the texts at the two edges; `right` may be empty.
        bold: in the bold font.
        centred: `left` stands in the middle.
        rule: a thin line above the row.
        scale: size of the letters relative to the other rows.
    """

    left: str
    right: str = ""
    bold: bool = False
    centred: bool = False
    rule: bool = False
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Fonts:
    """The two fonts of a sheet."""

    regular: FontFile
    bold: FontFile


@dataclass(frozen=True, slots=True)
class Sheet:
    """Rows set at one size: (row, face, left line, right line), the leading and the room they need, all in pixels."""

    rows: tuple[tuple[Row, Face, Line, Line], ...]
    pixels: int
    leading: float
    width: int
    height: int


def set_sheet(rows: Sequence[Row], fonts: Fonts, pixels: int, leading_em: float) -> Sheet:
    """Set `rows` with letters of `pixels` an em, `leading_em` em from row to row."""
    placed, width = [], 0
    for row in rows:
        face = load_face(fonts.bold if row.bold else fonts.regular, max(1, round(pixels * row.scale)))
        left, right = set_line(face, row.left), set_line(face, row.right)
        gap = face.font.size if row.right else 0
        width = max(width, left.width + right.width + round(gap))
        placed.append((row, face, left, right))
    leading = leading_em * pixels
    height = sum(_step(row, leading) for row in rows)
    return Sheet(tuple(placed), pixels, leading, width, round(height))


def fit_sheet(
    rows: Sequence[Row], fonts: Fonts, font_pixels: tuple[int, int], leading_em: float, width: int, height: int
) -> Sheet | None:
    """The sheet with the largest print of `font_pixels` (smallest, largest) that fits; None where none does."""
    low, pixels = font_pixels
    # Lengths grow with the size but for rounding: one size, whose glyphs are at hand, tells which are worth a try.
    trial = set_sheet(rows, fonts, TRIAL_PIXELS, leading_em)
    pixels = min(pixels, round(TRIAL_PIXELS * min(width / max(trial.width, 1), height / trial.height)))
    while pixels >= low:
        sheet = set_sheet(rows, fonts, pixels, leading_em)
        ratio = min(width / max(sheet.width, 1), height / sheet.height)
        if ratio >= 1:
            return sheet
        pixels -= 1
    return None


def print_sheet(
    sheet: Sheet, coverage: NDArray[np.uint8], left: int, top: int, width: int, *, dotted: bool = False
) -> list[CharacterBox]:
    """Print `sheet` into `coverage`, `width` pixels wide from (left, top); `dotted` leads the eye to the prices."""
    boxes: list[CharacterBox] = []
    y = float(top)
    for row, face, first, second in sheet.rows:
        step = _step(row, sheet.leading)
        # The baseline stands 0.72 of the way down the row's own leading: room for descenders below.
        baseline = round(y + step - 0.28 * sheet.leading * row.scale)
        if row.rule:
            line = round(y + 0.15 * sheet.leading)
            coverage[line : line + max(1, sheet.pixels // 14), left : left + width] = 200
        x = left + (width - first.width) // 2 if row.centred else left
        boxes += print_line(coverage, face, first, x, baseline)
        price = left + width - second.width
        if dotted and second.pens:
            boxes += _print_dots(coverage, face, x + first.width, price, baseline)
        boxes += print_line(coverage, face, second, price, baseline)
        y += step
    return boxes


def _print_dots(coverage: NDArray[np.uint8], face: Face, start: int, end: int, baseline: int) -> list[CharacterBox]:
    period = max(3, round(0.4 * face.font.size))
    dot = set_line(face, ".")
    boxes: list[CharacterBox] = []
    for x in range(start + period, end - period - dot.width + 1, period):
        boxes += print_line(coverage, face, dot, x, baseline)
    return boxes


def _step(row: Row, leading: float) -> float:
    return leading * (row.scale + (0.35 if row.rule else 0.0))
