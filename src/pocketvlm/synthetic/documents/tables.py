"""Tables: a cell by its row and column, the highest of a column, how many rows, a heading, and what is not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pocketvlm.synthetic.documents.json_questions import ask_rows
from pocketvlm.synthetic.documents.table_wordings import (
    AMOUNT_QUESTIONS,
    CELL_QUESTIONS,
    COLUMNS_QUESTIONS,
    EXTREME_QUESTIONS,
    HEADING_QUESTIONS,
    MANY_QUESTIONS,
    OWNER_QUESTIONS,
    PLACE_QUESTIONS,
    ROWS_QUESTIONS,
)
from pocketvlm.synthetic.drawing.canvas import Canvas, draw_paper, mix, readable_on
from pocketvlm.synthetic.drawing.fonts import Face, FontFile, families, load_face
from pocketvlm.synthetic.drawing.lines import BLACK, Colour, Line, draw_background, luminance, set_line, wear
from pocketvlm.synthetic.levels import THREE_SIZES, PrintedLevel, draw_size, no_room
from pocketvlm.synthetic.sample import Picture, Question, Sample, Split, choose_layout
from pocketvlm.synthetic.words.values import (
    NUMERIC,
    ORDINALS,
    TITLE_QUESTIONS,
    ValueKind,
    Wordings,
    ask,
    ask_absent,
    draw_names,
    draw_value,
    integer_in,
    one_of,
)
from pocketvlm.synthetic.words.vocabulary import in_split

#: All rules, rules between rows, every other row shaded, no rules, a dark head, a frame; and, held out, every other
#: column shaded, and the three heavy rules of books.
TRAIN_LAYOUTS = ("grid", "rows", "zebra", "plain", "dark head", "frame")
HELDOUT_LAYOUTS = ("shaded columns", "book")

HEADINGS: dict[str, ValueKind] = {
    **dict.fromkeys(("Price", "Cost", "Fee", "Pay", "Rent", "Total", "Tax"), "amount"),
    **dict.fromkeys(("Qty", "Stock", "Count", "Age", "Score", "Points", "Seats", "Page", "Room", "Weight"), "count"),
    **dict.fromkeys(("City", "Town", "Type", "Place", "Owner", "Colour"), "word"),
    **dict.fromkeys(("Code", "Ref"), "code"),
    **dict.fromkeys(("Share", "Rate"), "percent"),
    **dict.fromkeys(("Time", "Start"), "time"),
}
#: Headings that "how many" can be asked with.
PLURAL_HEADINGS = ("Points", "Seats")
NAME_HEADINGS = ("Name", "Item", "Team", "Plant", "Shop", "Person", "Product", "Animal")

#: Share of headings that are any word of the split instead of one of `HEADINGS`.
FREE_HEADINGS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLevel(PrintedLevel):
    """How hard the tables are.

    Attributes:
        columns: fewest and most columns, that of the names included.
        rows: fewest and most rows below the headings.
        letters: longest name, heading or word.
        titles: share of tables with a title.
        questions: most questions but those about what is not there and for JSON.
        json: whether some tables are asked for as JSON.
    """

    columns: tuple[int, int]
    rows: tuple[int, int]
    letters: int
    titles: float = 0.2
    questions: int = 4
    json: bool = True


TABLE_LEVELS: tuple[TableLevel, ...] = (
    TableLevel(sizes=THREE_SIZES[0], columns=(2, 2), rows=(2, 3), letters=6, font_pixels=(15, 21)),
    TableLevel(
        sizes=THREE_SIZES[1],
        columns=(2, 3),
        rows=(3, 5),
        letters=7,
        font_pixels=(12, 20),
        titles=0.3,
        questions=5,
        variety=0.5,
        wear=0.4,
    ),
    TableLevel(
        sizes=THREE_SIZES[2],
        columns=(2, 5),
        rows=(2, 8),
        letters=8,
        font_pixels=(12, 22),
        titles=0.4,
        questions=6,
        json=False,
        variety=0.7,
        wear=0.5,
    ),
)


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and the cells below it. `is_free` where the heading is any word, not one of `HEADINGS`."""

    heading: str
    kind: ValueKind
    cells: tuple[str, ...]
    is_free: bool = False

    @property
    def spoken(self) -> str:
        """The heading as questions call it."""
        return self.heading if self.is_free else self.heading.lower()

    @property
    def wordings(self) -> Wordings:
        """How its cells are asked for."""
        if self.is_free:
            return CELL_QUESTIONS
        if self.kind == "amount":
            return AMOUNT_QUESTIONS
        return MANY_QUESTIONS if self.heading in PLURAL_HEADINGS else CELL_QUESTIONS

    @property
    def numbers(self) -> tuple[float, ...]:
        """What numeric cells stand for."""
        return tuple(float(cell.strip("$%")) for cell in self.cells)


