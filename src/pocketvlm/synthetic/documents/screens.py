"""Screens: a window with buttons, text fields and check boxes: where one is, what it says, whether it is ticked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pocketvlm.synthetic.drawing.canvas import Canvas, PixelBox, mix, readable_on
from pocketvlm.synthetic.drawing.figures import COLOURS
from pocketvlm.synthetic.drawing.fonts import Face, FontFile, families, load_face
from pocketvlm.synthetic.drawing.lines import BLACK, WHITE, Colour, draw_background, set_line, wear
from pocketvlm.synthetic.levels import THREE_SIZES, PrintedLevel, draw_size, exactly, no_room
from pocketvlm.synthetic.sample import Question, Sample, Split, box_answer, choose_layout
from pocketvlm.synthetic.words.values import (
    TITLE_QUESTIONS,
    Wordings,
    ask,
    ask_absent,
    draw_names,
    draw_value,
    integer_in,
    one_of,
)

TRAIN_LAYOUTS = ("stack", "toolbar", "tiles", "form", "menu")
#: A column at one side; a row at the lower edge.
HELDOUT_LAYOUTS = ("sidebar", "bottom bar")
#: Labels that screens really have: a closed class, in both splits.
USUAL = (
    "Save",
    "Open",
    "Close",
    "Cancel",
    "OK",
    "Print",
    "Send",
    "Delete",
    "Next",
    "Back",
    "Help",
    "Copy",
    "Edit",
    "Start",
)
USUAL_SHARE = 0.4

WHERE_QUESTIONS = Wordings(
    (
        "Where is the {label} {what}? Answer with a box.",
        "Find the {label} {what}. Answer with a box.",
        "Give the box of the {label} {what}.",
        "box of the {label} {what}?",
    ),
    heldout=("Draw a box around the {label} {what}.", "the {label} {what}, as a box"),
)
FIELD_QUESTIONS = Wordings(
    ("What is in the {label} field?", "What does the {label} field say?", "Read the {label} field.", "{label} field?"),
    heldout=("What has been typed in the {label} field?", "What's in the {label} field"),
)
TICKED_QUESTIONS = Wordings(
    ("Is {label} ticked?", "Is the {label} box ticked?", "{label} ticked?"),
    heldout=("Has {label} been ticked?", "Is there a tick at {label}?"),
)
COUNT_QUESTIONS = Wordings(
    ("How many buttons are there?", "What is the number of buttons?", "Count the buttons.", "how many buttons"),
    heldout=("How many buttons do you see?", "number of buttons?"),
)
COLOUR_QUESTIONS = Wordings(
    (
        "Which button is {colour}?",
        "What is the {colour} button?",
        "Read the {colour} button.",
        "{colour} button?",
    ),
    heldout=("What does the {colour} button say?", "What's on the {colour} button"),
)

Kind = Literal["button", "field", "box"]
ABSENT_SHARE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenLevel(PrintedLevel):
    """How hard the screens are.

    Attributes:
        elements: fewest and most buttons, fields and boxes.
        letters: longest label.
        questions: most questions but that about what is not there.
        boxes: most further questions for the place of another element.
    """

    elements: tuple[int, int]
    letters: int
    questions: int = 4
    boxes: int = 0


SCREEN_LEVELS: tuple[ScreenLevel, ...] = (
    ScreenLevel(
        sizes=(exactly(224, 224), exactly(168, 224), exactly(168, 280)),
        elements=(2, 4),
        letters=6,
        font_pixels=(15, 18),
        variety=0.4,
    ),
    ScreenLevel(
        sizes=THREE_SIZES[1], elements=(3, 6), letters=7, font_pixels=(12, 17), questions=5, variety=0.6, wear=0.4
    ),
    ScreenLevel(
        sizes=THREE_SIZES[2], elements=(4, 8), letters=9, font_pixels=(13, 22), questions=6, variety=0.8, wear=0.5
    ),
)


@dataclass(frozen=True, slots=True)
class Element:
    """A part of the screen.

    Attributes:
        box: its outer edge in pixels: what "where" asks for.
        value: what stands in a field; empty elsewhere.
        is_ticked: of boxes.
        colour: the name of a button's colour; empty for one in the colour of the theme.
    """

    kind: Kind
    label: str
    value: str = ""
    is_ticked: bool = False
    colour: str = ""
    box: PixelBox = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours and print of a screen."""

    font: FontFile
    em: int
    window: Colour
    bar: Colour
    button: Colour
    field: Colour

    @property
    def face(self) -> Face:
        return load_face(self.font, self.em)

    @property
    def row(self) -> int:
        """Height of an element, in pixels."""
        return max(30, round(1.9 * self.em))


