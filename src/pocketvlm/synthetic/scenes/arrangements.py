"""Where several figures stand: scattered, in a row, around the middle …, without touching each other or the edges.

Takes the figures' (width, height) in pixels, gives the (left, top) of each; None where they do not fit. Nothing is
tried twice here: who asks draws other figures, or fewer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pocketvlm.errors import ConfigError
from pocketvlm.synthetic.drawing.canvas import PixelBox
from pocketvlm.synthetic.drawing.figures import Figure, Look

TRAIN_LAYOUTS = ("scattered", "grid", "row", "column", "around", "diagonal")
HELDOUT_LAYOUTS = ("zigzag", "arc")
LAYOUTS = TRAIN_LAYOUTS + HELDOUT_LAYOUTS

MARGIN = 4
GAP = 6
#: So often what does not fit is drawn anew before it is an error.
TRIES = 400

Extent = tuple[int, int]
Place = tuple[int, int]


def arrange(
    rng: np.random.Generator, layout: str, extents: Sequence[Extent], height: int, width: int
) -> list[Place] | None:
    """Places of figures of `extents` (width, height) in a picture of `height` x `width` pixels, by `layout`."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    if layout == "scattered":
        return _scatter(rng, extents, height, width)
    if layout == "grid":
        centres = _grid(rng, extents, height, width)
    elif layout == "around":
        centres = _around(rng, extents, height, width)
    else:
        centres = _string(rng, layout, extents, height, width)
    places = [(round(x - w / 2), round(y - h / 2)) for (x, y), (w, h) in zip(centres, extents, strict=False)]
    return places if len(places) == len(extents) and _is_clear(places, extents, height, width) else None


def no_room(height: int, width: int) -> ConfigError:
    """The error for figures that fit into no picture of that size."""
    return ConfigError(f"no figures fit into a picture of {height} x {width}", hint="Use smaller figures or print.")


def place_figures(
    rng: np.random.Generator, layout: str, looks: Sequence[Look], height: int, width: int
) -> tuple[Figure, ...] | None:
    """`looks` in their places; None where they do not fit."""
    extents = [(look.mask.shape[1], look.mask.shape[0]) for look in looks]
    places = arrange(rng, layout, extents, height, width)
    if places is None:
        return None
    return tuple(Figure(look, left, top) for look, (left, top) in zip(looks, places, strict=True))


def _scatter(rng: np.random.Generator, extents: Sequence[Extent], height: int, width: int) -> list[Place] | None:
    boxes: list[PixelBox] = []
    for w, h in extents:
        if w > width - 2 * MARGIN or h > height - 2 * MARGIN:
            return None
        for _ in range(20):
            left = int(rng.integers(MARGIN, width - MARGIN - w + 1))
            top = int(rng.integers(MARGIN, height - MARGIN - h + 1))
            box = (left, top, left + w, top + h)
            if not any(is_near(box, other) for other in boxes):
                boxes.append(box)
                break
        else:
            return None
    return [(left, top) for left, top, _, _ in boxes]


def _grid(rng: np.random.Generator, extents: Sequence[Extent], height: int, width: int) -> list[tuple[float, float]]:
    """Middles in cells, some of which may stay empty."""
    count = len(extents)
    columns = max(1, math.ceil(math.sqrt(count) - 1e-9) + int(rng.integers(-1, 2)))
    rows = math.ceil(count / columns) + int(rng.random() < 0.3)
    wide, high = (width - 2 * MARGIN) / columns, (height - 2 * MARGIN) / rows
    centres = []
    for cell in rng.permutation(rows * columns)[:count]:
        row, column = divmod(int(cell), columns)
        centres.append((MARGIN + (column + 0.5) * wide, MARGIN + (row + 0.5) * high))
    return centres


def _around(rng: np.random.Generator, extents: Sequence[Extent], height: int, width: int) -> list[tuple[float, float]]:
    """Middles on an ellipse about the picture's middle, equally far apart."""
    w, h = max(w for w, _ in extents), max(h for _, h in extents)
    stretch, start = float(rng.uniform(0.85, 1)), float(rng.uniform(0, 2 * math.pi))
    reach_x, reach_y = (width / 2 - MARGIN - w / 2) * stretch, (height / 2 - MARGIN - h / 2) * stretch
    turns = [start + 2 * math.pi * i / len(extents) for i in range(len(extents))]
    return [(width / 2 + reach_x * math.cos(t), height / 2 + reach_y * math.sin(t)) for t in turns]


def _string(
    rng: np.random.Generator, layout: str, extents: Sequence[Extent], height: int, width: int
) -> list[tuple[float, float]]:
    """Middles on a line from left to right, or from the top down; few or none where the line is too short."""
    down = layout == "column" or (layout != "row" and (height > width or (height == width and rng.random() < 0.5)))
    along = [h if down else w for w, h in extents]
    across = max(w if down else h for w, h in extents)
    room, breadth = (height, width) if down else (width, height)
    free = room - 2 * MARGIN - sum(along) - GAP * (len(along) - 1)
    low, high = MARGIN + across / 2, breadth - MARGIN - across / 2
    if free < 0 or low > high:
        return []
    starts = MARGIN + free * np.cumsum(rng.dirichlet(np.full(len(along), 2.0))) * rng.uniform(0.6, 1)
    middles, pen = [], 0.0
    for start, length in zip(starts.tolist(), along, strict=True):
        middles.append(start + pen + length / 2)
        pen += length + GAP
    shares = _cross_shares(rng, layout, middles, room)
    points = [(middle, low + (high - low) * share) for middle, share in zip(middles, shares, strict=True)]
    return [(y, x) for x, y in points] if down else points


def _cross_shares(rng: np.random.Generator, layout: str, middles: Sequence[float], room: int) -> list[float]:
    """How far across the picture, from 0 to 1, each of `middles` stands."""
    flip = bool(rng.random() < 0.5)
    if layout in ("row", "column"):
        level, wobble = float(rng.uniform(0, 1)), float(rng.uniform(0, 0.1))
        return [min(1.0, max(0.0, level + wobble * float(rng.uniform(-1, 1)))) for _ in middles]
    if layout == "diagonal":
        shares = [middle / room for middle in middles]
    elif layout == "zigzag":
        low, high = float(rng.uniform(0, 0.3)), float(rng.uniform(0.7, 1))
        shares = [high if i % 2 else low for i in range(len(middles))]
    else:
        depth = float(rng.uniform(0.6, 1))
        shares = [depth * (1 - (2 * middle / room - 1) ** 2) for middle in middles]
    return [1 - share for share in shares] if flip else shares


def _is_clear(places: Sequence[Place], extents: Sequence[Extent], height: int, width: int) -> bool:
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(places, extents, strict=True)]
    for i, box in enumerate(boxes):
        left, top, right, bottom = box
        if left < MARGIN - 1 or top < MARGIN - 1 or right > width - MARGIN + 1 or bottom > height - MARGIN + 1:
            return False
        if any(is_near(box, other) for other in boxes[:i]):
            return False
    return True


def is_near(first: PixelBox, second: PixelBox) -> bool:
    """Whether two boxes touch or are closer than `GAP` (but for rounding)."""
    return (
        first[0] < second[2] + GAP - 1
        and second[0] < first[2] + GAP - 1
        and first[1] < second[3] + GAP - 1
        and second[1] < first[3] + GAP - 1
    )
