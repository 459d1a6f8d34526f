"""How a chart is laid out and painted: what it says and its style in, a canvas out; None where it does not fit.

Lengths are in pixels; `em` is the size of the print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

from pocketvlm.synthetic.drawing.canvas import Canvas, PixelBox, Point, mix
from pocketvlm.synthetic.drawing.fonts import Face, FontFile, load_face
from pocketvlm.synthetic.drawing.lines import BLACK, Colour, Line, set_line
from pocketvlm.synthetic.sample import Picture

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
RING_HOLE = 0.55


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


def paint_chart(chart: Chart, style: Style, background: Picture) -> Canvas | None:
    """`chart` in `style` on a copy of `background`; None where its print does not fit into the style's area."""
    canvas = Canvas(background)
    area = _print_title(canvas, chart.title, style)
    if area is None:
        return None
    if chart.mark == "slice":
        done = (_paint_labelled_pie if chart.layout == "pie with labels" else _paint_pie)(canvas, chart, style, area)
    elif chart.layout == "lying bars":
        done = _paint_lying(canvas, chart, style, area)
    else:
        done = _paint_upright(canvas, chart, style, area)
    return canvas if done else None


def _print_title(canvas: Canvas, title: str, style: Style) -> PixelBox | None:
    """Print the title; returns the area below it."""
    left, top, right, bottom = style.area
    if not title:
        return style.area
    face = load_face(style.title_font, round(style.em * style.title_scale))
    line = set_line(face, title)
    if line.width > right - left:
        return None
    canvas.print(face, line, left + round((right - left - line.width) * style.title_align), top - line.top, style.ink)
    return left, top + round(1.6 * face.font.size), right, bottom


def _centre(line: Line, x: float) -> int:
    return round(x - line.width / 2)


def _middle(face: Face, y: float) -> int:
    """The baseline of print whose capitals are centred on `y`."""
    return round(y + 0.36 * face.font.size)


def _print_over(canvas: Canvas, face: Face, line: Line, x: int, baseline: int, colour: Colour) -> None:
    """Print on ground that is cleared of grid and lines first."""
    x = min(max(x, 1), canvas.width - line.width - 1)
    canvas.clear((x - 2, baseline + line.top - 1, x + line.width + 2, baseline + line.bottom + 1))
    canvas.print(face, line, x, baseline, colour)


def _paint_upright(canvas: Canvas, chart: Chart, style: Style, area: PixelBox) -> bool:
    """Bars, stems or points above a horizontal axis."""
    assert chart.axis
    face, em, axis = style.face, style.em, chart.axis
    names, texts = ([set_line(face, text) for text in part] for part in (chart.names, chart.texts))
    ticks = [set_line(face, str(i * axis.step)) for i in range(axis.steps + 1)] if chart.has_ticks else []
    left, top, right, bottom = area
    in_legend, on_right = chart.layout == "bars with legend", chart.layout == "stems"
    if in_legend:
        rows = _legend_rows(names, em, right - left)
        if rows is None:
            return False
        step = round(1.5 * em)
        legend_top = top if style.legend_first else bottom - len(rows) * step
        _print_legend_rows(canvas, chart, style, names, rows, (left, legend_top, right, bottom))
        if style.legend_first:
            top += len(rows) * step + em // 4
            bottom -= round(0.4 * em)  # the lower half of the lowest tick
        else:
            bottom -= len(rows) * step + em // 4
    else:
        bottom -= round(1.35 * em)
    top += round(1.3 * em) if chart.printed else round(0.5 * em)
    room = max((tick.width for tick in ticks), default=-4) + 7
    left, right = (left, right - room) if on_right else (left + room, right)
    bottom -= 2
    slot = (right - left) / len(names)
    widest = 0.0 if in_legend else max(name.width for name in names) + 0.4 * em
    if chart.printed:
        widest = max(widest, max(text.width for text in texts) + 0.25 * em)
    if slot < max(widest, em) or bottom - top < max(4 * em, 1.2 * em * len(ticks)):
        return False

    def height_of(value: float) -> int:
        return bottom - round((bottom - top) * value / axis.top)

    _paint_scale(canvas, style, (left, top, right, bottom), [height_of(i * axis.step) for i in range(axis.steps + 1)])
    for i, tick in enumerate(ticks):
        start = right + 6 if on_right else left - 6 - tick.width
        canvas.print(face, tick, start, _middle(face, height_of(i * axis.step)), style.ink)
    centres = [left + slot * (i + 0.5) for i in range(len(names))]
    heights = [height_of(value) for value in chart.values]
    if chart.layout == "line":
        canvas.polyline(list(zip(centres, heights, strict=True)), chart.shades[0], style.thickness)
    for i, (x, y) in enumerate(zip(centres, heights, strict=True)):
        shade = chart.shades[i]
        if chart.mark == "bar":
            half = slot * style.fullness / 2
            box = (round(x - half), y, round(x + half), bottom)
            _paint_bar(canvas, style, box, shade)
            canvas.mark("bar", box)
        else:
            canvas.mark("point", (round(x - slot / 3), y, round(x + slot / 3), bottom))  # the column beneath it
            if on_right:
                width = max(2, round(style.thickness))
                canvas.fill((round(x - width / 2), y, round(x - width / 2) + width, bottom), shade)
            _paint_marker(canvas, style, (x, y), shade)
    _rule(canvas, style, left, right, bottom)
    lift = 3 + (0 if chart.mark == "bar" else round(style.radius))
    for i, (x, y) in enumerate(zip(centres, heights, strict=True)):
        if not in_legend:
            canvas.print(face, names[i], _centre(names[i], x), bottom + 3 + em, style.ink)
        if chart.printed:
            below = chart.layout == "line" and _is_dip(heights, i) and bottom - y > 2 * em
            baseline = y + lift - texts[i].top if below else y - lift - texts[i].bottom
            _print_over(canvas, face, texts[i], _centre(texts[i], x), baseline, style.ink)
    return True


