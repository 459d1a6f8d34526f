"""Paragraphs to transcribe: a few lines of running words in one or two columns.

Shapes: H, W of the picture. Lines go down the left column first, then down the right one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pocketvlm.errors import ConfigError
from pocketvlm.synthetic.documents.text import END_QUESTIONS
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
from pocketvlm.synthetic.sample import CharacterBox, Picture, Question, Sample, Split, choose_layout
from pocketvlm.synthetic.words.values import Wordings, ask, one_of
from pocketvlm.synthetic.words.vocabulary import draw_text, in_split

#: How the lines of a column are aligned: at the left edge, at both, about the middle, or with the first line moved in;
#: and, held out, at the right edge, or with all lines but the first moved in.
TRAIN_LAYOUTS = ("ragged", "justified", "centred", "indented")
HELDOUT_LAYOUTS = ("flush right", "hanging")

TRANSCRIBE_QUESTIONS = Wordings(
    ("Transcribe the text.", "Write down the text.", "Transcribe all lines.", "Copy the text.", "transcribe this"),
    heldout=("Type out the whole text.", "What's the full text", "Give me all of the text."),
)
LINE_END_QUESTIONS = Wordings(
    (
        "What is the {end} word of line {number}?",
        "Which word is {end} in line {number}?",
        "{end} word of line {number}?",
    ),
    heldout=("Read the {end} word of line {number}.", "line {number}, {end} word?"),
)
RIGHT_QUESTIONS = Wordings(
    (
        "What is the first word of the right column?",
        "Which word is first in the right column?",
        "first word of the right column?",
    ),
    heldout=("Read the first word of the right column.", "right column, first word?"),
)
LINES_QUESTIONS = Wordings(
    ("How many lines are there?", "How many lines of text are there?", "Count the lines.", "how many lines"),
    heldout=("How many lines does the text have?", "number of lines?"),
)
COLUMNS_QUESTIONS = Wordings(
    ("How many columns are there?", "How many columns of text are there?", "Count the columns.", "how many columns"),
    heldout=("How many columns does the text have?", "number of columns?"),
)
CONTAINS_QUESTIONS = Wordings(
    (
        "Is the word {word} in the text?",
        "Does the text contain the word {word}?",
        "Is there the word {word}?",
        "is {word} in the text",
    ),
    heldout=("Does the word {word} occur?", "the word {word}: is it there?"),
)

MARGIN = 5


@dataclass(frozen=True, slots=True)
class ParagraphLevel:
    """How hard the paragraphs are.

    Attributes:
        sizes: (height, width) choices, in pixels.
        lines: fewest and most lines of a column.
        words: fewest and most words of a line; of two columns, a line may have fewer.
        longest: most letters of a word.
        font_pixels: smallest and largest size of the letters' em, in pixels; the largest that fits is near the truth.
        columns: share of pictures with two columns.
        sentences: share of pictures with capitals, commas, full stops and numbers; the others have plain words.
        styles: whether bold and italic styles are used beside the regular one.
        variety: 0 is black on white, 1 is always coloured, on a gradient or texture in most pictures.
        wear: strength of blur and noise, 0 to 1; each in a quarter of the pictures.
        degrees: largest rotation to either side.
    """

    sizes: tuple[tuple[int, int], ...]
    lines: tuple[int, int]
    words: tuple[int, int]
    longest: int
    font_pixels: tuple[int, int]
    columns: float = 0.0
    sentences: float = 0.0
    styles: bool = False
    variety: float = 0.5
    wear: float = 0.2
    degrees: float = 0.0


PARAGRAPH_LEVELS: tuple[ParagraphLevel, ...] = (
    ParagraphLevel(
        sizes=((112, 224), (168, 224)), lines=(2, 2), words=(2, 3), longest=6, font_pixels=(15, 24), sentences=0.2
    ),
    ParagraphLevel(
        sizes=((224, 224), (224, 224), (168, 280), (280, 168)),
        lines=(3, 4),
        words=(2, 4),
        longest=8,
        font_pixels=(12, 20),
        columns=0.15,
        sentences=0.5,
        styles=True,
        variety=0.7,
        wear=0.3,
        degrees=1.5,
    ),
    ParagraphLevel(
        sizes=((448, 448), (448, 448), (336, 448), (448, 336)),
        lines=(3, 6),
        words=(3, 6),
        longest=10,
        font_pixels=(14, 28),
        columns=0.35,
        sentences=0.7,
        styles=True,
        variety=0.7,
        wear=0.4,
        degrees=2.0,
    ),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """How a paragraph is set: the font, how lines are aligned, and lengths in pixels.

    Attributes:
        file: the font.
        layout: one of the layout families.
        leading_em: from line to line, in em.
        width: of a column.
        gap: between two columns.
    """

    file: FontFile
    layout: str
    leading_em: float
    width: int
    gap: int = 0


#: The words of each line of a column.
Words = tuple[tuple[str, ...], ...]


def draw_paragraph(rng: np.random.Generator, level: ParagraphLevel, split: Split, task: str = "paragraph") -> Sample:
    """A paragraph of `level`, its font and its words from `split`. The first question asks for the whole text.

    Raises:
        ConfigError: a level whose print does not fit into its pictures.
    """
    layout = choose_layout(rng, split, TRAIN_LAYOUTS, HELDOUT_LAYOUTS)
    height, width = one_of(rng, level.sizes)
    low, high = level.font_pixels
    for attempt in range(60):
        # What does not fit is drawn anew; after many attempts, one column and as little text as the level allows.
        least = attempt >= 40
        count = 2 if not least and rng.random() < level.columns else 1
        gap = 3 * low if count == 2 else 0
        column = (width - 2 * MARGIN - gap) // count
        setting = Setting(_draw_font(rng, level, split), layout, float(rng.uniform(1.2, 1.6)), column, gap)
        columns = draw_columns(rng, level, split, count, least)
        text = _fit(columns, setting, height - 2 * MARGIN, (low, int(rng.integers(low, high + 1))))
        if text is not None:
            image, boxes = _paint(rng, level, (height, width), text, setting)
            return Sample((image,), ask_about(rng, columns, split), task, (tuple(boxes),), layout=layout)
    raise ConfigError(
        f"no paragraph of {low} pixels an em fits into a picture of {height} x {width}",
        hint="Use a bigger picture, smaller print or fewer words.",
    )


def draw_columns(
    rng: np.random.Generator, level: ParagraphLevel, split: Split, count: int, least: bool = False
) -> tuple[Words, ...]:
    """The words of `count` columns, all of `split`; `least` for as few of them as `level` allows."""
    has_sentences = rng.random() < level.sentences
    lines = level.lines[0] if least else int(rng.integers(level.lines[0], level.lines[1] + 1))
    fewest, most = (1, max(1, level.words[1] // 2)) if count == 2 else level.words
    columns: list[Words] = []
    starts = True
    for _ in range(count):
        column = []
        for _ in range(lines):
            line = []
            for _ in range(fewest if least else int(rng.integers(fewest, most + 1))):
                word = _draw_word(rng, split, level.longest, may_count=has_sentences)
                if has_sentences:
                    word = word.capitalize() if starts else word
                    ends = rng.random()
                    word += "." if ends < 0.12 else "," if ends < 0.2 else ""
                    starts = word.endswith(".")
                line.append(word)
            column.append(tuple(line))
        columns.append(tuple(column))
    if has_sentences:
        *before, last = columns[-1][-1]
        columns[-1] = (*columns[-1][:-1], (*before, last.rstrip(",.") + "."))
    return tuple(columns)


def ask_about(rng: np.random.Generator, columns: tuple[Words, ...], split: Split) -> tuple[Question, ...]:
    """Questions on `columns`, the transcript first; answers leave out commas and full stops at the end of a word."""
    lines = [line for column in columns for line in column]
    words = [word.rstrip(",.") for line in lines for word in line]
    text = "\n".join(" ".join(line) for line in lines)
    rest = [
        ask(rng, split, END_QUESTIONS, words[0], end="first"),
        ask(rng, split, END_QUESTIONS, words[-1], end="last"),
    ]
    if len(columns) == 1:
        # With two columns, "line 2" would have two meanings.
        number = int(rng.integers(len(lines)))
        end = int(rng.integers(2))
        word = lines[number][(0, -1)[end]].rstrip(",.")
        rest.append(ask(rng, split, LINE_END_QUESTIONS, word, end=("first", "last")[end], number=str(number + 1)))
        rest.append(ask(rng, split, LINES_QUESTIONS, str(len(lines))))
    else:
        rest.append(ask(rng, split, RIGHT_QUESTIONS, columns[1][0][0].rstrip(",.")))
    if len(columns) > 1 or rng.random() < 0.2:
        rest.append(ask(rng, split, COLUMNS_QUESTIONS, str(len(columns))))
    asked, is_there = _draw_asked(rng, [word.lower() for word in words], split)
    rest.append(ask(rng, split, CONTAINS_QUESTIONS, "yes" if is_there else "no", word=asked))
    kept = sorted(int(i) for i in rng.permutation(len(rest))[:4])
    return (ask(rng, split, TRANSCRIBE_QUESTIONS, text, "long"), *(rest[i] for i in kept))


def _draw_font(rng: np.random.Generator, level: ParagraphLevel, split: Split) -> FontFile:
    family = one_of(rng, families(split))
    return one_of(rng, family.files) if level.styles and rng.random() < 0.3 else family.regular


def _draw_word(rng: np.random.Generator, split: Split, longest: int, *, may_count: bool = False) -> str:
    if may_count and rng.random() < 0.06:
        while not in_split(number := str(int(rng.integers(2, 1000))), split):
            pass
        return number
    return draw_text(rng, "short" if longest <= 6 else "word", split, longest).lower()


def _draw_asked(rng: np.random.Generator, words: list[str], split: Split) -> tuple[str, bool]:
    """A word to ask for, and whether it is one of `words`."""
    if rng.random() < 0.5:
        return one_of(rng, words), True
    while (word := _draw_word(rng, split, max(6, *map(len, words)))) in words:
        pass
    return word, False


def _indent(face: Face, setting: Setting, line: int) -> int:
    """How far a line of a column is moved in, in pixels."""
    moved = setting.layout == ("indented" if line == 0 else "hanging")
    return round(1.5 * face.font.size) if moved else 0


def _space(face: Face) -> int:
    # Words are measured from ink to ink: without the white at the sides of letters they would stand too close.
    return round(max(face.glyph(" ").advance, 0.22 * face.font.size) + 0.08 * face.font.size)


class _SetText(NamedTuple):
    """Text set in `face`: each word of each line of each column, and the room that the widest column needs."""

    face: Face
    columns: list[list[list[Line]]]
    height: int
    width: int


def _fit(columns: tuple[Words, ...], setting: Setting, height: int, font_pixels: tuple[int, int]) -> _SetText | None:
    """The text in the largest of `font_pixels` (smallest, largest) that fits; None where none does."""
    low, pixels = font_pixels
    # Lengths grow with the size but for rounding: the smallest size tells which are worth a try.
    smallest = _set_text(load_face(setting.file, low), columns, setting)
    pixels = min(pixels, int(low * min(height / smallest.height, setting.width / smallest.width)))
    for size in range(pixels, low - 1, -1):
        text = smallest if size == low else _set_text(load_face(setting.file, size), columns, setting)
        if text.height <= height and text.width <= setting.width:
            return text
    return None


def _set_text(face: Face, columns: tuple[Words, ...], setting: Setting) -> _SetText:
    lines = [[[set_line(face, word) for word in line] for line in column] for column in columns]
    widths = [
        _indent(face, setting, i) + sum(word.width for word in line) + _space(face) * (len(line) - 1)
        for column in lines
        for i, line in enumerate(column)
    ]
    # Ink reaches at most 0.95 em above a baseline and 0.35 em below it.
    height = round((setting.leading_em * (len(columns[0]) - 1) + 1.3) * face.font.size) + 1
    return _SetText(face, lines, height, max(widths))


def _paint(
    rng: np.random.Generator,
    level: ParagraphLevel,
    size: tuple[int, int],
    text: _SetText,
    setting: Setting,
) -> tuple[Picture, list[CharacterBox]]:
    """The picture of `size` (height, width) with `text` somewhere in it, and the boxes of its characters."""
    height, width = size
    coverage = np.zeros(size, np.uint8)
    # One column need not stand at the left: it is as wide as its text, anywhere in the picture.
    count = len(text.columns)
    column = text.width if count == 1 else setting.width
    left = int(rng.integers(MARGIN, width - MARGIN - count * column - (count - 1) * setting.gap + 1))
    top = int(rng.integers(MARGIN, height - MARGIN - text.height + 1))
    boxes: list[CharacterBox] = []
    for i, lines in enumerate(text.columns):
        x = left + i * (column + setting.gap)
        for j, words in enumerate(lines):
            baseline = top + round((0.95 + j * setting.leading_em) * text.face.font.size)
            places = _places(text.face, words, setting, column, j, len(lines))
            for word, place in zip(words, places, strict=True):
                boxes += print_line(coverage, text.face, word, x + place, baseline)
    if level.degrees and rng.random() < 0.5:
        coverage, boxes = rotate(coverage, boxes, float(rng.uniform(-level.degrees, level.degrees)))
    paper, ink = draw_colours(rng, level.variety)
    image = blend(draw_background(rng, height, width, paper, level.variety), coverage, ink)
    return np.ascontiguousarray(wear(rng, image, level.wear if rng.random() < 0.5 else 0.0)), boxes


def _places(face: Face, words: list[Line], setting: Setting, width: int, number: int, count: int) -> list[int]:
    """Where the words of line `number` of `count` start, in pixels from the left edge of a column `width` wide."""
    start, gap = float(_indent(face, setting, number)), float(_space(face))
    free = width - start - sum(word.width for word in words) - gap * (len(words) - 1)
    if setting.layout == "centred":
        start += free / 2
    elif setting.layout == "flush right":
        start += free
    elif setting.layout == "justified" and len(words) > 1 and number < count - 1:
        # Wider gaps would look like columns.
        gap += min(free / (len(words) - 1), 0.6 * face.font.size)
    places = []
    for word in words:
        places.append(int(start))
        start += word.width + gap
    return places
