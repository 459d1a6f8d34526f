"""What every chart has: its values and style, lines of print at a place, and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pocketvlm.synthetic.drawing.canvas import Canvas, PixelBox
from pocketvlm.synthetic.drawing.fonts import Face, FontFile, load_face
from pocketvlm.synthetic.drawing.lines import BLACK, Colour, Line

Mark = Literal["bar", "point", "slice"]


Side = Literal["right", "left", "below"]


#: The layout families: upright bars with their names beneath or in a legend, lying bars, a line with markers, pies with
#: a legend or with labels around; held out are dots on stems with the axis on the right, and rings.
TRAIN_LAYOUTS = ("bars", "bars with legend", "lying bars", "line", "pie with legend", "pie with labels")


HELDOUT_LAYOUTS = ("stems", "ring")


MARKS: dict[str, Mark] = {
    "bars": "bar",
    "bars with legend": "bar",
    "lying bars": "bar",
    "line": "point",
    "stems": "point",
    "pie with legend": "slice",
    "pie with labels": "slice",
    "ring": "slice",
}


class Axis(NamedTuple):
    """A scale from 0 to `steps` * `step`, with a tick and its number at each multiple of `step`."""

    step: int
    steps: int

    @property
    def top(self) -> int:
        return self.step * self.steps


@dataclass(frozen=True, slots=True)
class Chart:
    """What a chart says.

    Attributes:
        layout: the layout family.
        names: of the bars, points or slices, from the left or from the top, or clockwise.
        values: what they stand for; slices share a circle in proportion to them.
        texts: the values as they are printed.
        colours: of each mark, by name and as it is painted.
        printed: whether the values are printed.
        axis: None for pies.
        has_ticks: whether the axis has numbers; always where the values are not printed.
        title: empty where there is none.
    """

    layout: str
    names: tuple[str, ...]
    values: tuple[float, ...]
    texts: tuple[str, ...]
    colours: tuple[tuple[str, Colour], ...]
    printed: bool = True
    axis: Axis | None = None
    has_ticks: bool = True
    title: str = ""

    @property
    def mark(self) -> Mark:
        return MARKS[self.layout]

    @property
    def total(self) -> float:
        return sum(self.values)

    @property
    def shades(self) -> tuple[Colour, ...]:
        return tuple(shade for _, shade in self.colours)


@dataclass(frozen=True, slots=True)
class Style:
    """How a chart looks.

    Attributes:
        font, title_font: of the print and of the title; title_scale: the title's size relative to the rest.
        em: size of the print, in pixels.
        area: the part of the picture that the chart takes.
        paper, ink: colours of the ground and of print and lines.
        grid: whether lines run from the ticks through the plot.
        outlined: whether bars have an edge in ink.
        boxed: whether the plot has a frame on all sides.
        fullness: share of its place that a bar takes.
        thickness: of lines and stems; `radius` of markers.
        marker: 0 disc, 1 square, 2 diamond.
        legend: where the legend of a pie stands; legend_first: whether that of bars stands above.
        title_align: 0 is left, 0.5 in the middle.
        start: angle of the first slice, in degrees clockwise from three o'clock.
    """

    font: FontFile
    title_font: FontFile
    em: int
    area: PixelBox
    paper: Colour
    ink: Colour = BLACK
    title_scale: float = 1.1
    title_align: float = 0.5
    grid: bool = True
    outlined: bool = False
    boxed: bool = False
    fullness: float = 0.65
    thickness: float = 2.5
    radius: float = 4.0
    marker: int = 0
    legend: Side = "right"
    legend_first: bool = True
    start: float = -90.0

    @property
    def face(self) -> Face:
        return load_face(self.font, self.em)


def centred_left(line: Line, x: float) -> int:
    return round(x - line.width / 2)


def middle_baseline(face: Face, y: float) -> int:
    """The baseline of print whose capitals are centred on `y`."""
    return round(y + 0.36 * face.font.size)


def print_over(canvas: Canvas, face: Face, line: Line, x: int, baseline: int, colour: Colour) -> None:
    """Print on ground that is cleared of grid and lines first."""
    x = min(max(x, 1), canvas.width - line.width - 1)
    canvas.clear((x - 2, baseline + line.top - 1, x + line.width + 2, baseline + line.bottom + 1))
    canvas.print(face, line, x, baseline, colour)


def legend_rows(names: Sequence[Line], em: int, width: int) -> list[list[tuple[int, int]]] | None:
    """Rows of (entry, x) as wide as `width`; None where an entry is wider."""
    rows: list[list[tuple[int, int]]] = [[]]
    x = 0
    for i, name in enumerate(names):
        needed = round(1.2 * em) + name.width
        if needed > width:
            return None
        if x + needed > width:
            rows.append([])
            x = 0
        rows[-1].append((i, x))
        x += needed + round(0.9 * em)
    return rows


def print_legend_rows(
    canvas: Canvas,
    chart: Chart,
    style: Style,
    names: Sequence[Line],
    rows: Sequence[Sequence[tuple[int, int]]],
    area: PixelBox,
) -> None:
    em = style.em
    for k, row in enumerate(rows):
        y = area[1] + round(1.5 * em * (k + 0.5))
        for i, x in row:
            print_entry(canvas, style, names[i], chart.shades[i], area[0] + x, y)


def print_entry(canvas: Canvas, style: Style, name: Line, shade: Colour, x: int, y: int) -> None:
    """A square of `shade` and a name, centred on `y`."""
    side = round(0.8 * style.em)
    paint_bar(canvas, style, (x, y - side // 2, x + side, y - side // 2 + side), shade)
    canvas.print(style.face, name, x + round(1.2 * style.em), middle_baseline(style.face, y), style.ink)


def paint_bar(canvas: Canvas, style: Style, box: PixelBox, shade: Colour) -> None:
    canvas.fill(box, shade)
    if style.outlined:
        canvas.frame(box, style.ink)
