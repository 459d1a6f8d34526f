"""Tables and forms: answers that follow from what is printed, print where its boxes say, disjoint splits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from helpers.wordings import read
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.errors import ConfigError, MissingExtraError
from pocketvlm.synthetic.documents import forms, tables
from pocketvlm.synthetic.documents.forms import FORM_LEVELS, Field, Form, FormStyle, TickBox, draw_form, paint_form
from pocketvlm.synthetic.documents.tables import TABLE_LEVELS, Column, Table, TableStyle, draw_table, paint_table
from pocketvlm.synthetic.drawing.fonts import FontFile
from pocketvlm.synthetic.drawing.lines import BLACK, WHITE
from pocketvlm.synthetic.sample import NOT_THERE
from pocketvlm.synthetic.words.values import NUMERIC, ORDINALS
from pocketvlm.synthetic.words.vocabulary import in_split

FONT = FontFile(None, "Regular")
SPLITS = ("train", "heldout")
TASKS = {"table": (tables, draw_table, TABLE_LEVELS), "form": (forms, draw_form, FORM_LEVELS)}
CASES = [(task, level) for task in TASKS for level in range(3)]
#: Questions whose answer is counted or seen, not printed.
UNPRINTED = ("ROWS", "COLUMNS", "TICK", "TICKS", "BOXES")
PAPER = np.full((224, 224, 3), 255, np.uint8)


def layouts(task, split):
    return TASKS[task][0].TRAIN_LAYOUTS if split == "train" else TASKS[task][0].HELDOUT_LAYOUTS


def drawn(task, seed, level, split):
    _, draw, levels = TASKS[task]
    try:
        return draw(np.random.default_rng([3, seed]), levels[level], split)
    except MissingExtraError:
        pytest.skip("no held-out font is installed")


def group_of(module, text):
    return read(module, text).group.removesuffix("_QUESTIONS")


def printed(characters):
    return "".join(box.character for box in characters)


@pytest.mark.parametrize(("task", "level"), CASES)
@pytest.mark.parametrize("split", SPLITS)
def test_pictures_are_well_formed_and_reproducible(task, level, split):
    found = set()
    for i in range(20):
        sample, again = (drawn(task, i, level, split) for _ in range(2))
        assert np.array_equal(sample.image, again.image)
        assert (sample.questions, sample.characters) == (again.questions, again.characters)
        height, width, _ = sample.image.shape
        assert sample.task == task
        assert sample.image.dtype == np.uint8
        assert sample.image.flags.c_contiguous
        for character, left, top, right, bottom in sample.characters[0]:
            assert character.isascii()
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
        assert len({question.text for question in sample.questions}) == len(sample.questions) >= 2
        found.add(sample.layout)
    assert found <= set(layouts(task, split))
    assert len(found) > 1


@pytest.mark.parametrize("task", TASKS)
def test_the_layouts_of_the_splits_are_disjoint(task):
    assert not set(layouts(task, "train")) & set(layouts(task, "heldout"))


@pytest.mark.parametrize(("task", "level"), CASES)
def test_every_layout_draws(task, level, monkeypatch):
    for layout in (*layouts(task, "train"), *layouts(task, "heldout")):
        monkeypatch.setattr(TASKS[task][0], "choose_layout", lambda *_, layout=layout: layout)
        for i in range(2):
            assert drawn(task, i, level, "train").layout == layout


@pytest.mark.parametrize("task", TASKS)
def test_the_first_level_fits_one_view_in_large_print(task):
    for i in range(20):
        height, width, _ = drawn(task, i, 0, "train").image.shape
        assert height * width <= 224 * 224
    assert TASKS[task][2][0].font_pixels[0] >= 15


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_printed_and_belong_to_the_split(task, split):
    for i in range(40):
        sample = drawn(task, i, 2, split)
        text = printed(sample.characters[0])
        for question, answer, kind in sample.questions:
            if kind == "absent":
                assert answer == NOT_THERE
            elif kind != "json" and group_of(TASKS[task][0], question) not in UNPRINTED:
                assert answer.replace(" ", "") in text, (question, answer)
                assert in_split(answer, split)


@pytest.mark.parametrize("task", TASKS)
def test_print_is_where_its_boxes_say(task):
    _, draw, levels = TASKS[task]
    level = dataclasses.replace(levels[0], variety=0.0, wear=0.0)
    for i in range(15):
        sample = draw(np.random.default_rng([4, i]), level, "train")
        for _, left, top, right, bottom in sample.characters[0]:
            around = sample.image[top - 1 : bottom + 1, left - 1 : right + 1].astype(int)
            ring = np.concatenate([around[0], around[-1], around[:, 0], around[:, -1]])
            ink = np.abs(around - np.median(ring, axis=0)).max(axis=2)[1:-1, 1:-1]
            assert all(edge.any() for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))
            assert ink.max() > 60


TABLE = Table(
    "Item",
    ("Oak", "Elm", "Fir"),
    (Column("Price", "amount", ("1.50", "20.00", "3.75")), Column("Pond", "word", ("Tea", "Sun", "Cup"), is_free=True)),
)


def table_style(layout):
    return TableStyle(layout, FONT, FONT, 15, 1.6, 0.5, (0.0, 1.0, 0.5), 0.5, (0.3, 0.6), WHITE, BLACK, (60, 90, 140))


@pytest.mark.parametrize("layout", [*tables.TRAIN_LAYOUTS, *tables.HELDOUT_LAYOUTS])
def test_a_table_is_printed_row_by_row_and_column_by_column(layout):
    canvas = paint_table(TABLE, table_style(layout), PAPER)
    assert printed(canvas.characters) == "ItemPricePondOak1.50TeaElm20.00SunFir3.75Cup"
    starts = np.cumsum([0, *(len(cell) for row in (TABLE.headings, *TABLE.rows) for cell in row)])
    firsts = np.array([canvas.characters[i].left for i in starts[:-1]]).reshape(4, 3)
    lasts = np.array([canvas.characters[i - 1].right for i in starts[1:]]).reshape(4, 3)
    assert (lasts[:, :-1].max(axis=0) < firsts[:, 1:].min(axis=0)).all()
    assert np.ptp(lasts[1:, 1]) <= 1  # amounts are set flush right
    assert np.ptp(firsts[1:, 0]) <= 1


def test_a_plain_table_has_no_ink_but_its_print():
    canvas = paint_table(TABLE, table_style("plain"), PAPER)
    rest = canvas.image.copy()
    for _, left, top, right, bottom in canvas.characters:
        rest[top:bottom, left:right] = 255
    assert (rest == 255).all()


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(TABLE_LEVELS), st.sampled_from(SPLITS))
def test_answers_follow_from_the_table(seed, level, split):
    rng = np.random.default_rng(seed)
    table = tables.draw_contents(rng, level, split)
    assert len(set(table.names)) == len(table.names)
    assert len(set(table.headings)) == len(table.headings)
    thing = table.name_heading.lower()
    for text, answer, kind in tables.ask_about(rng, table, split, level):
        group, words = group_of(tables, text), read(tables, text).words
        columns = {column.spoken: column for column in table.columns}
        column = columns.get(words.get("heading"))
        assert words.get("thing", thing) == thing
        if kind == "absent":
            assert words["name"] not in table.names or column is None
        elif group == "ROWS":
            assert answer == str(len(table.names))
        elif group == "COLUMNS":
            assert answer == str(len(table.columns) + 1)
        elif group == "HEADING":
            assert answer == table.headings[ORDINALS.index(words["ordinal"])]
        elif group == "TITLE":
            assert answer == table.title
        elif group == "EXTREME":
            assert column.kind in NUMERIC
            cells = [float(cell.strip("$%")) for cell in column.cells]
            best = max(cells) if words["extreme"] == "highest" else min(cells)
            assert cells.count(best) == 1
            assert answer == table.names[cells.index(best)]
        elif group == "OWNER":
            assert answer == table.names[column.cells.index(words["cell"])]
        elif group == "PLACE":
            assert answer == table.names[-1 if words["ordinal"] == "last" else ORDINALS.index(words["ordinal"])]
        else:
            assert group in ("CELL", "AMOUNT", "MANY")
            assert answer == column.cells[table.names.index(words["name"])]


FORM = Form(
    (Field("Name", "Oak Elm"), Field("No.", "37")), (TickBox("Paid", True), TickBox("Gift", False)), title="Pine"
)


def form_style(layout, tick="cross"):
    return FormStyle(layout, FONT, FONT, FONT, 15, 1.7, False, tick, (0.2, 0.4), 0.8, WHITE)


@pytest.mark.parametrize("layout", [*forms.TRAIN_LAYOUTS, *forms.HELDOUT_LAYOUTS])
def test_a_form_is_printed_field_by_field(layout):
    text = printed(paint_form(FORM, form_style(layout), PAPER).characters)
    order = "OakElmName37No." if layout == "label below" else "NameOakElmNo.37"
    assert text == f"Pine{order}PaidGift"


@pytest.mark.parametrize("tick", ["cross", "hook", "full"])
def test_only_ticked_boxes_have_ink_inside(tick):
    canvas = paint_form(FORM, form_style("colon", tick), PAPER)
    for label, is_ticked in (("Paid", True), ("Gift", False)):
        at = printed(canvas.characters).index(label)
        first = canvas.characters[at]
        middle = (int(first.top) + int(first.bottom)) // 2
        # The box stands 1.4 em left of its label and is 0.95 em wide; its inner middle is what a tick crosses.
        left = int(first.left) - 21
        inside = canvas.image[middle - 3 : middle + 4, left + 3 : left + 11]
        assert (inside < 128).any() == is_ticked


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(FORM_LEVELS), st.sampled_from(SPLITS))
def test_answers_follow_from_the_form(seed, level, split):
    rng = np.random.default_rng(seed)
    form = forms.draw_contents(rng, level, split)
    fields = {field.spoken: field.value for field in form.fields}
    boxes = {box.label: box.is_ticked for box in form.boxes}
    assert len(fields) == len(form.fields)
    assert len(boxes) == len(form.boxes)
    assert not set(fields) & set(boxes)
    for text, answer, kind in forms.ask_about(rng, form, split, level):
        group, label = group_of(forms, text), read(forms, text).words.get("label")
        if kind == "absent":
            assert label not in (boxes if group == "TICK" else fields)
        elif group == "TICKS":
            assert answer == str(sum(boxes.values()))
        elif group == "BOXES":
            assert answer == str(len(boxes))
        elif group == "WHICH":
            assert [label for label, is_ticked in boxes.items() if is_ticked] == [answer]
        elif group == "TICK":
            assert answer == ("yes" if boxes[label] else "no")
        elif group == "TITLE":
            assert answer == form.title
        else:
            assert group in ("FIELD", "AMOUNT")
            assert answer == fields[label]
            assert in_split(answer, split)


@pytest.mark.parametrize("task", TASKS)
def test_about_a_quarter_ask_for_what_is_not_there(task):
    absent = sum(any(q.kind == "absent" for q in drawn(task, i, 0, "train").questions) for i in range(150))
    assert 25 <= absent <= 70


@pytest.mark.parametrize("task", TASKS)
def test_what_cannot_fit_is_refused(task):
    _, draw, levels = TASKS[task]
    level = dataclasses.replace(levels[0], sizes=(((40, 40), (40, 40)),))
    with pytest.raises(ConfigError, match="fits into 40 x 40"):
        draw(np.random.default_rng(0), level, "train")
