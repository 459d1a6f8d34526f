"""Pictures of names and values, several questions each: where looking something up by its name is learnt.

The kinds of `pocketvlm.synthetic` that ask for it (forms, tables, receipts) mix it with much else; here every question
is of this kind, names are any words, and there are from two pairs to a full page of them. Training only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pocketvlm.synthetic.drawing.fonts import Face, families, load_face
from pocketvlm.synthetic.drawing.lines import blend, draw_background, draw_colours, print_line, set_line, wear
from pocketvlm.synthetic.sample import NOT_THERE, CharacterBox, Picture, Question, Sample, Split
from pocketvlm.synthetic.words.values import ValueKind, draw_value, one_of
from pocketvlm.synthetic.words.vocabulary import draw_text, in_split
from recipes.nano.collage import SIZES

LAYOUTS = ("colon", "space", "column", "right", "dots", "below", "above", "cells")
VALUES: tuple[ValueKind, ...] = (
    *("word", "word", "count", "amount", "amount", "percent", "code", "time", "date", "phone"),
)
FAMILIES = 6  # that some steps' pictures share
PIXELS = (10, 11, 12, 13, 14, 16, 18, 20, 23, 26, 30, 34)  # few sizes: opening a font takes longer than printing
PHRASES = 0.12  # share of values of several words
# Names as forms, receipts, screens and tickets have them, beside any words.
_NAMES = (
    "Total|Date|Time|Name|Number|Price|Order|Order No.|Seat|Gate|From|To|Due|Amount|Balance|Tax|City|Phone|Email|"
    "Address|Shop|Room|Floor|Code|Weight|Height|Size|Colour|Type|Model|Serial|Version|Status|Language|Rate|Score|"
    "Points|Stock|Shelf|Quantity|Qty|Unit price|Subtotal|Paid|Change|Cash|Card|Ticket|Train|Platform|Arrival|"
    "Departure|Start|End|Age|Country|Street|Zip|Owner|Doctor|Dose|Batch|Expires|Invoice No.|Customer|Account|Limit|"
    "Speed|Power|Memory|Disk|Host|User|Volume|Brightness|Battery|Team|Title|Author|Pages|Level|Humidity|Wind|Rain|"
    "Temperature|Distance|Duration|Beds|Nights|Guests"
)
NAMES = tuple(_NAMES.split("|"))
QUESTIONS = (
    "What is the {}?",
    "What is the {}?",
    "What is {}?",
    "{}?",
    "{}",
    "Read the {}.",
    "Which {} is it?",
    "Give the {}.",
    "What does it say for {}?",
    "What's the {}?",
    "Tell me the {}.",
    "What is the value of {}?",
)
NAME_OF = ("What is {}?", "Which name has {}?", "What has the value {}?")


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupLevel:
    """How hard they are.

    Attributes:
        pairs: fewest and most names with values.
        font_pixels: smallest and largest size of the letters' em, in pixels; some of `PIXELS`, smaller ones more often.
        layouts: how names and values stand to each other.
        titles: share of pictures with a line above that belongs to none.
        absent: share of pictures that are also asked for a name that is not there.
        variety, wear: as in `Difficulty`.
    """

    pairs: tuple[int, int] = (2, 9)
    font_pixels: tuple[int, int] = (12, 34)
    layouts: tuple[str, ...] = LAYOUTS
    titles: float = 0.3
    absent: float = 0.3
    variety: float = 0.5
    wear: float = 0.4


def draw_lookup(
    seed: tuple[int, ...], level: LookupLevel, split: Split = "train", fonts: tuple[int, ...] = ()
) -> Sample:
    """A picture of `level`, which shares its fonts with all others of the same seed of `fonts`."""
    of_many, rng = np.random.default_rng([12, *(fonts or seed)]), np.random.default_rng([11, *seed])
    height, width = one_of(rng, SIZES)
    family = one_of(rng, [one_of(of_many, families(split)) for _ in range(FAMILIES)])
    regular, bold = family.regular, family.bold
    layout = one_of(rng, level.layouts)
    low, high = level.font_pixels
    wanted = int(rng.integers(level.pairs[0], level.pairs[1] + 1))
    high = max(low, min(high, math.floor(height / (wanted * (2.6 if layout in ("below", "above", "cells") else 1.35)))))
    largest = math.exp(rng.uniform(math.log(low), math.log(high + 1)))
    pixels = max(size for size in PIXELS if size <= max(low, largest))
    name_face = load_face(bold if rng.random() < 0.3 else regular, pixels)
    value_face = load_face(bold if rng.random() < 0.2 else regular, pixels)
    pairs = _draw_pairs(rng, wanted, split)
    coverage = np.zeros((height, width), np.uint8)
    print_ = _Print(rng, coverage, name_face, value_face, layout)
    if rng.random() < level.titles:
        print_.title(draw_text(rng, one_of(rng, ("word", "phrase")), split))
    shown = [pair for pair in pairs if print_.pair(*pair)]
    paper, ink = draw_colours(rng, level.variety)
    image = blend(draw_background(rng, height, width, paper, level.variety), coverage, ink)
    image = np.ascontiguousarray(wear(rng, image, level.wear))
    questions = _ask(rng, shown, level, {name.lower() for name, _ in pairs}, split)
    return Sample((image,), questions, "lookup", (tuple(print_.boxes),))


def _draw_pairs(rng: np.random.Generator, count: int, split: Split) -> list[tuple[str, str]]:
    """Different names with different values."""
    pairs: dict[str, str] = {}
    used: set[str] = set()
    while len(pairs) < count:
        name, value = _draw_name(rng, split), _draw_value(rng, split)
        words = {*name.lower().split(), *value.lower().split()}  # none stands twice, or it would be unclear which
        if not words & used:
            pairs[name] = value
            used |= words
    return list(pairs.items())


def _draw_value(rng: np.random.Generator, split: Split) -> str:
    if rng.random() < PHRASES:
        return draw_text(rng, "phrase", split, 20)
    return draw_value(rng, one_of(rng, VALUES), split)


def _draw_name(rng: np.random.Generator, split: Split) -> str:
    share = rng.random()
    if share < 0.4:
        name = one_of(rng, NAMES)
        while not in_split(name, split):
            name = one_of(rng, NAMES)
        return name
    words = draw_text(rng, "word", split, 9)
    if share > 0.8:
        words = f"{words.capitalize()} {draw_text(rng, 'word', split, 7).lower()}"
    return words if rng.random() < 0.4 else words.capitalize()


class _Print:
    """Where the next pair goes, and the boxes of what is printed."""

    def __init__(self, rng: np.random.Generator, coverage: Picture, name: Face, value: Face, layout: str) -> None:
        self.rng, self.coverage, self.layout = rng, coverage, layout
        self.faces, self.em = (name, value), int(name.font.size)
        self.boxes: list[CharacterBox] = []
        height, width = coverage.shape
        self.left, self.right = int(rng.integers(3, 12)), width - int(rng.integers(3, 12))
        self.top = int(rng.integers(3, max(4, height // 6)))
        self.column = self.left + int((self.right - self.left) * float(rng.uniform(0.35, 0.6)))
        self.leading = round(self.em * float(rng.uniform(1.25, 1.7)))
        self.cell = 0  # of a row of two

    def title(self, text: str) -> None:
        line = set_line(self.faces[0], text)
        if line.width <= self.right - self.left:
            self._print(0, text, self.left, self.top + self.em)
            self.top += round(1.6 * self.em)

    def pair(self, name: str, value: str) -> bool:
        """Print one; False where there is no room for it."""
        if self.layout in ("below", "above", "cells"):
            return self._stacked(name, value)
        name_text = f"{name}:" if self.layout == "colon" else name
        names, values = set_line(self.faces[0], name_text), set_line(self.faces[1], value)
        behind = self.left + names.width + self.em // 2
        at_the_right = self.right - values.width
        places = {"column": max(self.column, behind), "right": at_the_right, "dots": at_the_right}
        x = places.get(self.layout, behind)
        baseline = self.top + self.em
        if x < behind or x + values.width > self.right or baseline + self.em // 3 > self.coverage.shape[0] - 2:
            return False
        self._print(0, name_text, self.left, baseline)
        if self.layout == "dots":
            self.coverage[baseline - 1 : baseline, behind : x - self.em // 3 : 3] = 255
        self._print(1, value, x, baseline)
        self.top += self.leading
        return True

    def _stacked(self, name: str, value: str) -> bool:
        """The value beneath its name or above it, in one column or in cells side by side."""
        side_by_side = self.layout == "cells"
        left = self.left if not self.cell else self.column
        right = self.right if not side_by_side or self.cell else self.column - self.em // 2
        texts = [(0, name), (1, value)]
        if self.layout == "above":
            texts.reverse()
        if max(set_line(self.faces[i], text).width for i, text in texts) > right - left:
            return False
        bottom = self.top + 2 * self.leading
        if bottom > self.coverage.shape[0] - 2:
            return False
        for row, (i, text) in enumerate(texts):
            self._print(i, text, left, self.top + self.em + row * round(1.15 * self.em))
        self.cell = (self.cell + 1) % 2 if side_by_side else 0
        if not self.cell:
            self.top = bottom + self.em // 2
        return True

    def _print(self, face: int, text: str, x: int, baseline: int) -> None:
        line = set_line(self.faces[face], text)
        if baseline + line.top >= 0 and baseline + line.bottom <= self.coverage.shape[0]:
            self.boxes += print_line(self.coverage, self.faces[face], line, x, baseline)


def _ask(
    rng: np.random.Generator, pairs: list[tuple[str, str]], level: LookupLevel, names: set[str], split: Split
) -> tuple[Question, ...]:
    questions = []
    for name, value in pairs:
        if rng.random() < 0.12:
            questions.append(Question(one_of(rng, NAME_OF).format(value), name))
        else:
            spoken = name if rng.random() < 0.4 else name.lower()
            questions.append(Question(one_of(rng, QUESTIONS).format(spoken), value))
    if not questions or rng.random() < level.absent:
        name = _draw_name(rng, split)
        while name.lower() in names:
            name = _draw_name(rng, split)
        questions.append(Question(one_of(rng, QUESTIONS).format(name.lower()), NOT_THERE, "absent"))
    return tuple(questions)
