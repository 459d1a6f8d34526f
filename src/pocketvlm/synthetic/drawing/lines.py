"""From strings to pixels: lines of glyphs, backgrounds, noise. Shared by everything that prints text.

Shapes: H, W of the picture. Coverage is uint8 [H, W], 255 where the ink is full. Boxes are in pixels of the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pocketvlm.synthetic.drawing.fonts import Face
from pocketvlm.synthetic.sample import CharacterBox, Picture

Colour = tuple[int, int, int]
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text set from x = 0 on the baseline y = 0: (character, pen position) pairs and the ink's box."""

    pens: tuple[tuple[str, int], ...]
    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


def set_line(face: Face, text: str, spacing: float = 0.0) -> Line:
    """Set `text` in `face`, with `spacing` extra pixels between characters."""
    pen, previous = 0.0, ""
    pens: list[tuple[str, int]] = []
    left, top, right, bottom = 10**6, 10**6, -(10**6), -(10**6)
    for character in text:
        if previous:
            pen += face.kerning(previous + character) + spacing
        glyph, x = face.glyph(character), round(pen)
        if character != " ":
            height, width = glyph.mask.shape
            pens.append((character, x))
            left, right = min(left, x + glyph.left), max(right, x + glyph.left + width)
            top, bottom = min(top, glyph.top), max(bottom, glyph.top + height)
        pen += glyph.advance
        previous = character
    return Line(tuple(pens), left, top, right, bottom) if pens else Line((), 0, 0, 0, 0)


def print_line(coverage: NDArray[np.uint8], face: Face, line: Line, x: int, baseline: int) -> list[CharacterBox]:
    """Print `line` with its ink starting at `x`; what lies outside `coverage` is left out. Returns the boxes of the
    characters that are seen."""
    boxes, (high, wide) = [], coverage.shape
    for character, pen in line.pens:
        glyph = face.glyph(character)
        height, width = glyph.mask.shape
        left, top = x - line.left + pen + glyph.left, baseline + glyph.top
        first, last = (max(0, left), max(0, top)), (min(wide, left + width), min(high, top + height))
        if first[0] >= last[0] or first[1] >= last[1]:
            continue
        # Maximum, not sum: neighbours that touch must not wrap around.
        region = coverage[first[1] : last[1], first[0] : last[0]]
        mask = glyph.mask[first[1] - top : last[1] - top, first[0] - left : last[0] - left]
        np.maximum(region, mask, out=region)
        boxes.append(CharacterBox(character, *first, *last))
    return boxes


def rotate(
    coverage: NDArray[np.uint8], boxes: list[CharacterBox], degrees: float, margin: int = 2
) -> tuple[NDArray[np.uint8], list[CharacterBox]]:
    """Turn the ink counter-clockwise about the picture's middle.

    Where a character would get closer than `margin` pixels to the edge, nothing is turned. The boxes given back are
    the upright ones around the turned boxes.
    """
    height, width = coverage.shape
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    cx, cy = width / 2, height / 2
    turned = []
    for character, left, top, right, bottom in boxes:
        mx, my, dx, dy = (left + right) / 2 - cx, (top + bottom) / 2 - cy, (right - left) / 2, (bottom - top) / 2
        x, y = cx + mx * cos + my * sin, cy - mx * sin + my * cos
        wide, high = dx * cos + dy * abs(sin), dy * cos + dx * abs(sin)
        box = CharacterBox(character, x - wide, y - high, x + wide, y + high)
        if box.left < margin or box.top < margin or box.right > width - margin or box.bottom > height - margin:
            return coverage, boxes
        turned.append(box)
    image = Image.fromarray(coverage).rotate(degrees, Image.Resampling.BILINEAR)
    return np.asarray(image), turned


def tilt(
    coverage: NDArray[np.uint8], boxes: list[CharacterBox], shifts: NDArray[np.float64], margin: int = 2
) -> tuple[NDArray[np.uint8], list[CharacterBox]]:
    """See the ink at an angle: a perspective in which each corner of the picture moves by `shifts`.

    Where a character would get closer than `margin` pixels to the edge, nothing is moved. The boxes given back are the
    upright ones around the moved boxes.

    Args:
        shifts: [4, 2], (x, y) in pixels, of the top left, top right, bottom right and bottom left corner.
    """
    height, width = coverage.shape
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
    there = _homography(corners, corners + shifts)
    moved = []
    for character, left, top, right, bottom in boxes:
        x, y, w = there @ np.array([(left, right, right, left), (top, top, bottom, bottom), (1, 1, 1, 1)], np.float64)
        xs, ys = x / w, y / w
        box = CharacterBox(character, float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max()))
        if box.left < margin or box.top < margin or box.right > width - margin or box.bottom > height - margin:
            return coverage, boxes
        moved.append(box)
    back = _homography(corners + shifts, corners)
    terms = tuple((back / back[2, 2]).flatten()[:8].tolist())
    size = (width, height)
    image = Image.fromarray(coverage).transform(size, Image.Transform.PERSPECTIVE, terms, Image.Resampling.BILINEAR)
    return np.asarray(image), moved