@dataclass(frozen=True, slots=True)
class Table:
    """What a table says: a column of names, then the others."""

    name_heading: str
    names: tuple[str, ...]
    columns: tuple[Column, ...]
    title: str = ""

    @property
    def headings(self) -> tuple[str, ...]:
        return (self.name_heading, *(column.heading for column in self.columns))

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        return tuple(zip(self.names, *(column.cells for column in self.columns), strict=True))


@dataclass(frozen=True, slots=True)
class TableStyle:
    """How a table looks.

    Attributes:
        font, head_font: of the cells, and of headings and title.
        em: size of the print, in pixels; `leading` of a row, in em; `padding` to both sides of a cell, in em.
        aligns: of each column: 0 left, 0.5 in the middle, 1 right.
        spread: share of the free width that the columns take.
        place: where the table stands in the free room, (down, across), 0 to 1.
        paper, ink, accent: colours of the ground, of print and rules, and of shaded parts.
    """

    layout: str
    font: FontFile
    head_font: FontFile
    em: int
    leading: float
    padding: float
    aligns: tuple[float, ...]
    spread: float
    place: tuple[float, float]
    paper: Colour
    ink: Colour = BLACK
    accent: Colour = BLACK


def draw_table(rng: np.random.Generator, level: TableLevel, split: Split, task: str = "table") -> Sample:
    """A picture of a table of `level`; words, numbers, fonts and layout family are all from `split`."""
    height, width = draw_size(rng, level.sizes)
    layout = choose_layout(rng, split, TRAIN_LAYOUTS, HELDOUT_LAYOUTS)
    paper, ink = draw_paper(rng, level.variety)
    background = draw_background(rng, height, width, paper, level.variety * 0.5)
    for attempt in range(200):
        # What does not fit is drawn anew, and in the end as the smallest table of the level.
        eased = level if attempt < 60 else replace(level, columns=(2, 2), rows=(level.rows[0],) * 2, titles=0.0)
        table = draw_contents(rng, eased if attempt < 120 else replace(eased, letters=4), split)
        family = one_of(rng, families(split))
        accent = tuple(int(v) for v in rng.integers(20, 190, 3))
        style = TableStyle(
            layout=layout,
            font=family.regular,
            head_font=family.bold if rng.random() < 0.7 else family.regular,
            em=integer_in(rng, level.font_pixels),
            leading=float(rng.uniform(1.4, 2.1)),
            padding=float(rng.uniform(0.35, 0.8)),
            aligns=(
                0.0 if rng.random() < 0.9 else 0.5,
                *(one_of(rng, (1.0, 1.0, 0.5) if c.kind in NUMERIC else (0.0, 0.0, 0.5)) for c in table.columns),
            ),
            spread=float(rng.random()) if rng.random() < 0.7 else 0.0,
            place=(float(rng.random()), float(rng.random())),
            paper=paper,
            ink=ink,
            accent=(accent[0], accent[1], accent[2]),
        )
        smallest = replace(style, em=level.font_pixels[0], leading=1.4, padding=0.35)
        middle = replace(smallest, em=(style.em + smallest.em) // 2)
        canvas = next(filter(None, (paint_table(table, s, background) for s in (style, middle, smallest))), None)
        if canvas:
            break
    else:
        raise no_room("table", level, height, width)
    image = np.ascontiguousarray(wear(rng, canvas.image, level.wear))
    questions = ask_about(rng, table, split, level)
    if level.json:
        rows = [dict(zip(table.headings, row, strict=True)) for row in table.rows]
        questions = (*questions, *ask_rows(rng, split, rows))
    return Sample((image,), questions, task, (canvas.characters,), layout=layout)


def draw_contents(rng: np.random.Generator, level: TableLevel, split: Split) -> Table:
    """What a table of `level` says; no name and no heading stands in it twice, nor a value in its column."""
    count, rows = integer_in(rng, level.columns) - 1, integer_in(rng, level.rows)
    name_heading = one_of(rng, [heading for heading in NAME_HEADINGS if len(heading) <= level.letters])
    title = (
        " ".join(draw_names(rng, split, int(rng.integers(1, 3)), level.letters)) if _happens(rng, level.titles) else ""
    )
    known = [heading for heading in HEADINGS if len(heading) <= level.letters]
    chosen = [known[i] for i in rng.permutation(len(known))[:count]]
    used = {name_heading, *chosen}
    columns: list[Column] = []
    for heading in chosen:
        kind, is_free = HEADINGS[heading], _happens(rng, FREE_HEADINGS)
        if is_free:
            (heading,) = draw_names(rng, split, 1, level.letters, used | set(HEADINGS))
            used.add(heading)
        sign = "$" if kind == "amount" and _happens(rng, 0.3) else ""
        cells: list[str] = []
        while len(cells) < rows:
            cell = sign + draw_value(rng, kind, split, level.letters)
            if cell not in cells:
                cells.append(cell)
        columns.append(Column(heading, kind, tuple(cells), is_free))
    words = {cell for column in columns for cell in column.cells if column.kind == "word"}
    names = draw_names(rng, split, rows, level.letters, used | words)
    return Table(name_heading, names, tuple(columns), title)


def _happens(rng: np.random.Generator, share: float) -> bool:
    return bool(rng.random() < share)


def paint_table(table: Table, style: TableStyle, background: Picture) -> Canvas | None:
    """`table` in `style` on a copy of `background`; None where it does not fit."""
    canvas, em, margin = Canvas(background), style.em, 5
    face, head_face = load_face(style.font, em), load_face(style.head_font, em)
    title_face = load_face(style.head_font, round(1.15 * em))
    head = [set_line(head_face, heading) for heading in table.headings]
    body = [[set_line(face, cell) for cell in row] for row in table.rows]
    title = set_line(title_face, table.title)
    title_room = round(1.7 * em) if table.title else 0
    row_height = round(style.leading * em)
    widths = [max(row[i].width for row in (head, *body)) + round(2 * style.padding * em) for i in range(len(head))]
    height = title_room + row_height * (len(body) + 1)
    free = canvas.width - 2 * margin - sum(widths), canvas.height - 2 * margin - height
    if min(free) < 0 or title.width > canvas.width - 2 * margin:
        return None
    share = round(free[0] * style.spread / len(widths))
    widths = [width + share for width in widths]
    left = margin + round((canvas.width - 2 * margin - sum(widths)) * style.place[1])
    top = margin + round(free[1] * style.place[0]) + title_room
    edges = [left + sum(widths[:i]) for i in range(len(widths) + 1)]
    levels = [top + row_height * i for i in range(len(body) + 2)]
    canvas.print(
        title_face,
        title,
        min(left, canvas.width - margin - title.width),
        top - round(0.65 * em),
        style.ink,
    )
    head_ink = _paint_shades_and_rules(canvas, style, edges, levels)
    for i, row in enumerate((head, *body)):
        baseline = round(levels[i] + row_height / 2 + 0.36 * em)
        _print_row(canvas, style, (face if i else head_face), row, edges, baseline, style.ink if i else head_ink)
    return canvas


def _print_row(
    canvas: Canvas,
    style: TableStyle,
    face: Face,
    row: Sequence[Line],
    edges: Sequence[int],
    baseline: int,
    ink: Colour,
) -> None:
    padding = style.padding * style.em
    for line, start, end, align in zip(row, edges[:-1], edges[1:], style.aligns, strict=True):
        x = start + padding + (end - start - 2 * padding - line.width) * align
        canvas.print(face, line, min(max(round(x), start + 1), end - line.width - 1), baseline, ink)


def _paint_shades_and_rules(canvas: Canvas, style: TableStyle, edges: Sequence[int], levels: Sequence[int]) -> Colour:
    """What stands behind the print; returns the colour of the headings' print."""
    left, right, top, bottom = edges[0], edges[-1], levels[0], levels[-1]
    faint, strong = mix(style.paper, style.ink, 0.45), mix(style.paper, style.ink, 0.9)
    # Far from the ink, whatever the accent: cells must stay readable.
    shade = mix(style.paper, style.accent, 0.25 if luminance(style.paper) > 120 else 0.15)

    def rules(places: Sequence[int], colour: Colour, thickness: int = 1) -> None:
        for y in places:
            canvas.fill((left, y, right, y + thickness), colour)

    head_ink = style.ink
    if style.layout == "grid":
        rules(levels, faint)
        for x in edges:
            canvas.fill((x, top, x + 1, bottom + 1), faint)
    elif style.layout == "rows":
        rules(levels[1:], faint)
    elif style.layout == "zebra":
        for i in range(1, len(levels) - 1, 2):
            canvas.fill((left, levels[i], right, levels[i + 1]), shade)
        rules(levels[1:2], strong)
    elif style.layout == "dark head":
        canvas.fill((left, top, right, levels[1]), style.accent)
        head_ink = readable_on(style.accent)
        rules(levels[2:], faint)
    elif style.layout == "frame":
        canvas.frame((left, top, right, bottom + 1), strong)
        rules(levels[1:2], strong)
    elif style.layout == "shaded columns":
        for i in range(0, len(edges) - 1, 2):
            canvas.fill((edges[i], top, edges[i + 1], bottom), shade)
    elif style.layout == "book":
        rules((top, bottom), strong, 2)
        rules(levels[1:2], strong)
    return head_ink


def ask_about(rng: np.random.Generator, table: Table, split: Split, level: TableLevel) -> tuple[Question, ...]:
    """Questions on `table`, a cell first. Closed lists of headings are asked for as far as they belong to `split`."""
    names, columns, thing = table.names, table.columns, table.name_heading.lower()
    places = [(i, k) for i in range(len(names)) for k in range(len(columns))]
    order = [places[i] for i in rng.permutation(len(places))]

    def ask_cell(row: int, column: Column) -> Question:
        return ask(rng, split, column.wordings, column.cells[row], heading=column.spoken, name=names[row])

    lead = ask_cell(order[0][0], columns[order[0][1]])
    rest = [ask_cell(row, columns[k]) for row, k in order[1:3]]
    row, k = order[-1]
    rest.append(
        ask(rng, split, OWNER_QUESTIONS, names[row], thing=thing, heading=columns[k].spoken, cell=columns[k].cells[row])
    )
    for column in columns:
        if column.kind in NUMERIC:
            extreme, pick = one_of(rng, (("highest", np.argmax), ("highest", np.argmax), ("lowest", np.argmin)))
            answer = names[int(pick(column.numbers))]
            rest.append(ask(rng, split, EXTREME_QUESTIONS, answer, thing=thing, extreme=extreme, heading=column.spoken))
    rest.append(ask(rng, split, ROWS_QUESTIONS, str(len(names))))
    if level.columns[0] < level.columns[1]:
        rest.append(ask(rng, split, COLUMNS_QUESTIONS, str(len(table.headings))))
    i = int(rng.integers(len(names)))
    ordinal = "last" if i == len(names) - 1 and _happens(rng, 0.6) else ORDINALS[i]
    rest.append(ask(rng, split, PLACE_QUESTIONS, names[i], ordinal=ordinal, thing=thing))
    i = int(rng.integers(len(table.headings)))
    if in_split(table.headings[i], split):
        rest.append(ask(rng, split, HEADING_QUESTIONS, table.headings[i], ordinal=ORDINALS[i]))
    if table.title:
        rest.append(ask(rng, split, TITLE_QUESTIONS, table.title))
    kept = [lead, *(rest[i] for i in rng.permutation(len(rest))[: level.questions - 1])]
    if _happens(rng, 0.3):
        kept.append(_ask_absent(rng, table, split, level))
    return tuple(kept)


def _ask_absent(rng: np.random.Generator, table: Table, split: Split, level: TableLevel) -> Question:
    """A cell of a row or, less often, of a column that is not there."""
    if _happens(rng, 0.7):
        shown = {*table.names, *table.headings, *table.title.split(), *(c for col in table.columns for c in col.cells)}
        (name,) = draw_names(rng, split, 1, level.letters, shown)
        column = one_of(rng, table.columns)
        return ask_absent(rng, split, column.wordings, heading=column.spoken, name=name)
    taken = {*table.headings, *table.title.split()}
    heading = one_of(rng, [heading for heading in HEADINGS if heading not in taken])
    column = Column(heading, HEADINGS[heading], ())
    return ask_absent(rng, split, column.wordings, heading=column.spoken, name=one_of(rng, table.names))