def _paint_lying(canvas: Canvas, chart: Chart, style: Style, area: PixelBox) -> bool:
    """Bars that grow to the right, their names on the left."""
    assert chart.axis
    face, em, axis = style.face, style.em, chart.axis
    names, texts = ([set_line(face, text) for text in part] for part in (chart.names, chart.texts))
    ticks = [set_line(face, str(i * axis.step)) for i in range(axis.steps + 1)] if chart.has_ticks else []
    left, top, right, bottom = area
    left += max(name.width for name in names) + round(0.5 * em)
    right -= max(text.width for text in texts) + round(0.5 * em) if chart.printed else ticks[-1].width // 2 + 1
    bottom -= round(1.4 * em) if ticks else 2
    slot, widest = (bottom - top) / len(names), max((tick.width for tick in ticks), default=0)
    if slot < 1.3 * em or right - left < max(4 * em, (widest + 0.5 * em) * len(ticks)):
        return False

    def place_of(value: float) -> int:
        return left + round((right - left) * value / axis.top)

    _paint_scale(canvas, style, (left, top, right, bottom), [place_of(i * axis.step) for i in range(axis.steps + 1)], 1)
    for i, tick in enumerate(ticks):
        canvas.print(face, tick, _centre(tick, place_of(i * axis.step)), bottom + 4 + round(0.8 * em), style.ink)
    for i, value in enumerate(chart.values):
        y, half = top + slot * (i + 0.5), slot * style.fullness / 2
        box = (left, round(y - half), place_of(value), round(y + half))
        _paint_bar(canvas, style, box, chart.shades[i])
        canvas.mark("bar", box)
        canvas.print(face, names[i], left - names[i].width - round(0.35 * em), _middle(face, y), style.ink)
        if chart.printed:
            _print_over(canvas, face, texts[i], place_of(value) + 4, _middle(face, y), style.ink)
    canvas.fill((left - 1, top, left, bottom + 1), mix(style.paper, style.ink, 0.85))
    return True


def _paint_scale(canvas: Canvas, style: Style, plot: PixelBox, places: Sequence[int], along: Literal[0, 1] = 0) -> None:
    """Grid and frame; `places` are the ticks' y (`along` 0) or x (1)."""
    left, top, right, bottom = plot
    faint = mix(style.paper, style.ink, 0.22)
    for place in places if style.grid else ():
        canvas.fill((place, top, place + 1, bottom) if along else (left, place, right, place + 1), faint)
    if style.boxed:
        canvas.frame((left, top, right, bottom + 1), mix(style.paper, style.ink, 0.6))


def _rule(canvas: Canvas, style: Style, left: int, right: int, y: int) -> None:
    canvas.fill((left, y, right, y + 1), mix(style.paper, style.ink, 0.85))


def _paint_bar(canvas: Canvas, style: Style, box: PixelBox, shade: Colour) -> None:
    canvas.fill(box, shade)
    if style.outlined:
        canvas.frame(box, style.ink)


def _paint_marker(canvas: Canvas, style: Style, place: Point, shade: Colour) -> None:
    (x, y), r = place, style.radius
    if style.marker == 0:
        canvas.disc(place, r, shade)
    elif style.marker == 1:
        canvas.fill((round(x - r), round(y - r), round(x + r), round(y + r)), shade)
    else:
        reach = 1.25 * r
        canvas.polygon([(x - reach, y), (x, y - reach), (x + reach, y), (x, y + reach)], shade)


def _is_dip(heights: Sequence[int], i: int) -> bool:
    """Whether the line rises to both sides of point `i` (y grows downwards)."""
    return all(heights[j] < heights[i] for j in (i - 1, i + 1) if 0 <= j < len(heights))


