"""Forms: fields of a label and a value, and boxes that are ticked or not, asked by label, also by those not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pocketvlm.synthetic.documents.form_wordings import (
    AMOUNT_QUESTIONS,
    BOX_LABELS,
    BOXES_QUESTIONS,
    FIELD_QUESTIONS,
    LABELS,
    SPOKEN,
    TICK_QUESTIONS,
    TICKS_QUESTIONS,
    WHICH_QUESTIONS,
)
from pocketvlm.synthetic.documents.json_questions import Value, ask_fields, belongs
from pocketvlm.synthetic.drawing.canvas import Canvas, PixelBox, draw_paper, mix
from pocketvlm.synthetic.drawing.fonts import FontFile, families, load_face
from pocketvlm.synthetic.drawing.lines import BLACK, Colour, Line, draw_background, set_line, wear
from pocketvlm.synthetic.levels import THREE_SIZES, PrintedLevel, draw_size, no_room
from pocketvlm.synthetic.sample import Picture, Question, Sample, Split, choose_layout
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
from pocketvlm.synthetic.words.vocabulary import in_split

#: The value right after its label, in a column of its own, in a box, on a line, under its label, in a ruled table; and,
#: held out, on a line above its label, or at the right edge with dots that lead there.
TRAIN_LAYOUTS = ("colon", "columns", "boxes", "lines", "stacked", "table")
HELDOUT_LAYOUTS = ("label below", "dots")
#: Rows of these layouts are two lines high.
_TALL = ("stacked", "label below")

#: Share of labels that are any word of the split instead of one of the lists above.
FREE_LABELS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class FormLevel(PrintedLevel):
    """How hard the forms are.

    Attributes:
        fields: fewest and most fields.
        boxes: fewest and most boxes to tick, where there are any.
        box_share: share of forms with boxes to tick.
        letters: longest word.
        titles: share of forms with a title.
        questions: most questions but those about what is not there and for JSON.
    """

    fields: tuple[int, int]
    boxes: tuple[int, int]
    letters: int
    box_share: float = 0.4
    titles: float = 0.25
    questions: int = 4


FORM_LEVELS: tuple[FormLevel, ...] = (
    FormLevel(sizes=THREE_SIZES[0], fields=(2, 3), boxes=(1, 2), letters=7, font_pixels=(15, 20)),
    FormLevel(
        sizes=THREE_SIZES[1],
        fields=(3, 5),
        boxes=(1, 3),
        letters=8,
        font_pixels=(12, 18),
        titles=0.4,
        questions=5,
        variety=0.5,
        wear=0.4,
    ),
    FormLevel(
        sizes=THREE_SIZES[2],
        fields=(3, 8),
        boxes=(2, 5),
        letters=9,
        font_pixels=(12, 22),
        titles=0.6,
        questions=6,
        variety=0.7,
        wear=0.5,
    ),
)


@dataclass(frozen=True, slots=True)
class Field:
    """A label and what stands there. `is_free` where the label is any word, not one of `LABELS`."""

    label: str
    value: str
    is_free: bool = False

    @property
    def spoken(self) -> str:
        """The label as questions call it."""
        return self.label if self.is_free else SPOKEN.get(self.label, self.label.lower())

    @property
    def wordings(self) -> Wordings:
        """How its value is asked for."""
        is_amount = not self.is_free and LABELS[self.label] == "amount"
        return AMOUNT_QUESTIONS if is_amount else FIELD_QUESTIONS


@dataclass(frozen=True, slots=True)
class TickBox:
    """A box to tick."""

    label: str
    is_ticked: bool


@dataclass(frozen=True, slots=True)
class Form:
    """What a form says."""

    fields: tuple[Field, ...]
    boxes: tuple[TickBox, ...] = ()
    title: str = ""


@dataclass(frozen=True, slots=True)
class FormStyle:
    """How a form looks.

    Attributes:
        label_font, value_font, title_font: of the print.
        em: size of the print, in pixels; `leading` from row to row, in em.
        colon: whether labels end in one: always where the value follows at once, never where the label comes last.
        tick: "cross", "hook" or "full".
        place: where the form stands in the free room, (down, across), 0 to 1.
        breadth: share of the free width that the form takes.
        paper, label_ink, value_ink: colours of the ground and of the print.
    """

    layout: str
    label_font: FontFile
    value_font: FontFile
    title_font: FontFile
    em: int
    leading: float
    colon: bool
    tick: str
    place: tuple[float, float]
    breadth: float
    paper: Colour
    label_ink: Colour = BLACK
    value_ink: Colour = BLACK


def draw_form(rng: np.random.Generator, level: FormLevel, split: Split, task: str = "form") -> Sample:
    """A picture of a form of `level`; values, fonts and layout family are all from `split`."""
    height, width = draw_size(rng, level.sizes)
    layout = choose_layout(rng, split, TRAIN_LAYOUTS, HELDOUT_LAYOUTS)
    paper, ink = draw_paper(rng, level.variety)
    background = draw_background(rng, height, width, paper, level.variety * 0.5)
    for attempt in range(200):
        # What does not fit is drawn anew, and in the end as the smallest form of the level.
        eased = level if attempt < 60 else replace(level, fields=(level.fields[0],) * 2, box_share=0.0, titles=0.0)
        form = draw_contents(rng, eased, split)
        style = _draw_style(rng, eased, split, layout, paper, ink)
        smallest = replace(style, em=level.font_pixels[0], leading=1.45)
        middle = replace(smallest, em=(style.em + smallest.em) // 2)
        canvas = next(filter(None, (paint_form(form, s, background) for s in (style, middle, smallest))), None)
        if canvas:
            break
    else:
        raise no_room("form", level, height, width)
    image = np.ascontiguousarray(wear(rng, canvas.image, level.wear))
    questions = (*ask_about(rng, form, split, level), *ask_fields(rng, split, json_fields(form, split)))
    return Sample((image,), questions, task, (canvas.characters,), layout=layout)


def _draw_style(
    rng: np.random.Generator, level: FormLevel, split: Split, layout: str, paper: Colour, ink: Colour
) -> FormStyle:
    family, other = one_of(rng, families(split)), one_of(rng, families(split))
    typed = other.regular if rng.random() < 0.4 else family.regular
    label_font = family.bold if typed == family.regular and rng.random() < 0.6 else family.regular
    # Forms are often filled in with a blue pen; on dark paper that could not be read.
    pen = (20, 40, 140) if sum(paper) > 500 and rng.random() < 0.25 else ink
    return FormStyle(
        layout=layout,
        label_font=label_font,
        value_font=typed,
        title_font=family.bold,
        em=integer_in(rng, level.font_pixels),
        leading=float(rng.uniform(1.5, 2.3)),
        colon=layout == "colon" or (layout != "label below" and bool(rng.random() < 0.5)),
        tick=one_of(rng, ("cross", "hook", "full")),
        place=(float(rng.random()), float(rng.random())),
        breadth=float(rng.uniform(0.4, 1.0)),
        paper=paper,
        label_ink=ink,
        value_ink=pen,
    )


def draw_contents(rng: np.random.Generator, level: FormLevel, split: Split) -> Form:
    """What a form of `level` says; no label and no value stands in it twice."""
    known = [label for label in LABELS if len(label) <= level.letters]
    fields: list[Field] = []
    values: set[str] = set()
    for i in rng.permutation(len(known))[: integer_in(rng, level.fields)]:
        label, is_free = known[i], bool(rng.random() < FREE_LABELS)
        kind = LABELS[label]
        if is_free:
            (label,) = draw_names(rng, split, 1, level.letters, {*LABELS, *SPOKEN.values(), *(f.label for f in fields)})
        value = ""
        while not value or value in values:
            value = draw_value(rng, kind, split, level.letters)
            if label == "Name" and rng.random() < 0.4:
                value = f"{value} {draw_value(rng, 'word', split, level.letters)}"
        values.add(value)
        fields.append(Field(label, value, is_free))
    boxes: tuple[TickBox, ...] = ()
    if rng.random() < level.box_share:
        count = integer_in(rng, level.boxes)
        taken = {*LABELS, *BOX_LABELS, *(field.label for field in fields)}
        free = draw_names(rng, split, count, level.letters, taken)
        fixed = [BOX_LABELS[i] for i in rng.permutation(len(BOX_LABELS))[:count]]
        labels = [one if rng.random() < 0.5 else other for one, other in zip(free, fixed, strict=True)]
        boxes = tuple(TickBox(label, bool(rng.random() < 0.5)) for label in labels)
    shown = {*(field.label for field in fields), *(box.label for box in boxes)}
    title = " ".join(draw_names(rng, split, int(rng.integers(1, 3)), 7, shown)) if rng.random() < level.titles else ""
    return Form(tuple(fields), boxes, title)


def paint_form(form: Form, style: FormStyle, background: Picture) -> Canvas | None:
    """`form` in `style` on a copy of `background`; None where it does not fit."""
    canvas, em, margin = Canvas(background), style.em, 6
    label_face, value_face = load_face(style.label_font, em), load_face(style.value_font, em)
    title_face = load_face(style.title_font, round(1.2 * em))
    labels = [set_line(label_face, field.label + ":" * style.colon) for field in form.fields]
    values = [set_line(value_face, field.value) for field in form.fields]
    ticks = [set_line(label_face, box.label) for box in form.boxes]
    title = set_line(title_face, form.title)
    step = round(em * (style.leading + (1.35 if style.layout in _TALL else 0.0)))
    tick_step = round(em * style.leading)
    column = max(label.width for label in labels) + em
    widest = max(value.width for value in values)
    if style.layout == "colon":
        needed = max(a.width + b.width for a, b in zip(labels, values, strict=True)) + em // 2
    elif style.layout in _TALL:
        needed = max(widest + em, column)
    elif style.layout == "dots":
        needed = column + widest + 3 * em
    else:
        needed = column + widest + em
    needed = max(needed, title.width)
    rows = _tick_rows(ticks, em, needed := max(needed, *(tick.width + round(1.4 * em) for tick in ticks), 0))
    title_room = round(1.9 * em) if form.title else 0
    free = canvas.height - 2 * margin - title_room - step * len(labels) - tick_step * len(rows)
    width = canvas.width - 2 * margin
    if needed > width or free < 0:
        return None
    width = needed + round((width - needed) * style.breadth)
    left = margin + round((canvas.width - 2 * margin - width) * style.place[1])
    top = margin + round(free * style.place[0])
    canvas.print(title_face, title, left, top + round(1.2 * em), style.label_ink)
    top += title_room
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        box = (left, top + i * step, left + width, top + (i + 1) * step)
        _print_field(canvas, style, label, value, box, column)
    if style.layout == "table":
        edge = mix(style.paper, style.label_ink, 0.5)
        for y in range(top, top + step * len(labels) + 1, step):
            canvas.fill((left - 3, y, left + width + 3, y + 1), edge)
        for x in (left - 3, left + column - em // 2, left + width + 2):
            canvas.fill((x, top, x + 1, top + step * len(labels) + 1), edge)
    top += step * len(labels)
    for k, row in enumerate(rows):
        for i, x in row:
            place = (left + x, top + round(tick_step * (k + 0.55)))
            _print_tick_box(canvas, style, ticks[i], form.boxes[i].is_ticked, place)
    return canvas


def _print_field(canvas: Canvas, style: FormStyle, label: Line, value: Line, box: PixelBox, column: int) -> None:
    """Print a label and a value into `box`; `column` is where values in a column of their own start."""
    left, top, right, bottom = box
    em, faint = style.em, mix(style.paper, style.label_ink, 0.5)
    label_face, value_face = load_face(style.label_font, em), load_face(style.value_font, em)
    baseline = round((top + bottom) / 2 + 0.36 * em)
    label_place, value_place = (left, baseline), (left + column, baseline)
    if style.layout == "colon":
        value_place = (left + label.width + em // 2, baseline)
    elif style.layout == "boxes":
        half = round(min(0.72 * em, (bottom - top) / 2 - 1))
        middle = (top + bottom) // 2
        canvas.frame((left + column - em // 3, middle - half, right, middle + half), faint)
    elif style.layout == "lines":
        line = baseline + round(0.3 * em)
        canvas.fill((left + column - em // 4, line, right, line + 1), faint)
    elif style.layout == "stacked":
        label_place, value_place = (left, top + round(0.95 * em)), (left + em // 2, top + round(2.15 * em))
    elif style.layout == "label below":
        line = top + round(1.25 * em)
        canvas.fill((left, line, right, line + 1), faint)
        label_place, value_place = (left, top + round(2.2 * em)), (left + em // 2, top + round(0.95 * em))
    elif style.layout == "dots":
        value_place = (right - value.width, baseline)
        for x in range(left + label.width + em // 2, value_place[0] - em // 2, max(3, em // 3)):
            canvas.fill((x, baseline - 1, x + 1 + em // 20, baseline + em // 20), style.label_ink)
    canvas.print(label_face, label, *label_place, style.label_ink)
    canvas.print(value_face, value, *value_place, style.value_ink)


def _tick_rows(ticks: Sequence[Line], em: int, width: int) -> list[list[tuple[int, int]]]:
    """Rows of (box, x) that are at most `width` wide."""
    rows: list[list[tuple[int, int]]] = []
    x = width
    for i, tick in enumerate(ticks):
        needed = tick.width + round(1.4 * em)
        if x + needed > width:
            rows.append([])
            x = 0
        rows[-1].append((i, x))
        x += needed + em
    return rows


def _print_tick_box(canvas: Canvas, style: FormStyle, label: Line, is_ticked: bool, place: tuple[int, int]) -> None:
    """A box, ticked or not, and its label, centred on the y of `place`."""
    (x, y), em = place, style.em
    side = round(0.95 * em)
    top = y - side // 2
    canvas.frame((x, top, x + side, top + side), style.label_ink)
    if is_ticked and style.tick == "full":
        canvas.fill((x + 3, top + 3, x + side - 3, top + side - 3), style.value_ink)
    elif is_ticked:
        paths = {
            "cross": (((0.2, 0.2), (0.8, 0.8)), ((0.2, 0.8), (0.8, 0.2))),
            "hook": (((0.18, 0.5), (0.42, 0.8), (0.85, 0.15)),),
        }[style.tick]
        for path in paths:
            points = [(x + a * side, top + b * side) for a, b in path]
            canvas.polyline(points, style.value_ink, max(1.6, 0.13 * em))
    face = load_face(style.label_font, em)
    canvas.print(face, label, x + round(1.4 * em), round(y + 0.36 * em), style.label_ink)


def ask_about(rng: np.random.Generator, form: Form, split: Split, level: FormLevel) -> tuple[Question, ...]:
    """Questions on `form`, a field first. Labels of closed lists are answers as far as they belong to `split`."""
    fields = [form.fields[i] for i in rng.permutation(len(form.fields))]
    pairs = [ask(rng, split, field.wordings, field.value, label=field.spoken) for field in fields]
    rest = pairs[1:4]
    for box in form.boxes:
        rest.append(ask(rng, split, TICK_QUESTIONS, "yes" if box.is_ticked else "no", label=box.label))
    ticked = [box.label for box in form.boxes if box.is_ticked]
    if len(form.boxes) > 1:
        rest.append(ask(rng, split, TICKS_QUESTIONS, str(len(ticked))))
        rest.append(ask(rng, split, BOXES_QUESTIONS, str(len(form.boxes))))
        if len(ticked) == 1 and in_split(ticked[0], split):
            rest.append(ask(rng, split, WHICH_QUESTIONS, ticked[0]))
    if form.title:
        rest.append(ask(rng, split, TITLE_QUESTIONS, form.title))
    kept = [pairs[0], *(rest[i] for i in rng.permutation(len(rest))[: level.questions - 1])]
    if rng.random() < 0.3:
        kept.append(_ask_absent(rng, form, split, level))
    return tuple(kept)


def _ask_absent(rng: np.random.Generator, form: Form, split: Split, level: FormLevel) -> Question:
    """A field or a box that is not there."""
    shown = {*(field.label for field in form.fields), *(box.label for box in form.boxes), *form.title.split()}
    shown |= {part for field in form.fields for part in field.value.split()}
    labels = LABELS if not form.boxes or rng.random() < 0.6 else BOX_LABELS
    label = one_of(rng, [label for label in labels if label not in shown])
    if is_free := bool(rng.random() < 0.3):
        (label,) = draw_names(rng, split, 1, level.letters, {*shown, *LABELS, *BOX_LABELS, *SPOKEN.values()})
    if labels is BOX_LABELS:
        return ask_absent(rng, split, TICK_QUESTIONS, label=label)
    field = Field(label, "", is_free)
    return ask_absent(rng, split, field.wordings, label=field.spoken)


def json_fields(form: Form, split: Split) -> dict[str, Value]:
    """What `form` says, by labels as they are printed; labels of closed lists as far as they may stand in answers."""
    fields: dict[str, Value] = {field.label: field.value for field in form.fields}
    fields |= {box.label: box.is_ticked for box in form.boxes}
    return {label: value for label, value in fields.items() if belongs(label, split)}
