"""Pictures with printed words and numbers, from one short word in a fixed place to several lines on a busy ground."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pocketvlm.errors import ConfigError
from pocketvlm.synthetic.drawing.fonts import Face, FontFile, families, load_face
from pocketvlm.synthetic.drawing.lines import (
    Line,
    blend,
    draw_background,
    draw_colours,
    print_line,
    rotate,
    set_line,
    tilt,
    wear,
)
from pocketvlm.synthetic.sample import CharacterBox, Question, Sample, Split, choose_layout
from pocketvlm.synthetic.words.values import ORDINALS, Wordings, ask, one_of
from pocketvlm.synthetic.words.vocabulary import TextKind, draw_text

READ_QUESTIONS = Wordings(
    (
        "What is written?",
        "Read the text.",
        "What does it say?",
        "What does the text say?",
        "What is the text?",
        "Read this.",
    ),
    heldout=("what does this say", "Give me the text.", "text?"),
)
WORD_QUESTIONS = Wordings(
    ("What is the word?", "Which word is written?", "Read the word.", "What word is this?", "word?"),
    heldout=("What's the word", "Tell me the word."),
)
NUMBER_QUESTIONS = Wordings(
    ("What is the number?", "Which number is written?", "Read the number.", "What number is this?", "number?"),
    heldout=("What's the number", "Tell me the number."),
)
LINE_QUESTIONS = Wordings(
    (
        "Read line {number}.",
        "What is on line {number}?",
        "What is on the {ordinal} line?",
        "What does line {number} say?",
        "line {number}?",
    ),
    heldout=("What's on line {number}", "What does the {ordinal} line say?"),
)
END_QUESTIONS = Wordings(
    ("What is the {end} word?", "Which word is {end}?", "What is the {end} word of the text?", "{end} word?"),
    heldout=("Read the {end} word.", "What's the {end} word of all"),
)
# How lines follow each other. A single line has nothing to arrange: there words and fonts alone are held out.
TRAIN_LAYOUTS, HELDOUT_LAYOUTS = ("left", "centred"), ("right", "stepped")


@dataclass(frozen=True, slots=True)
class Difficulty:
    """How hard the pictures are.

    Attributes:
        sizes: (height, width) choices, in pixels.
        kinds: the kinds of text, each as likely as often as it is listed.
        families: how many font families, counted from the plainest; None is all.
        styles: whether bold, italic and condensed styles are used beside the regular one.
        font_pixels: smallest and largest size of the letters' em, in pixels; drawn evenly on a log scale.
        lines: smallest and largest number of lines.
        free_place: anywhere in the picture, else at the left edge in mid-height.
        variety: 0 is black on white, 1 is always coloured, on a gradient or texture in most pictures.
        wear: strength of blur and noise, 0 to 1.
        degrees: largest rotation to either side.
        perspective: how far a corner of the picture moves at most, as a share of the shorter side.
    """

    sizes: tuple[tuple[int, int], ...]
    kinds: tuple[TextKind, ...]
    families: int | None = None
    styles: bool = True
    font_pixels: tuple[int, int] = (24, 25)
    lines: tuple[int, int] = (1, 1)
    free_place: bool = True
    variety: float = 0.0
    wear: float = 0.0
    degrees: float = 0.0
    perspective: float = 0.0

    def __post_init__(self) -> None:
        for name, (low, high) in (("font_pixels", self.font_pixels), ("lines", self.lines)):
            if not 1 <= low <= high:
                raise ConfigError(f"{name}=({low}, {high}) is not a range of positive integers")
        if not self.sizes or not self.kinds or (self.families is not None and self.families < 1):
            raise ConfigError("a Difficulty needs at least one size, one kind of text and one font family")


# Sides of the 224-pixel levels are multiples of 56 (four patches of 14) and areas at most 224 squared, so that such a
# picture is one view and is not resized.
_ONE_VIEW = (
    *((224, 224),) * 4,
    *((168, 280), (112, 392), (112, 448)) * 2,
    *((280, 168), (392, 112), (448, 112)),
)
_SLICED = ((448, 448), (336, 448), (448, 336), (280, 448), (448, 280), (224, 448), (448, 224), (336, 336), (280, 280))
_ALL_KINDS: tuple[TextKind, ...] = ("word", "word", "word", "number", "number", "number", "phrase", "code", "letters")

LEVELS: tuple[Difficulty, ...] = (
    Difficulty(sizes=((56, 112),), kinds=("short",), families=2, styles=False, free_place=False),
    Difficulty(sizes=((56, 112),), kinds=("short", "word", "letters", "number"), styles=False, font_pixels=(18, 30)),
    Difficulty(
        sizes=((56, 224), (112, 112), (112, 224)),
        kinds=("word", "word", "number", "number", "phrase", "code", "letters"),
        font_pixels=(16, 44),
        variety=0.4,
        wear=0.2,
    ),
    Difficulty(
        sizes=_ONE_VIEW, kinds=_ALL_KINDS, font_pixels=(14, 60), lines=(1, 4), variety=0.7, wear=0.6, degrees=4.0
    ),
    Difficulty(sizes=_SLICED, kinds=_ALL_KINDS, font_pixels=(18, 96), lines=(1, 6), variety=0.7, wear=0.6, degrees=4.0),
    # As level 3, photographed at an angle.
    Difficulty(
        sizes=_ONE_VIEW,
        kinds=_ALL_KINDS,
        font_pixels=(16, 60),
        lines=(1, 3),
        variety=0.7,
        wear=0.6,
        degrees=4.0,
        perspective=0.15,
    ),
)


def draw_words(rng: np.random.Generator, level: Difficulty, split: Split, task: str = "words") -> Sample:
    """A picture with printed text of `level`, fonts and text both from `split`."""
    height, width = one_of(rng, level.sizes)
    margin = 3
    file = _draw_font(rng, level, split)
    kinds, texts, face, lines, leading = _draw_lines(rng, level, split, file, height - 2 * margin, width - 2 * margin)

    layout = choose_layout(rng, split, TRAIN_LAYOUTS, HELDOUT_LAYOUTS)
    coverage = np.zeros((height, width), np.uint8)
    block_height = leading * (len(lines) - 1) + lines[-1].bottom - lines[0].top
    block_width = max(line.width for line in lines)
    if level.free_place:
        top = int(rng.integers(margin, height - margin - block_height + 1))
        left = int(rng.integers(margin, width - margin - block_width + 1))
    else:
        # The baseline and the left edge stay where they are, whatever the word.
        top, left = round(height / 2 + 0.35 * face.font.size) + lines[0].top, margin
    boxes: list[CharacterBox] = []
    baseline = top - lines[0].top
    for i, line in enumerate(lines):
        indent = _indent_share(layout, i, len(lines)) * (block_width - line.width)
        boxes += print_line(coverage, face, line, left + round(indent), baseline + i * leading)
    if level.degrees and rng.random() < 0.5:
        coverage, boxes = rotate(coverage, boxes, float(rng.uniform(-level.degrees, level.degrees)))
    if level.perspective:
        reach = level.perspective * min(height, width)
        for _ in range(3):  # print near the edge may stay inside under other shifts
            seen, moved = tilt(coverage, boxes, rng.uniform(-reach, reach, (4, 2)))
            if moved is not boxes:
                coverage, boxes = seen, moved
                break

    paper, ink = draw_colours(rng, level.variety)
    image = wear(rng, blend(draw_background(rng, height, width, paper, level.variety), coverage, ink), level.wear)
    questions = ask_about(rng, texts, kinds, split)
    return Sample((np.ascontiguousarray(image),), questions, task, (tuple(boxes),), layout=layout)


def _indent_share(layout: str, line: int, lines: int) -> float:
    """How much of the room that a line leaves beside the longest one stands in front of it."""
    if layout == "stepped":
        return line / max(1, lines - 1)
    return {"left": 0.0, "centred": 0.5, "right": 1.0}[layout]


def _draw_font(rng: np.random.Generator, level: Difficulty, split: Split) -> FontFile:
    family = one_of(rng, families(split)[: level.families])
    # Half of the styled pictures keep the regular style, or families with many styles would be read in italics mostly.
    if not level.styles or rng.random() < 0.5:
        return family.regular
    return one_of(rng, family.files)


def _draw_lines(
    rng: np.random.Generator, level: Difficulty, split: Split, file: FontFile, height: int, width: int
) -> tuple[list[TextKind], list[str], Face, list[Line], int]:
    """Text that fits into height x width pixels: kinds, texts, face, set lines and the leading in pixels."""
    low, high = level.font_pixels
    for attempt in range(60):
        # Text that is too big is drawn in smaller print, else drawn anew; long attempts settle for less.
        # The smaller of two draws: short texts, which may be in large print, are the more frequent ones.
        count = int(rng.integers(level.lines[0], level.lines[1] + 1, 2).min()) if attempt < 30 else level.lines[0]
        pixels = math.floor(math.exp(rng.uniform(math.log(low), math.log(high + 1)))) if attempt < 30 else low
        # The leading is at least 1.15 em, so only so many lines fit, and letters are rarely narrower than 0.3 em.
        count = max(level.lines[0], min(count, int(height / (1.15 * low))))
        longest = max(2, min(30, int(width / (0.3 * low))))
        kinds: list[TextKind] = [one_of(rng, level.kinds) for _ in range(count)]
        if longest < 9:
            kinds = ["word" if kind == "phrase" else kind for kind in kinds]
        texts = [draw_text(rng, kind, split, max(longest, 3)) for kind in kinds]
        leading_em = float(rng.uniform(1.15, 1.7))
        for _ in range(3):
            face = load_face(file, pixels)
            lines = [set_line(face, text) for text in texts]
            leading = max(round(leading_em * pixels), max(line.height for line in lines) + 1)
            needed = leading * (count - 1) + lines[-1].bottom - lines[0].top
            ratio = min(width / max(line.width for line in lines), height / needed)
            if ratio >= 1:
                return kinds, texts, face, lines, leading
            if pixels == low:
                break
            pixels = max(low, min(pixels - 1, int(pixels * ratio)))
    raise ConfigError(
        f"no text of {low} pixels fits into a picture of {height} x {width}",
        hint="Use a bigger picture or smaller print.",
    )


def ask_about(rng: np.random.Generator, texts: list[str], kinds: list[TextKind], split: Split) -> tuple[Question, ...]:
    """Questions on lines of text, the one that asks for everything first."""
    questions = [ask(rng, split, READ_QUESTIONS, "\n".join(texts))]
    words = [word for text in texts for word in text.split()]
    if len(texts) == 1 and kinds[0] in ("short", "word", "letters"):
        questions.append(ask(rng, split, WORD_QUESTIONS, texts[0]))
    elif len(texts) == 1 and kinds[0] == "number":
        questions.append(ask(rng, split, NUMBER_QUESTIONS, texts[0]))
    if len(texts) > 1:
        for i in rng.permutation(len(texts))[:2].tolist():
            is_last = i == len(texts) - 1 and (i >= len(ORDINALS) or rng.random() < 0.5)
            ordinal = "last" if is_last else ORDINALS[i] if i < len(ORDINALS) else f"{i + 1}th"
            questions.append(ask(rng, split, LINE_QUESTIONS, texts[i], number=str(i + 1), ordinal=ordinal))
    if len(words) > 1 and rng.random() < 0.5:
        place = int(rng.integers(2))
        questions.append(ask(rng, split, END_QUESTIONS, words[(0, -1)[place]], end=("first", "last")[place]))
    return tuple(questions)
