"""A picture to draw on: filled boxes, smooth lines and discs, and print of any colour whose boxes are kept.

Takes a background (uint8 [H, W, 3]), gives the picture and its characters. Boxes are (left, top, right, bottom) in
pixels of the picture; right and bottom are exclusive.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pocketvlm.synthetic.drawing.fonts import Face
from pocketvlm.synthetic.drawing.lines import BLACK, WHITE, Colour, Line, blend, luminance, print_line
from pocketvlm.synthetic.sample import CharacterBox, ObjectBox, Picture

PixelBox = tuple[int, int, int, int]
Point = tuple[float, float]

#: Smooth shapes are drawn this many times larger and averaged down.
OVERSAMPLING = 3


class Canvas:
    """A copy of `background` to draw on."""

    def __init__(self, background: Picture) -> None:
        self.background = background
        self.image = background.copy()
        self._objects: list[ObjectBox] = []
        self._lines: list[tuple[int, int, list[CharacterBox]]] = []

    @property
    def height(self) -> int:
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        return int(self.image.shape[1])

    @property
    def characters(self) -> tuple[CharacterBox, ...]:
        """All that was printed, by baseline, then from the left."""
        return tuple(box for _, _, boxes in sorted(self._lines, key=lambda line: line[:2]) for box in boxes)

    @property
    def objects(self) -> tuple[ObjectBox, ...]:
        """All that was marked, in the order of painting."""
        return tuple(self._objects)

    def mark(self, kind: str, box: PixelBox, colour: str = "") -> None:
        """Take note that an object stands in `box`; paints nothing."""
        self._objects.append(ObjectBox(kind, colour, *box))

    def fill(self, box: PixelBox, colour: Colour) -> None:
        """Paint `box`; what lies outside the picture is left out."""
        left, top, right, bottom = box
        self.image[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = colour

    def frame(self, box: PixelBox, colour: Colour, thickness: int = 1) -> None:
        """Paint the inner edge of `box`."""
        left, top, right, bottom = box
        self.fill((left, top, right, top + thickness), colour)
        self.fill((left, bottom - thickness, right, bottom), colour)
        self.fill((left, top, left + thickness, bottom), colour)
        self.fill((right - thickness, top, right, bottom), colour)

    def clear(self, box: PixelBox) -> None:
        """Bring the background back inside `box`."""
        left, top, right, bottom = (max(0, v) for v in box)
        self.image[top:bottom, left:right] = self.background[top:bottom, left:right]

    def lay(self, mask: NDArray[np.uint8], left: int, top: int, colour: Colour) -> None:
        """Lay `colour` at (left, top) where `mask` (uint8 [h, w]) says; what lies outside the picture is left out."""
        mask = mask[max(0, -top) :, max(0, -left) :]
        below = self.image[max(0, top) :, max(0, left) :][: mask.shape[0], : mask.shape[1]]
        below[...] = blend(below, mask[: below.shape[0], : below.shape[1]], colour)

    def print(self, face: Face, line: Line, x: int, baseline: int, colour: Colour) -> None:
        """Print `line` with its ink starting at `x`; what lies outside the picture is left out."""
        if not line.pens:
            return
        mask = np.zeros((line.height, line.width), np.uint8)
        top = baseline + line.top
        boxes = print_line(mask, face, line, 0, -line.top)
        self.lay(mask, x, top, colour)
        high, wide = self.image.shape[:2]
        seen = []
        for character, left, above, right, below in boxes:
            whole = (right - left) * (below - above)
            box = CharacterBox(
                character, max(0, x + left), max(0, top + above), min(wide, x + right), min(high, top + below)
            )
            # Of what is cut, as a tall mark at an edge, most must be seen to be read.
            if (
                box.left < box.right
                and box.top < box.bottom
                and 2 * (box.right - box.left) * (box.bottom - box.top) > whole
            ):
                seen.append(box)
        self._lines.append((baseline, x, seen))

    def polyline(self, points: Sequence[Point], colour: Colour, thickness: float) -> None:
        """A smooth line through `points`."""
        reach = thickness / 2 + 1
        mask, left, top = self._blank(points, reach)
        pen = ImageDraw.Draw(mask)
        moved = [_enlarge(point, left, top) for point in points]
        pen.line(moved, fill=255, width=max(1, round(thickness * OVERSAMPLING)), joint="curve")
        self.lay(np.asarray(mask.reduce(OVERSAMPLING)), left, top, colour)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """A smooth filled polygon."""
        mask, left, top = self._blank(points, 1)
        ImageDraw.Draw(mask).polygon([_enlarge(point, left, top) for point in points], fill=255)
        self.lay(np.asarray(mask.reduce(OVERSAMPLING)), left, top, colour)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        """A smooth filled disc."""
        x, y = centre
        mask, left, top = self._blank([(x - radius, y - radius), (x + radius, y + radius)], 1)
        corners = [_enlarge(point, left, top) for point in ((x - radius, y - radius), (x + radius, y + radius))]
        ImageDraw.Draw(mask).ellipse(corners, fill=255)
        self.lay(np.asarray(mask.reduce(OVERSAMPLING)), left, top, colour)

    def pie(
        self, centre: Point, radius: float, ends: Sequence[float], colours: Sequence[Colour], hole: float = 0.0
    ) -> None:
        """Slices of a disc, or of a ring with a `hole` of that radius.

        Slice i reaches from ends[i] to ends[i + 1], in degrees clockwise from three o'clock; the last end is the first
        plus 360.
        """
        x, y = centre
        mask, left, top = self._blank([(x - radius, y - radius), (x + radius, y + radius)], 1)
        slices = Image.new("RGB", mask.size, colours[0])
        pen = ImageDraw.Draw(slices)
        # Slices reach beyond the disc, so that its edge has no dark rim of another slice's colour.
        corners = [
            _enlarge(point, left, top) for point in ((x - radius - 2, y - radius - 2), (x + radius + 2, y + radius + 2))
        ]
        for start, end, colour in zip(ends[:-1], ends[1:], colours, strict=True):
            pen.pieslice(corners, start, end, fill=colour)
        whole = ImageDraw.Draw(mask)
        for size, value in ((radius, 255), (hole, 0)):
            if size:
                whole.ellipse([_enlarge((x + side * size, y + side * size), left, top) for side in (-1, 1)], fill=value)
        small = mask.reduce(OVERSAMPLING)
        window = (slice(top, top + small.height), slice(left, left + small.width))
        below = Image.fromarray(self.image[window])
        below.paste(slices.reduce(OVERSAMPLING), (0, 0), small)
        self.image[window] = np.asarray(below)

    def _blank(self, points: Sequence[Point], reach: float) -> tuple[Image.Image, int, int]:
        """An enlarged empty mask around `points`, cut to the picture, with its place."""
        left = max(0, int(min(x for x, _ in points) - reach))
        top = max(0, int(min(y for _, y in points) - reach))
        right = min(self.width, int(max(x for x, _ in points) + reach) + 1)
        bottom = min(self.height, int(max(y for _, y in points) + reach) + 1)
        return Image.new("L", ((right - left) * OVERSAMPLING, (bottom - top) * OVERSAMPLING)), left, top


def _enlarge(point: Point, left: int, top: int) -> Point:
    return (point[0] - left) * OVERSAMPLING, (point[1] - top) * OVERSAMPLING


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`share` of `second`, the rest of `first`."""
    a, b, c = (round(one + (other - one) * share) for one, other in zip(first, second, strict=True))
    return a, b, c


def readable_on(ground: Colour) -> Colour:
    """Black or white, whichever stands out from `ground`."""
    return BLACK if luminance(ground) > 140 else WHITE


def draw_paper(rng: np.random.Generator, variety: float) -> tuple[Colour, Colour]:
    """(paper, ink) of a printed chart or table: dark on white, with probability `variety` tinted, grey or dark paper.

    They differ by at least 150 in brightness.
    """
    shade = int(rng.integers(0, 60))
    if rng.random() >= variety:
        return WHITE, (shade, shade, shade)
    if rng.random() < 0.15:
        low, light = int(rng.integers(15, 50)), 255 - shade // 2
        return (low, low, low + int(rng.integers(0, 25))), (light, light, light)
    r, g, b = (int(v) for v in 255 - rng.integers(0, 30, 3))
    red, green, blue = (int(v) for v in rng.integers(0, 70, 3))
    return (r, g, b), (red, green, blue)
