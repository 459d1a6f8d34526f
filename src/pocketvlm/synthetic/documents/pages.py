"""Pages for slice encoding: a large title that the overview shows, and small print that only the slices show.

Sizes of print follow from the page, so that a page means the same for every model: a page that is cut into `slices`
slices of about sqrt(height * width / slices) pixels a side has small print of a fixed share of that side, and large
print of a fixed share of sqrt(height * width). A share is given in 224ths: the pixels an em in a view of 224 x 224.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pocketvlm.errors import ConfigError
from pocketvlm.synthetic.documents.page_parts import (
    Entry,
    Print,
    draw_ink,
    paint_gradient,
    paint_panel,
    print_block,
)
from pocketvlm.synthetic.documents.page_places import VIEW, Page, at, fits, place_large, place_small
from pocketvlm.synthetic.drawing.fonts import families
from pocketvlm.synthetic.drawing.lines import draw_colours, wear
from pocketvlm.synthetic.drawing.paper import Fonts, Row, set_sheet
from pocketvlm.synthetic.levels import Range, SizeRange, draw_size, exactly
from pocketvlm.synthetic.sample import CharacterBox, Question, QuestionKind, Sample, Split, choose_layout
from pocketvlm.synthetic.words.values import (
    TITLE_QUESTIONS,
    Wordings,
    ask,
    ask_absent,
    draw_value,
    one_of,
    until_in_split,
)
from pocketvlm.synthetic.words.vocabulary import draw_text

#: Where the small print stands: at the lower edge, in a corner, in a frame like a stamp, under a panel, in a box on a
#: panel, at the upper edge; and, held out, beside a panel, or between two panels.
TRAIN_LAYOUTS = ("footer", "corner", "stamp", "caption", "box", "header")
HELDOUT_LAYOUTS = ("side note", "between")

#: Pixels an em in an overview of 224 x 224: smallest and largest.
TITLE_PRINT = (18, 28)
HEADING_PRINT = (13, 16)

ASK_QUESTIONS = Wordings(
    (
        "What is the {name}?",
        "Read the {name}.",
        "What is the {name} in the small print?",
        "Which {name} is printed?",
        "What's the {name}",
        "{name}?",
    ),
    heldout=("Give me the {name}.", "{name} in the small print?"),
)
READ_QUESTIONS = Wordings(
    ("Read the small print.", "What does the small print say?", "What is the small print?", "small print?"),
    heldout=("What's in the small print", "Give me the small print."),
)

# Steps of 9 %: the glyphs of a size are kept, and with any size at all too few would be found there.
_SIZES = tuple(round(12 * 2 ** (step / 8)) for step in range(64))


@dataclass(frozen=True, slots=True)
class PageLevel:
    """How hard the pages are.

    Attributes:
        sizes: (height, width) ranges in pixels: ((lowest, highest), (lowest, highest)).
        slices: how many slices such a page is cut into.
        small_print: smallest and largest em of the small print, in 224ths of a slice's side.
        lines: fewest and most lines of a block of small print.
        blocks: most blocks of small print.
        headings: fewest and most headings beside the title.
        panels: fewest and most pictures beside those that belong to the small print.
        variety: 0 is black on white, 1 is always coloured.
        wear: strength of blur and noise, 0 to 1; each in a quarter of the pages. Large pages are shrunk before they
            are seen, which undoes it, so they go without.
        degrees: largest rotation of a stamp to either side.
    """

    sizes: tuple[SizeRange, ...]
    slices: int
    small_print: Range = (13, 18)
    lines: Range = (1, 4)
    blocks: int = 1
    headings: Range = (1, 2)
    panels: Range = (1, 4)
    variety: float = 0.8
    wear: float = 0.4
    degrees: float = 4.0


PAGE_LEVELS: tuple[PageLevel, ...] = (
    PageLevel(
        sizes=(exactly(224, 448), exactly(448, 224)),
        slices=2,
        small_print=(15, 18),
        lines=(1, 2),
        headings=(0, 1),
        panels=(0, 2),
        variety=0.6,
        wear=0.2,
        degrees=0.0,
    ),
    PageLevel(sizes=(exactly(448, 448),), slices=4, small_print=(14, 18), lines=(1, 3), headings=(0, 1), wear=0.3),
    PageLevel(sizes=(exactly(448, 672), exactly(672, 448)), slices=6),
    PageLevel(sizes=(exactly(672, 672),), slices=9, wear=0.3),
    # Any shape from 3:4 to 4:3.
    PageLevel(sizes=(((1344, 1792), (1344, 1792)),), slices=9, blocks=2, wear=0.0),
)


@dataclass(frozen=True, slots=True)
class Label:
    """Something that small print tells: its name in questions, how it is printed, and how a value is drawn."""

    name: str
    forms: tuple[str, ...]
    draw: Callable[[np.random.Generator, Split], str]


def draw_page(rng: np.random.Generator, level: PageLevel, split: Split, task: str = "page") -> Sample:
    """A page of `level`. Questions about small print come before those about large print; the first one's answer is
    printed. Fonts, printed words and asked values are from `split`.

    Raises:
        ConfigError: a level whose print does not fit on its pages.
    """
    page = plan_page(rng, level, split)
    # The empty page: plain, or a slight gradient.
    paper = np.asarray(page.paper, np.float32)
    change = rng.uniform(-25, 25, 3).astype(np.float32) if rng.random() < 0.5 * level.variety else np.float32(0)
    image = paint_gradient(rng, page.height, page.width, paper - change, paper + change)
    for panel in page.panels:
        image[panel.top : panel.bottom, panel.left : panel.right] = paint_panel(rng, panel)
    boxes: list[CharacterBox] = []
    for block, place in (*page.large, *page.small):
        boxes += print_block(image, block, place)
    image = np.ascontiguousarray(wear(rng, image, level.wear if rng.random() < 0.5 else 0.0))
    return Sample((image,), ask_about(rng, page, split), task, (tuple(boxes),), layout=page.layout)


def plan_page(rng: np.random.Generator, level: PageLevel, split: Split) -> Page:
    """Decide what stands where on a page of `level`."""
    layout = choose_layout(rng, split, TRAIN_LAYOUTS, HELDOUT_LAYOUTS)
    height, width = draw_size(rng, level.sizes)
    for _ in range(80):
        paper, ink = draw_colours(rng, level.variety)
        page = Page(height, width, math.sqrt(height * width / level.slices), layout, paper, ink)
        if _fill_page(rng, page, level, split):
            return page
    raise ConfigError(
        f"the print of a page does not fit into {height} x {width} pixels",
        hint="Use a bigger page, smaller print or fewer lines.",
    )


def _fill_page(rng: np.random.Generator, page: Page, level: PageLevel, split: Split) -> bool:
    """Put everything on an empty page; False where the small print or the title finds no place."""
    labels = [LABELS[i] for i in rng.permutation(len(LABELS))]
    blocks = int(rng.integers(1, level.blocks + 1))
    for i in range(blocks):
        # "The small print" is ambiguous where there are two blocks, so there every line has a name to ask for.
        block = _set_small(rng, page, level, split, labels, named=blocks > 1)
        placed = block is not None and place_small(rng, page, block, level.degrees)
        if i == 0 and not placed:
            return False
    family = one_of(rng, families(split))
    fonts = Fonts(family.regular, family.bold)
    title = _set_large(rng, page, split, fonts, TITLE_PRINT)
    if title is None or not place_large(rng, page, title, 60):
        return False
    for _ in range(int(rng.integers(level.headings[0], level.headings[1] + 1))):
        heading = _set_large(rng, page, split, fonts, HEADING_PRINT)
        if heading is not None:
            place_large(rng, page, heading, 12)
    for _ in range(int(rng.integers(level.panels[0], level.panels[1] + 1))):
        for _ in range(8):
            width, height = (round(float(share) * page.side) for share in rng.uniform(0.3, 0.9, 2))
            panel = at(int(rng.integers(page.width - width)), int(rng.integers(page.height - height)), width, height)
            if page.is_free(panel, page.margin // 3):
                page.panels.append(panel)
                break
    return True


def ask_about(rng: np.random.Generator, page: Page, split: Split) -> tuple[Question, ...]:
    """Questions on `page`: what the small print says, in a quarter of the pages what it does not say, and the title."""
    entries = [entry for block, _ in page.small for entry in block.entries]
    named = [entry for entry in entries if entry.name]
    questions = [
        ask(rng, split, ASK_QUESTIONS, named[i].value, name=named[i].name) for i in rng.permutation(len(named))[:4]
    ]
    if len(page.small) == 1:
        kind: QuestionKind = "text" if len(entries) == 1 else "long"
        whole = ask(rng, split, READ_QUESTIONS, page.small[0][0].text, kind)
        # A lone line is as good a main question as its value; a longer text comes after the values.
        questions.insert(0 if len(entries) == 1 and rng.random() < 0.3 else len(questions), whole)
    absent = [label.name for label in LABELS if label.name not in {entry.name for entry in named}]
    if absent and rng.random() < 0.25:
        questions.append(ask_absent(rng, split, ASK_QUESTIONS, name=one_of(rng, absent)))
    return (*questions, ask(rng, split, TITLE_QUESTIONS, page.large[0][0].text))


# What is printed.


def _draw_name(rng: np.random.Generator, split: Split) -> str:
    """A capitalised word that is not one of the words of a label."""
    while (word := draw_text(rng, "word", split, max_length=8).lower()) in _LABEL_WORDS:
        pass
    return word.capitalize()


def _draw_digits(rng: np.random.Generator, split: Split) -> str:
    return until_in_split(rng, split, lambda rng: str(int(rng.integers(10, 10 ** int(rng.integers(2, 6))))))


def _draw_date(rng: np.random.Generator, split: Split) -> str:
    return draw_value(rng, "date", split)


def _draw_amount(rng: np.random.Generator, split: Split) -> str:
    def draw(rng: np.random.Generator) -> str:
        return f"${int(10 ** rng.uniform(0, 3.3))}.{int(rng.integers(100)):02d}"

    return until_in_split(rng, split, draw)


LABELS: tuple[Label, ...] = (
    Label("serial", ("Serial: {}", "Serial {}", "SERIAL {}"), lambda rng, split: draw_text(rng, "code", split)),
    Label("batch", ("Batch {}", "Batch: {}", "BATCH {}"), _draw_digits),
    Label("reference", ("Ref. {}", "Ref: {}"), lambda r, s: f"{_draw_name(r, s)} {_draw_digits(r, s)}"),
    Label("date", ("Date: {}", "Date {}", "{}"), _draw_date),
    Label("amount", ("Amount: {}", "Amount {}"), _draw_amount),
    Label("owner", ("Owner: {}", "Owner {}"), _draw_name),
    Label("room", ("Room {}", "Room: {}"), _draw_digits),
)
_LABEL_WORDS = frozenset({"ref", *(label.name for label in LABELS)})


def _draw_entry(rng: np.random.Generator, split: Split, labels: list[Label], named: bool) -> Entry:
    if not labels or (not named and rng.random() < 0.15):
        words = [_draw_name(rng, split) for _ in range(2)]
        return Entry(f"{words[0]} {words[1].lower()}")
    label = labels.pop()
    value = label.draw(rng, split)
    return Entry(one_of(rng, label.forms).format(value), label.name, value)


def print_pixels(rng: np.random.Generator, side: float, share: Range) -> int:
    """An em of `share` (smallest and largest, in 224ths of `side`), in whole pixels and never below `share`."""
    low, high = (value * side / VIEW for value in share)
    return one_of(rng, [pixels for pixels in _SIZES if low <= pixels <= high] or [math.ceil(low)])


def _set_small(
    rng: np.random.Generator, page: Page, level: PageLevel, split: Split, labels: list[Label], named: bool
) -> Print | None:
    """A block of small print, its labels taken off `labels`; None where it is about as wide as a slice or wider."""
    family = one_of(rng, families(split))
    bold, centred = bool(rng.random() < 0.25), bool(rng.random() < 0.3)
    count = int(rng.integers(level.lines[0], level.lines[1] + 1))
    entries = tuple(_draw_entry(rng, split, labels, named and i == 0) for i in range(count))
    pixels = print_pixels(rng, page.side, level.small_print)
    rows = [Row(entry.text, bold=bold, centred=centred) for entry in entries]
    sheet = set_sheet(rows, Fonts(family.regular, family.bold), pixels, float(rng.uniform(1.2, 1.5)))
    padding = round((0.8 if page.layout == "stamp" else 0.45) * pixels)
    block = Print(sheet, entries, padding)
    return block if block.width < 0.95 * page.width / page.cells[1] and fits(page, block) else None


def _set_large(rng: np.random.Generator, page: Page, split: Split, fonts: Fonts, share: Range) -> Print | None:
    """A title or heading of one or two words; None where it is too wide."""
    text = " ".join(_draw_name(rng, split) for _ in range(1 + bool(rng.random() < 0.5)))
    text = text.upper() if rng.random() < 0.3 else text
    pixels = print_pixels(rng, math.sqrt(page.height * page.width), share)
    sheet = set_sheet([Row(text, bold=True)], fonts, pixels, 1.25)
    ink = page.ink if rng.random() < 0.6 else draw_ink(rng, page.paper)
    block = Print(sheet, (Entry(text),), round(0.35 * pixels), ink)
    return block if fits(page, block) else None


# Where it stands.
