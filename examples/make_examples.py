#!/usr/bin/env python3
"""Draw the pictures of this folder: receipt.png, word.png, number.png, chart.png, the two pictures and clip.mp4.

    python examples/make_examples.py [OUT]

Only Pillow's built-in font is used, so every machine with the same Pillow draws the same pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from pocketvlm.synthetic.charts.drawing import Style as ChartStyle
from pocketvlm.synthetic.charts.drawing import paint_chart
from pocketvlm.synthetic.charts.parts import Axis, Chart
from pocketvlm.synthetic.charts.samples import COLOURS
from pocketvlm.synthetic.documents.receipts import Item, Receipt, Style, lay_out
from pocketvlm.synthetic.drawing.canvas import Canvas
from pocketvlm.synthetic.drawing.figures import Figure, Look
from pocketvlm.synthetic.drawing.files import to_mp4
from pocketvlm.synthetic.drawing.fonts import FontFile, load_face
from pocketvlm.synthetic.drawing.lines import BLACK, WHITE, Colour, blend, print_line, set_line
from pocketvlm.synthetic.drawing.paper import Fonts, fit_sheet, print_sheet
from pocketvlm.synthetic.sample import Picture

BUILT_IN = FontFile(path=None, style="Regular")

RECEIPT = Receipt(
    shop="CORNER CAFE",
    date="2026-03-14",
    items=(Item("Coffee", 280), Item("Muffin", 240), Item("Sandwich", 640)),
)
# This word, this number and the receipt's total are held out: nano was never trained on them.
WORD, NUMBER = "castle", "4,184.50"
CHART = Chart(
    "bars",
    title="Harvest",
    names=("Pear", "Lime", "Plum"),
    values=(42, 18, 65),
    texts=("42", "18", "65"),
    colours=tuple((name, COLOURS[name]) for name in ("green", "orange", "purple")),
    axis=Axis(step=20, steps=4),
    has_ticks=False,
)
# (shape, colour, left, top) of what the two pictures show, and of the circle in each second of the clip.
FIRST = (("circle", "blue", 20, 24), ("square", "red", 100, 84))
SECOND = (("star", "yellow", 60, 30), ("square", "red", 22, 104), ("square", "green", 104, 104))
CIRCLE = tuple(("circle", "red", left, 38) for left in (6, 28, 50, 72))


def draw_receipt() -> Picture:
    """The receipt, uint8 [392, 280, 3]: black on white in large print."""
    height, width, margin = 392, 280, 18
    fonts = Fonts(BUILT_IN, BUILT_IN)
    sheet = fit_sheet(
        lay_out(RECEIPT, Style(scale=1.15)), fonts, (20, 32), 1.6, width - 2 * margin, height - 2 * margin
    )
    assert sheet is not None
    ink = np.zeros((height, width), np.uint8)
    print_sheet(sheet, ink, margin, (height - sheet.height) // 2, width - 2 * margin)
    return blend(np.full((height, width, 3), WHITE, np.uint8), ink, BLACK)


def draw_line(text: str, pixels: int, paper: Colour, ink: Colour) -> Picture:
    """`text` in the middle of a uint8 [112, 224, 3] picture."""
    height, width = 112, 224
    face = load_face(BUILT_IN, pixels)
    line = set_line(face, text)
    coverage = np.zeros((height, width), np.uint8)
    print_line(coverage, face, line, (width - line.width) // 2, (height - line.height) // 2 - line.top)
    return blend(np.full((height, width, 3), paper, np.uint8), coverage, ink)


def draw_chart() -> Picture:
    """The chart, uint8 [224, 224, 3]."""
    style = ChartStyle(BUILT_IN, BUILT_IN, 18, (10, 10, 214, 214), WHITE, grid=False)
    canvas = paint_chart(CHART, style, np.full((224, 224, 3), WHITE, np.uint8))
    assert canvas is not None
    return canvas.image


def draw_figures(figures: tuple[tuple[str, str, int, int], ...], side: int, pixels: int) -> Picture:
    """Shapes of `pixels` on white, uint8 [side, side, 3]."""
    canvas = Canvas(np.full((side, side, 3), WHITE, np.uint8))
    for shape, colour, left, top in figures:
        Figure(Look(shape, colour, pixels, COLOURS[colour]), left, top).paint(canvas)
    return canvas.image


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the example pictures.")
    parser.add_argument(
        "out", type=Path, nargs="?", default=Path(__file__).parent, help="directory (default: this one)"
    )
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    pictures = {
        "receipt.png": draw_receipt(),
        "word.png": draw_line(WORD, 36, (250, 244, 226), (30, 60, 110)),
        "number.png": draw_line(NUMBER, 40, WHITE, BLACK),
        "chart.png": draw_chart(),
        "first.png": draw_figures(FIRST, 168, 44),
        "second.png": draw_figures(SECOND, 168, 44),
    }
    for name, picture in pictures.items():
        Image.fromarray(picture).save(out / name)
        print(out / name)
    (out / "clip.mp4").write_bytes(to_mp4([draw_figures((figure,), 112, 36) for figure in CIRCLE], fps=1))
    print(out / "clip.mp4")


if __name__ == "__main__":
    main()