def _legend_rows(names: Sequence[Line], em: int, width: int) -> list[list[tuple[int, int]]] | None:
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


def _print_legend_rows(
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
            _print_entry(canvas, style, names[i], chart.shades[i], area[0] + x, y)


def _print_entry(canvas: Canvas, style: Style, name: Line, shade: Colour, x: int, y: int) -> None:
    """A square of `shade` and a name, centred on `y`."""
    side = round(0.8 * style.em)
    _paint_bar(canvas, style, (x, y - side // 2, x + side, y - side // 2 + side), shade)
    canvas.print(style.face, name, x + round(1.2 * style.em), _middle(style.face, y), style.ink)


def slice_ends(chart: Chart, start: float) -> list[float]:
    """Where the slices begin, and where the last one ends, in degrees clockwise from three o'clock."""
    ends = [start]
    for value in chart.values:
        ends.append(ends[-1] + 360 * value / chart.total)
    ends[-1] = start + 360
    return ends


def _paint_pie(canvas: Canvas, chart: Chart, style: Style, area: PixelBox) -> bool:
    """A pie or ring with a legend, in which the values stand too."""
    em, face = style.em, style.face
    names, texts = ([set_line(face, text) for text in part] for part in (chart.names, chart.texts))
    widest = round(1.2 * em) + max(name.width for name in names)
    column = widest + (round(0.7 * em) + max(text.width for text in texts) if chart.printed else 0)
    step = round(1.5 * em)
    left, top, right, bottom = area
    if style.legend == "below":
        pie: PixelBox = (left, top, right, bottom - step * len(names) - em // 3)
        place = (left + right - column) // 2, bottom - step * len(names)
    else:
        middle = (top + bottom - step * len(names)) // 2
        at_left = style.legend == "left"
        pie = (left + column + em, top, right, bottom) if at_left else (left, top, right - column - em, bottom)
        place = left if at_left else right - column, middle
    radius = min(pie[2] - pie[0], pie[3] - pie[1]) / 2
    if radius < max(28, 1.8 * em) or column > right - left or place[1] < top:
        return False
    centre = ((pie[0] + pie[2]) / 2, (pie[1] + pie[3]) / 2)
    hole = RING_HOLE * radius if chart.layout == "ring" else 0.0
    canvas.pie(centre, radius, slice_ends(chart, style.start), chart.shades, hole)
    for i, name in enumerate(names):
        y = place[1] + round(1.5 * em * (i + 0.5))
        _print_entry(canvas, style, name, chart.shades[i], place[0], y)
        if chart.printed:
            canvas.print(face, texts[i], place[0] + column - texts[i].width, _middle(face, y), style.ink)
    return True


def _paint_labelled_pie(canvas: Canvas, chart: Chart, style: Style, area: PixelBox) -> bool:
    """A pie with each name, and its value beneath, beside its slice."""
    em, face = style.em, style.face
    blocks = []
    for name, text in zip(chart.names, chart.texts, strict=True):
        blocks.append([set_line(face, part) for part in ((name, text) if chart.printed else (name,))])
    left, top, right, bottom = area
    centre = ((left + right) / 2, (top + bottom) / 2)
    ends = slice_ends(chart, style.start)
    largest = min(right - left, bottom - top) / 2
    for share in (0.8, 0.7, 0.6, 0.52, 0.45, 0.4):
        radius = largest * share
        if radius < max(26, 1.7 * em):
            return False
        places = [
            _beside_slice(block, em, centre, radius + 3, (ends[i] + ends[i + 1]) / 2) for i, block in enumerate(blocks)
        ]
        inside = all(x >= left and y >= top and x2 <= right and y2 <= bottom for x, y, x2, y2 in places)
        if inside and not any(_meet(a, b) for a, b in combinations(places, 2)):
            break
    else:
        return False
    canvas.pie(centre, radius, ends, chart.shades)
    for block, (x, y, x2, _) in zip(blocks, places, strict=True):
        for k, line in enumerate(block):
            canvas.print(face, line, _centre(line, (x + x2) / 2), y + round(em * (0.85 + 1.1 * k)), style.ink)
    return True


def _beside_slice(block: Sequence[Line], em: int, centre: Point, radius: float, degrees: float) -> PixelBox:
    """Where a label of the slice that points to `degrees` stands: just outside `radius`."""
    width, height = max(line.width for line in block) + 2, round(em * (1.1 * len(block) + 0.1))
    x, y = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    distance = radius
    while True:
        left = centre[0] + distance * x - width / 2
        top = centre[1] + distance * y - height / 2
        near = (
            min(max(v, low), low + size) - v for v, low, size in ((centre[0], left, width), (centre[1], top, height))
        )
        if math.hypot(*near) >= radius:
            return math.floor(left), math.floor(top), math.floor(left) + width, math.floor(top) + height
        distance += 2


def _meet(first: PixelBox, second: PixelBox) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