def draw_screen(rng: np.random.Generator, level: ScreenLevel, split: Split, task: str = "screen") -> Sample:
    """A picture of a screen of `level`; free labels, values, fonts and layout family are all from `split`."""
    height, width = draw_size(rng, level.sizes)
    layout = choose_layout(rng, split, TRAIN_LAYOUTS, HELDOUT_LAYOUTS)
    for attempt in range(300):
        # What does not fit is drawn anew, and in the end as the smallest screen of the level.
        fewest = replace(level, elements=(level.elements[0],) * 2, font_pixels=(level.font_pixels[0],) * 2)
        eased = level if attempt < 60 else fewest
        theme = _draw_theme(rng, eased, split)
        title, elements = draw_contents(rng, eased, split)
        placed = place(rng, layout, elements, theme, height, width)
        if placed:
            break
    else:
        raise no_room("screen", level, height, width)
    ground = draw_background(rng, height, width, theme.window, level.variety * 0.3)
    canvas = paint(Canvas(ground), title, placed, theme)
    image = np.ascontiguousarray(wear(rng, canvas.image, level.wear))
    questions = ask_about(rng, title, placed, level, split, height, width)
    return Sample((image,), questions, task, (canvas.characters,), layout=layout, objects=(canvas.objects,))


def _draw_theme(rng: np.random.Generator, level: ScreenLevel, split: Split) -> Theme:
    font, em = one_of(rng, families(split)).regular, integer_in(rng, level.font_pixels)
    if rng.random() >= level.variety:
        return Theme(font, em, (236, 236, 236), (210, 214, 222), (222, 222, 226), WHITE)
    tint: Colour = (int(rng.integers(150, 256)), int(rng.integers(150, 256)), int(rng.integers(150, 256)))
    if rng.random() < 0.4:  # dark
        window = mix((34, 36, 42), tint, 0.08)
        return Theme(font, em, window, mix(window, tint, 0.15), mix(window, tint, 0.25), mix(window, BLACK, 0.5))
    window = mix(WHITE, tint, 0.35)
    return Theme(font, em, window, mix(window, BLACK, 0.15), mix(window, BLACK, 0.08), WHITE)


def draw_contents(rng: np.random.Generator, level: ScreenLevel, split: Split) -> tuple[str, list[Element]]:
    """Title and elements without their places; no label stands there twice."""
    count = integer_in(rng, level.elements)
    usual = [USUAL[i] for i in rng.permutation(len(USUAL)) if len(USUAL[i]) <= level.letters]
    free = draw_names(rng, split, count + 1, level.letters, USUAL)
    title, colours = free[0], [name for name in COLOURS if name != "brown"]
    shades = [colours[i] for i in rng.permutation(len(colours))]
    elements: list[Element] = []
    for i in range(count):
        kind: Kind = "button" if i == 0 else one_of(rng, ("button", "button", "field", "box"))
        label = usual.pop() if kind == "button" and rng.random() < USUAL_SHARE else free[i + 1]
        if kind == "button":
            elements.append(Element(kind, label, colour=shades[i % len(shades)] if rng.random() < 0.4 else ""))
        elif kind == "field":
            elements.append(
                Element(kind, label, value=draw_value(rng, one_of(rng, ("word", "count", "code")), split, 6))
            )
        else:
            elements.append(Element(kind, label, is_ticked=bool(rng.random() < 0.5)))
    return title, [elements[i] for i in rng.permutation(count)]


def _widths(element: Element, theme: Theme) -> int:
    """Pixels that an element needs across."""
    label = set_line(theme.face, element.label).width
    if element.kind == "button":
        return label + theme.em
    if element.kind == "box":
        return label + 2 * theme.em
    return label + set_line(theme.face, element.value).width + 2 * theme.em


