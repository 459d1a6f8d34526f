"""Pictures as full of print as they can be: every line in a font and size of its own, from edge to edge.

What the tower learns from is characters, and what it costs is patches: such a picture shows four to six times the
characters of a page of `pocketvlm.synthetic` for the same money. Training only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pocketvlm.synthetic.drawing.fonts import Face, FontFile, families, load_face
from pocketvlm.synthetic.drawing.lines import (
    Line,
    blend,
    draw_background,
    draw_colours,
    print_line,
    rotate,
    set_line,
    wear,
)
from pocketvlm.synthetic.sample import CharacterBox, Picture, Question, Sample, Split
from pocketvlm.synthetic.words.values import one_of
from pocketvlm.synthetic.words.vocabulary import TextKind, draw_text

KINDS: tuple[TextKind, ...] = ("word", "word", "word", "word", "number", "number", "code", "letters")
# One view each, not resized: multiples of 56 of at most 224 x 224 pixels.
SIZES = ((224, 224), (224, 224), (168, 280), (280, 168), (112, 448))
READ_EVERYTHING = ("Read everything.", "Read all of the text.", "What is written here?", "Transcribe the picture.")
FACES = 24  # that some steps' pictures share: opening a font costs as much as printing ten lines
MARGIN = 2  # pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class CollageLevel:
    """How hard they are.

    Attributes:
        font_pixels: smallest and largest size of the letters' em, in pixels; drawn evenly on a log scale.
        lines: most lines.
        variety, wear, degrees: as in `Difficulty`.
        shrunk: share of the pictures that are drawn larger and made smaller, as scans and screens are.
    """

    font_pixels: tuple[int, int] = (11, 48)
    lines: int = 99
    variety: float = 0.6
    wear: float = 0.5
    degrees: float = 3.0
    shrunk: float = 0.2


def draw_collage(
    seed: tuple[int, ...], level: CollageLevel, split: Split = "train", fonts: tuple[int, ...] = ()
) -> Sample:
    """A picture of `level`, which shares its fonts with all others of the same seed of `fonts`."""
    of_many, rng = np.random.default_rng([9, *(fonts or seed)]), np.random.default_rng([10, *seed])
    faces = [_draw_face(of_many, level, split) for _ in range(FACES)]
    height, width = one_of(rng, SIZES)
    scale = float(rng.choice((1.25, 1.5, 2.0))) if rng.random() < level.shrunk else 1.0
    if scale > 1:
        faces = [one_of(rng, faces) for _ in range(2)]
    opened = [load_face(file, round(pixels * scale)) for file, pixels in faces]
    coverage = np.zeros((round(height * scale), round(width * scale)), np.uint8)
    texts, boxes = _fill(rng, coverage, opened, level.lines, split)
    if level.degrees and rng.random() < 0.3:
        coverage, boxes = rotate(coverage, boxes, float(rng.uniform(-level.degrees, level.degrees)))
    paper, ink = draw_colours(rng, level.variety)
    ground = draw_background(rng, *coverage.shape, paper, level.variety)
    image = blend(ground, coverage, ink)
    if scale > 1:
        image, boxes = _shrink(rng, image, boxes, height, width)
    image = np.ascontiguousarray(wear(rng, image, level.wear))
    question = Question(one_of(rng, READ_EVERYTHING), "\n".join(texts), "long")
    return Sample((image,), (question,), "collage", (tuple(boxes),))


def _draw_face(rng: np.random.Generator, level: CollageLevel, split: Split) -> tuple[FontFile, int]:
    family = one_of(rng, families(split))
    file = family.regular if rng.random() < 0.4 else one_of(rng, family.files)
    low, high = level.font_pixels
    return file, math.floor(math.exp(rng.uniform(math.log(low), math.log(high + 1))))


def _fill(
    rng: np.random.Generator, coverage: Picture, faces: list[Face], most: int, split: Split
) -> tuple[list[str], list[CharacterBox]]:
    """Print lines from the top to the bottom: their texts, and the boxes of their characters."""
    height, width = coverage.shape
    texts: list[str] = []
    boxes: list[CharacterBox] = []
    top = MARGIN + int(rng.integers(8 if most > height // 20 else height // 2))
    misses = 0
    while len(texts) < most and misses < 3:  # smaller print may fit where this does not
        face = one_of(rng, faces)
        text, line = _one_line(rng, face, width - 2 * MARGIN, split)
        if not text or top + line.height > height - MARGIN:
            misses += 1
            continue
        left = MARGIN + int(rng.integers(width - 2 * MARGIN - line.width + 1))
        boxes += print_line(coverage, face, line, left, top - line.top)
        texts.append(text)
        top += line.height + 2 + int(rng.uniform(0.05, 0.45) * face.font.size)
    return texts, boxes


def _one_line(rng: np.random.Generator, face: Face, width: int, split: Split) -> tuple[str, Line]:
    """Words as far as they go into `width` pixels; none where the first does not."""
    wanted = width if rng.random() < 0.7 else width * float(rng.uniform(0.3, 1.0))
    words: list[str] = []
    while sum(len(word) + 1 for word in words) * 0.45 * face.font.size < wanted:
        words.append(draw_text(rng, one_of(rng, KINDS), split))
    for text in _beginnings(words, wanted / set_line(face, " ".join(words)).width):
        line = set_line(face, text)
        if line.width <= wanted:
            return text, line
    return "", Line((), 0, 0, 0, 0)


def _beginnings(words: list[str], share: float) -> Iterator[str]:
    """The first words, from about `share` of the letters of all down to one."""
    whole = " ".join(words)
    for count in range(len(words), 0, -1):
        text = " ".join(words[:count])
        if len(text) <= 1.1 * share * len(whole):
            yield text


def _shrink(
    rng: np.random.Generator, image: Picture, boxes: list[CharacterBox], height: int, width: int
) -> tuple[Picture, list[CharacterBox]]:
    down, across = height / image.shape[0], width / image.shape[1]
    way = one_of(rng, (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX))
    small = np.asarray(Image.fromarray(image).resize((width, height), way))
    moved = [CharacterBox(b.character, b.left * across, b.top * down, b.right * across, b.bottom * down) for b in boxes]
    return small, moved