def _homography(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """[3, 3] that takes the four points `start` to `end`, [4, 2] each."""
    rows, values = [], []
    for (x, y), (u, v) in zip(start, end, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)


def blend(background: Picture, coverage: NDArray[np.uint8], ink: Colour) -> Picture:
    """Lay `ink` over `background` ([H, W, 3]) where `coverage` says."""
    rows, columns = np.flatnonzero(coverage.any(axis=1)), np.flatnonzero(coverage.any(axis=0))
    out = background.copy()
    if len(rows):
        window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        below = background[window].astype(np.float32)
        share = coverage[window][..., None].astype(np.float32) * np.float32(1 / 255)
        out[window] = (below + (np.asarray(ink, np.float32) - below) * share + 0.5).astype(np.uint8)
    return out


def luminance(colour: Colour) -> float:
    """Perceived brightness, 0 to 255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def draw_colours(rng: np.random.Generator, variety: float) -> tuple[Colour, Colour]:
    """(paper, ink) that differ by at least 100 in brightness; black on white with probability 1 - variety."""
    if rng.random() >= variety:
        return WHITE, BLACK
    form = rng.random()
    while True:
        paper, ink = (tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(2))
        if form < 0.3:  # near white, as paper is
            paper = tuple(255 - v // 10 for v in paper)
        elif form < 0.4:  # light on dark, grey
            paper, ink = (paper[0] // 4,) * 3, (255 - ink[0] // 5,) * 3
        pair = ((paper[0], paper[1], paper[2]), (ink[0], ink[1], ink[2]))
        if abs(luminance(pair[0]) - luminance(pair[1])) >= 100:
            return pair


def draw_background(rng: np.random.Generator, height: int, width: int, paper: Colour, variety: float) -> Picture:
    """Plain paper, or with probability variety * 0.6 a gradient, blotches or stripes around its colour, [H, W, 3]."""
    base = np.asarray(paper, np.float32)
    if rng.random() >= variety * 0.6:
        return np.full((height, width, 3), paper, np.uint8)
    form, strength = int(rng.integers(3)), float(rng.uniform(8, 35))
    if form == 0:
        angle = rng.uniform(0, 2 * math.pi)
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, width, dtype=np.float32)[None]
        field = x * math.cos(angle) + y * math.sin(angle)
    elif form == 1:
        cells = rng.standard_normal((int(rng.integers(3, 12)), int(rng.integers(3, 12)))).astype(np.float32)
        field = np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)) * 0.7
    else:
        period, slant = rng.uniform(4, 40), rng.uniform(-2, 2)
        y = np.arange(height, dtype=np.float32)[:, None]
        x = np.arange(width, dtype=np.float32)[None]
        field = np.sin((y + slant * x) * (2 * math.pi / period)) * 0.5
    tint = rng.uniform(0.5, 1, 3).astype(np.float32) * strength
    return np.clip(base + field.astype(np.float32)[..., None] * tint, 0, 255).astype(np.uint8)


def wear(rng: np.random.Generator, image: Picture, amount: float) -> Picture:
    """Blur (at most one pixel) and grey noise, each in half of the pictures, as strong as `amount` (0 to 1) allows."""
    if amount and rng.random() < 0.5:
        # Three taps (b, 1, b) as wide as a Gaussian of this deviation, in a third of the time.
        variance = min(float(rng.uniform(0, amount)) ** 2, 2 / 3)
        image = np.asarray(Image.fromarray(image).filter(ImageFilter.BoxBlur(variance / (2 - 2 * variance))))
    if amount and rng.random() < 0.5:
        sigma = float(rng.uniform(0, 16 * amount))
        noise = (rng.standard_normal(image.shape[:2], np.float32) * sigma).astype(np.int16)
        image = np.clip(image.astype(np.int16) + noise[..., None], 0, 255).astype(np.uint8)
    return image