def place(
    rng: np.random.Generator, layout: str, elements: list[Element], theme: Theme, height: int, width: int
) -> list[Element] | None:
    """The elements with their boxes; None where they do not fit."""
    row, gap, top = theme.row, int(rng.integers(5, 10)), round(1.7 * theme.em)
    needed = [_widths(element, theme) for element in elements]
    left, right, count = 6, width - 6, len(elements)
    columns = {"toolbar": count, "bottom bar": count, "tiles": 2}.get(layout, 1)
    while columns > 1 and columns * (max(needed) + gap) > right - left:
        columns -= 1
    wide = max(needed) + int(rng.integers(0, 20)) if layout != "menu" else right - left
    if columns == 1 and layout == "form":
        wide = max(wide, (right - left) * 3 // 4)
    rows = -(-count // columns)
    between = 0 if layout == "menu" else gap
    deep, across = rows * (row + between), columns * (wide + gap) - gap
    free_y, free_x = height - 4 - top - gap - deep, right - left - across
    if free_y < 0 or free_x < 0:
        return None
    y = (
        top
        + gap
        + (free_y if layout == "bottom bar" else 0 if layout in ("toolbar", "menu") else int(rng.integers(free_y + 1)))
    )
    x = left + (0 if layout in ("toolbar", "menu") else int(rng.integers(free_x + 1)))
    if layout == "sidebar":
        x = left if rng.random() < 0.5 else left + free_x
    placed = []
    for i, element in enumerate(elements):
        box_left, box_top = x + i % columns * (wide + gap), y + i // columns * (row + between)
        placed.append(replace(element, box=(box_left, box_top, box_left + wide, box_top + row)))
    return placed


def paint(canvas: Canvas, title: str, elements: list[Element], theme: Theme) -> Canvas:
    """Paint the window on `canvas`, which has its ground already."""
    face, bar = theme.face, round(1.7 * theme.em)
    canvas.fill((0, 0, canvas.width, bar), theme.bar)

    def write(text: str, x: int, box_top: int, depth: int, colour: Colour) -> None:
        # Capitals sit in the middle: 0.35 em above and below.
        canvas.print(face, set_line(face, text), x, box_top + round(depth / 2 + 0.35 * theme.em), colour)

    write(title, 8, 0, bar, readable_on(theme.bar))
    for element in elements:
        left, top, right, bottom = element.box
        depth, pad = bottom - top, theme.em // 2
        canvas.mark(element.kind, element.box, element.colour)
        if element.kind == "button":
            shade = COLOURS[element.colour] if element.colour else theme.button
            canvas.fill(element.box, shade)
            canvas.frame(element.box, mix(shade, readable_on(shade), 0.4))
            x = left + (right - left - set_line(face, element.label).width) // 2
            write(element.label, x, top, depth, readable_on(shade))
        elif element.kind == "field":
            ink = readable_on(theme.window)
            write(element.label, left, top, depth, ink)
            start = left + set_line(face, element.label).width + pad
            canvas.fill((start, top, right, bottom), theme.field)
            canvas.frame((start, top, right, bottom), mix(theme.field, readable_on(theme.field), 0.5))
            write(element.value, start + pad, top, depth, readable_on(theme.field))
        else:
            side, ink = theme.em, readable_on(theme.window)
            box_top = top + (depth - side) // 2
            canvas.fill((left, box_top, left + side, box_top + side), theme.field)
            canvas.frame((left, box_top, left + side, box_top + side), ink)
            if element.is_ticked:
                low, mid = box_top + side * 0.75, box_top + side * 0.5
                points = (
                    (left + side * 0.2, mid),
                    (left + side * 0.42, low),
                    (left + side * 0.82, box_top + side * 0.22),
                )
                canvas.polyline(points, readable_on(theme.field), max(2.0, side / 7))
            write(element.label, left + side + pad, top, depth, ink)
    return canvas


def ask_about(
    rng: np.random.Generator,
    title: str,
    elements: list[Element],
    level: ScreenLevel,
    split: Split,
    height: int,
    width: int,
) -> tuple[Question, ...]:
    """Questions on the screen, where something is first."""
    buttons = [element for element in elements if element.kind == "button"]
    target = one_of(rng, elements)
    where = ask(
        rng, split, WHERE_QUESTIONS, box_answer(*target.box, height, width), "box", label=target.label, what=target.kind
    )
    rest = [ask(rng, split, TITLE_QUESTIONS, title), ask(rng, split, COUNT_QUESTIONS, str(len(buttons)))]
    for element in elements:
        if element.kind == "field":
            rest.append(ask(rng, split, FIELD_QUESTIONS, element.value, label=element.label))
        elif element.kind == "box":
            rest.append(ask(rng, split, TICKED_QUESTIONS, "yes" if element.is_ticked else "no", label=element.label))
        elif element.colour:
            rest.append(ask(rng, split, COLOUR_QUESTIONS, element.label, colour=element.colour))
    kept = [where, *(rest[i] for i in rng.permutation(len(rest))[: level.questions - 1])]
    if level.boxes:
        others = [element for element in elements if element is not target]
        for i in rng.permutation(len(others))[: level.boxes]:
            of = others[int(i)]
            answer = box_answer(*of.box, height, width)
            kept.append(ask(rng, split, WHERE_QUESTIONS, answer, "box", label=of.label, what=of.kind))
    if rng.random() < ABSENT_SHARE:
        taken = {title, *(element.label for element in elements)}
        (other,) = draw_names(rng, split, 1, level.letters, taken)
        kept.append(ask_absent(rng, split, WHERE_QUESTIONS, label=other, what=one_of(rng, ("button", "field"))))
    return tuple(kept)
