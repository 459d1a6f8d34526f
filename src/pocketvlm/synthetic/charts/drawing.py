"""How a chart is laid out and painted: what it says and its style in, a canvas out; None where it does not fit.

Lengths are in pixels; `em` is the size of the print.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pocketvlm.synthetic.charts.parts import (
    Chart,
    Style,
    centred_left,
    legend_rows,
    middle_baseline,
    paint_bar,
    print_legend_rows,
    print_over,
)
from pocketvlm.synthetic.charts.pies import paint_labelled_pie, paint_pie
from pocketvlm.synthetic.drawing.canvas import Canvas, PixelBox, Point, mix
from pocketvlm.synthetic.drawing.fonts import load_face
from pocketvlm.synthetic.drawing.lines import Colour, set_line
from pocketvlm.synthetic.sample import Picture


def paint_chart(chart: Chart, style: Style, background: Picture) -> Canvas | None:
    """`chart` in `style` on a copy of `background`; None where its print does not fit into the style's area."""
    canvas = Canvas(background)
    area = _print_title(canvas, chart.title, style)
    if area is None:
        return None
    if chart.mark == "slice":
        done = (paint_labelled_pie if chart.layout == "pie with labels" else paint_pie)(canvas, chart, style, area)
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


def _paint_upright(canvas: Canvas, chart: Chart, style: Style, area: PixelBox) -> bool:
    """Bars, stems or points above a horizontal axis."""
    assert chart.axis
    face, em, axis = style.face, style.em, chart.axis
    names, texts = ([set_line(face, text) for text in part] for part in (chart.names, chart.texts))
    ticks = [set_line(face, str(i * axis.step)) for i in range(axis.steps + 1)] if chart.has_ticks else []
    left, top, right, bottom = area
    in_legend, on_right = chart.layout == "bars with legend", chart.layout == "stems"
    if in_legend:
        rows = legend_rows(names, em, right - left)
        if rows is None:
            return False
        step = round(1.5 * em)
        legend_top = top if style.legend_first else bottom - len(rows) * step
        print_legend_rows(canvas, chart, style, names, rows, (left, legend_top, right, bottom))
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
        canvas.print(face, tick, start, middle_baseline(face, height_of(i * axis.step)), style.ink)
    centres = [left + slot * (i + 0.5) for i in range(len(names))]
    heights = [height_of(value) for value in chart.values]
    if chart.layout == "line":
        canvas.polyline(list(zip(centres, heights, strict=True)), chart.shades[0], style.thickness)
    for i, (x, y) in enumerate(zip(centres, heights, strict=True)):
        shade = chart.shades[i]
        if chart.mark == "bar":
            half = slot * style.fullness / 2
            box = (round(x - half), y, round(x + half), bottom)
            paint_bar(canvas, style, box, shade)
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
            canvas.print(face, names[i], centred_left(names[i], x), bottom + 3 + em, style.ink)
        if chart.printed:
            below = chart.layout == "line" and _is_dip(heights, i) and bottom - y > 2 * em
            baseline = y + lift - texts[i].top if below else y - lift - texts[i].bottom
            print_over(canvas, face, texts[i], centred_left(texts[i], x), baseline, style.ink)
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
        canvas.print(face, tick, centred_left(tick, place_of(i * axis.step)), bottom + 4 + round(0.8 * em), style.ink)
    for i, value in enumerate(chart.values):
        y, half = top + slot * (i + 0.5), slot * style.fullness / 2
        box = (left, round(y - half), place_of(value), round(y + half))
        paint_bar(canvas, style, box, chart.shades[i])
        canvas.mark("bar", box)
        canvas.print(face, names[i], left - names[i].width - round(0.35 * em), middle_baseline(face, y), style.ink)
        if chart.printed:
            print_over(canvas, face, texts[i], place_of(value) + 4, middle_baseline(face, y), style.ink)
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
