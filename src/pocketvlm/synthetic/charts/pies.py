"""Pies and rings: slices, and their names in a legend or beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from pocketvlm.synthetic.charts.parts import Chart, Style, centred_left, middle_baseline, print_entry
from pocketvlm.synthetic.drawing.canvas import Canvas, PixelBox, Point
from pocketvlm.synthetic.drawing.lines import Line, set_line

RING_HOLE = 0.55


def slice_ends(chart: Chart, start: float) -> list[float]:
    """Where the slices begin, and where the last one ends, in degrees clockwise from three o'clock."""
    ends = [start]
    for value in chart.values:
        ends.append(ends[-1] + 360 * value / chart.total)
    ends[-1] = start + 360
    return ends


def paint_pie(canvas: Canvas, chart: Chart, style: Style, area: PixelBox) -> bool:
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
        print_entry(canvas, style, name, chart.shades[i], place[0], y)
        if chart.printed:
            canvas.print(face, texts[i], place[0] + column - texts[i].width, middle_baseline(face, y), style.ink)
    return True


def paint_labelled_pie(canvas: Canvas, chart: Chart, style: Style, area: PixelBox) -> bool:
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
            canvas.print(face, line, centred_left(line, (x + x2) / 2), y + round(em * (0.85 + 1.1 * k)), style.ink)
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
