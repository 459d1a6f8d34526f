"""Pages: sizes of print against the views that the slicer makes, places that are free, questions in order, splits."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.config import ImageConfig
from pocketvlm.errors import ConfigError
from pocketvlm.processing.patches.slicing import plan_views
from pocketvlm.synthetic.documents.page_parts import Box, Entry, Print, draw_ink, print_block
from pocketvlm.synthetic.documents.pages import (
    HELDOUT_LAYOUTS,
    LABELS,
    PAGE_LEVELS,
    TRAIN_LAYOUTS,
    ask_about,
    draw_page,
    plan_page,
    print_pixels,
)
from pocketvlm.synthetic.drawing.fonts import ASCII, FontFile
from pocketvlm.synthetic.drawing.lines import BLACK
from pocketvlm.synthetic.drawing.paper import Fonts, Row, set_sheet
from pocketvlm.synthetic.sample import NOT_THERE
from pocketvlm.synthetic.words.vocabulary import in_split
from pocketvlm.views import Size

NANO = ImageConfig(scale_resolution=224)
FILE = FontFile(None, "Regular")
levels = pytest.mark.parametrize("level", PAGE_LEVELS, ids=range(len(PAGE_LEVELS)))


def pages(level, count, split="train", first=0):
    return [plan_page(np.random.default_rng([first, i]), level, split) for i in range(count)]


@levels
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_samples_are_well_formed_and_the_same_seed_gives_the_same_one(level, split):
    for i in range(3):
        sample, again = (draw_page(np.random.default_rng([7, i]), level, split) for _ in range(2))
        assert np.array_equal(sample.image, again.image)
        assert (sample.questions, sample.characters, sample.layout) == (
            again.questions,
            again.characters,
            again.layout,
        )
        height, width, channels = sample.image.shape
        assert (sample.image.dtype, channels, sample.task) == (np.uint8, 3, "page")
        assert sample.image.flags.c_contiguous
        assert sample.layout in (TRAIN_LAYOUTS if split == "train" else HELDOUT_LAYOUTS)
        assert len(sample.questions) == len({q.text for q in sample.questions})
        for character, left, top, right, bottom in sample.characters[0]:
            assert character in ASCII
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height


@levels
def test_slices_are_as_many_as_the_level_says(level):
    for page in pages(level, 12):
        grid = plan_views(Size(height=page.height, width=page.width), NANO).grid
        assert grid is not None
        assert grid == page.cells
        assert math.prod(grid) == level.slices


@levels
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_small_print_is_readable_in_a_slice_and_large_print_in_the_overview(level, split):
    for page in pages(level, 10, split):
        plan = plan_views(Size(height=page.height, width=page.width), NANO)
        overview = math.sqrt(plan.overview.area / (page.height * page.width))
        refined = math.sqrt(plan.refined.area / (page.height * page.width))
        for block, _ in page.small:
            assert 0.94 * level.small_print[0] <= block.sheet.pixels * refined <= 1.06 * level.small_print[1]
            if level.slices == 9:
                assert block.sheet.pixels * overview < 7
        for block, _ in page.large:
            assert block.sheet.pixels * overview >= 0.94 * 13
            assert block.sheet.pixels <= page.large[0][0].sheet.pixels


def test_small_print_mostly_lies_in_one_slice():
    inside = []
    for level in PAGE_LEVELS:
        for page in pages(level, 40):
            rows, columns = page.cells
            for _, place in page.small:
                first, last = (place.left * columns) // page.width, ((place.right - 1) * columns) // page.width
                top, bottom = (place.top * rows) // page.height, ((place.bottom - 1) * rows) // page.height
                inside.append(first == last and top == bottom)
    assert 0.7 <= np.mean(inside) < 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(PAGE_LEVELS), st.sampled_from(["train", "heldout"]))
def test_nothing_lies_on_print(seed, level, split):
    page = plan_page(np.random.default_rng(seed), level, split)
    printed = [place for _, place in (*page.small, *page.large)]
    whole = Box(0, 0, page.width, page.height)
    for i, place in enumerate(printed):
        assert whole.holds(place)
        assert not any(place.meets(other) for other in printed[:i])
        # A panel under a box of small print holds it; any other one stays away.
        assert all(panel.holds(place) or not panel.meets(place) for panel in page.panels)
    assert page.layout in ("box", "caption", "side note", "between") or not any(
        panel.holds(place) for panel in page.panels for place in printed
    )
    assert all(whole.holds(panel) for panel in page.panels)


@levels
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_questions_about_small_print_come_first_and_their_answers_are_printed(level, split):
    for i, page in enumerate(pages(level, 12, split)):
        small = "\n".join(block.text for block, _ in page.small)
        title = page.large[0][0].text
        first, *between, last = ask_about(np.random.default_rng(i), page, split)
        assert first.kind != "absent"
        assert "title" in last.text
        assert last.answer == title
        assert in_split(title, split)
        for question in (first, *between):
            assert "title" not in question.text
            if question.kind == "absent":
                assert question.answer == NOT_THERE
            else:
                assert question.answer in small
                named = {e.name: e.value for block, _ in page.small for e in block.entries if e.name}
                asked = [name for name in named if name in question.text]
                assert [named[name] for name in asked] == [question.answer] * len(asked)
                assert all(in_split(named[name], split) for name in asked)


def test_what_is_said_not_to_be_there_is_not_printed():
    absent = 0
    for i, page in enumerate(pages(PAGE_LEVELS[4], 40)):
        named = {entry.name for block, _ in page.small for entry in block.entries}
        for question in ask_about(np.random.default_rng(i), page, "train"):
            if question.kind == "absent":
                absent += 1
                (name,) = (label.name for label in LABELS if label.name in question.text)
                assert name not in named
    assert 0 < absent < 40


@levels
def test_every_layout_is_drawn(level):
    assert {page.layout for page in pages(level, 50)} == set(TRAIN_LAYOUTS)
    assert {page.layout for page in pages(level, 20, "heldout")} == set(HELDOUT_LAYOUTS)
    assert not set(TRAIN_LAYOUTS) & set(HELDOUT_LAYOUTS)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_printed_characters_are_the_page_s_and_their_boxes_hold_ink(split):
    for i in range(6):
        page = plan_page(np.random.default_rng(i), PAGE_LEVELS[2], split)
        sample = draw_page(np.random.default_rng(i), PAGE_LEVELS[2], split)
        text = "".join(block.text for block, _ in (*page.large, *page.small))
        assert "".join(box.character for box in sample.characters[0]) == "".join(text.split())
        for _, left, top, right, bottom in sample.characters[0]:
            # With a pixel around it: a small dash fills its box.
            rows = slice(math.floor(top) - 1, math.ceil(bottom) + 1)
            columns = slice(math.floor(left) - 1, math.ceil(right) + 1)
            assert np.ptp(sample.image[rows, columns].mean(axis=2)) > 30


@pytest.mark.parametrize("frame", ["", "above", "left", "border"])
def test_a_block_has_ink_in_its_boxes_and_its_frame_only(frame):
    rows = [Row("Serial: K7-204", centred=True), Row("Qg|(#")]
    sheet = set_sheet(rows, Fonts(FILE, FILE), 18, 1.25)
    block = Print(sheet, (Entry("Serial: K7-204"), Entry("Qg|(#")), 12, BLACK, frame=frame)
    place = Box(9, 5, 9 + block.width, 5 + block.height)
    image = np.full((place.bottom + 7, place.right + 3, 3), 255, np.uint8)
    boxes = print_block(image, block, place)
    ink = 255 - image[..., 0]
    for _, left, top, right, bottom in boxes:
        assert ink[top:bottom, left].any()
        assert ink[top:bottom, right - 1].any()
        ink[top:bottom, left:right] = 0
    assert ink.any() == bool(frame)
    ink[place.top : place.bottom, place.left : place.right] = 0
    assert not ink.any()


@given(st.integers(0, 2**32), st.floats(150, 1000), st.integers(13, 20), st.integers(2, 8))
def test_print_is_never_smaller_than_its_share(seed, side, low, more):
    pixels = print_pixels(np.random.default_rng(seed), side, (low, low + more))
    assert low * side / 224 <= pixels
    assert pixels <= math.ceil(max(low * side / 224, (low + more) * side / 224))


@given(st.integers(0, 2**32), st.tuples(*[st.integers(0, 255)] * 3))
def test_ink_differs_from_paper(seed, paper):
    weights = (0.299, 0.587, 0.114)
    ink = draw_ink(np.random.default_rng(seed), paper)
    assert all(0 <= value <= 255 for value in ink)
    assert abs(np.dot(ink, weights) - np.dot(paper, weights)) >= 98  # colours are whole numbers


def test_print_that_cannot_fit_is_refused():
    level = dataclasses.replace(PAGE_LEVELS[0], small_print=(90, 100))
    with pytest.raises(ConfigError, match="does not fit"):
        draw_page(np.random.default_rng(0), level, "train")
