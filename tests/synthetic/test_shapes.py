"""Pictures of shapes: reproducible, answers that follow from the pixels and from the figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers.figure_checks import assert_same, assert_well_formed, blobs, box_in_pixels
from helpers.wordings import read
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.errors import ConfigError
from pocketvlm.synthetic.drawing.figures import COLOURS, SHAPES, Figure, Look, plural
from pocketvlm.synthetic.sample import BOX_STEP, NOT_THERE
from pocketvlm.synthetic.scenes import shapes
from pocketvlm.synthetic.scenes.arrangements import HELDOUT_LAYOUTS, LAYOUTS, TRAIN_LAYOUTS
from pocketvlm.synthetic.scenes.shapes import SHAPE_LEVELS, ask_about, corner_of, draw_figures, draw_shapes, relation

CLEAN = replace(SHAPE_LEVELS[0], variety=0.0, wear=0.0)
PLURALS = {plural(shape): shape for shape in SHAPES}


def draw(seed, level=CLEAN, split="train"):
    return draw_shapes(np.random.default_rng(seed), level, split)


@pytest.mark.parametrize("level", SHAPE_LEVELS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_samples_are_well_formed_and_reproducible(level, split):
    layouts = set()
    for i in range(25):
        sample = draw((4, i), level, split)
        assert_well_formed(sample, "shapes")
        assert sample.image.shape[:2] in level.sizes
        assert len(sample.questions) <= level.questions + 1
        layouts.add(sample.layout)
        if i < 3:
            assert_same(sample, draw((4, i), level, split))
    assert layouts <= set(TRAIN_LAYOUTS if split == "train" else HELDOUT_LAYOUTS)
    assert len(layouts) >= 2
    assert not np.array_equal(draw((4, 0), level, split).image, draw((4, 1), level, split).image)


def test_the_first_level_is_one_small_picture_of_large_shapes():
    for height, width in SHAPE_LEVELS[0].sizes:
        assert height % 56 == width % 56 == 0
        assert 112 <= min(height, width) <= max(height, width) <= 224
    assert SHAPE_LEVELS[0].small[0] >= 34


@pytest.mark.parametrize("level", SHAPE_LEVELS)
def test_small_and_large_are_clearly_apart(level):
    assert level.large[0] >= 1.45 * level.small[1]


def test_answers_follow_from_the_pixels():
    """Counts, colours and boxes, read back from patches of ink."""
    checked = Counter()
    for i in range(30):
        sample = draw((8, i))
        height, width = sample.image.shape[:2]
        patches = blobs(sample.image)
        colours = Counter(colour for _, colour in patches)
        for text, answer, kind in sample.questions:
            group, _, words, _ = read(shapes, text)
            if group == "COUNT_QUESTIONS":
                assert int(answer) == len(patches)
                checked["count"] += 1
            elif group == "COUNT_COLOUR_QUESTIONS":
                assert int(answer) == colours[words["name"]]
                checked["colour count"] += 1
            elif kind == "box":
                box = box_in_pixels(answer, height, width)
                assert min(
                    np.abs(np.subtract(box, patch)).max() for patch, _ in patches
                ) <= 1.5 + BOX_STEP / 2000 * max(height, width)
                checked["box"] += 1
            elif group == "COLOUR_QUESTIONS" and kind == "text":
                assert colours[answer] >= 1
                checked["colour"] += 1
            elif group == "SHAPE_QUESTIONS" and kind == "text":
                assert colours[words["name"]] == 1
                checked["shape"] += 1
    assert set(checked) == {"count", "colour count", "box", "colour", "shape"}


def found(figures, name):
    """The figures that `name` ("star", "red", "red star") may mean."""
    words = name.split()
    return [f for f in figures if set(words) <= {f.shape, f.colour}]


def only(figures, name):
    (figure,) = found(figures, name)
    return figure


def check(question, figures, height, width):
    """Whether the answer is that of a second look at `figures`; returns what was asked for."""
    text, answer, kind = question
    group, _, words, _ = read(shapes, text)
    name = words.get("name", "")
    if group.startswith("COUNT"):
        shape, colour = PLURALS.get(name), name if group == "COUNT_COLOUR_QUESTIONS" else ""
        wanted = [f for f in figures if (not colour or f.colour == colour) and (not shape or f.shape == shape)]
        assert int(answer) == len(wanted)
        return "count"
    if group == "EXISTS_QUESTIONS":
        assert answer == ("yes" if found(figures, name.split(" ", 1)[1]) else "no")
        return "exists"
    if group == "COLOUR_QUESTIONS":
        assert answer == (NOT_THERE if kind == "absent" else only(figures, name).colour)
        assert kind != "absent" or not found(figures, name)
        return "colour"
    if group == "SHAPE_QUESTIONS":
        assert answer == (NOT_THERE if kind == "absent" else only(figures, name).shape)
        assert kind != "absent" or not found(figures, name)
        return "shape"
    if group == "RELATION_QUESTIONS":
        one, other = only(figures, words["first"]), only(figures, words["second"])
        dx, dy = np.subtract(one.centre, other.centre)
        truth = {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}[words["relation"]]
        assert answer == ("yes" if truth else "no")
        return "relation"
    if group == "NEIGHBOUR_QUESTIONS":
        other = only(figures, name)
        there = [f for f in figures if words["relation"] in relation(f, other)]
        assert [f.shape for f in there] == [answer]
        return "neighbour"
    if group == "SIZE_QUESTIONS":
        first, second = only(figures, words["first"]), only(figures, words["second"])
        chosen, left = (first, second) if answer == first.shape else (second, first)
        assert chosen.shape == answer
        assert (chosen.look.pixels > left.look.pixels) == (words["size"] == "larger")
        return "size"
    if group == "IN_CORNER_QUESTIONS":
        assert [f.shape for f in figures if corner_of(f, height, width) == words["place"]] == [answer]
        return "in corner"
    if kind == "absent":
        assert not found(figures, name), text
        return "absent"
    x, y = only(figures, name).centre
    if kind == "box":
        difference = np.subtract(box_in_pixels(answer, height, width), only(figures, name).box)
        assert np.abs(difference).max() <= BOX_STEP / 2000 * max(height, width) + 1e-6
        return "box"
    sides = answer.split()
    assert sides
    assert ("left" in sides) <= (x < 0.42 * width)
    assert ("right" in sides) <= (x > 0.58 * width)
    assert ("top" in sides) <= (y < 0.42 * height)
    assert ("bottom" in sides) <= (y > 0.58 * height)
    return "corner" if len(sides) == 2 else "side"


def test_answers_follow_from_the_figures():
    asked = Counter()
    for i in range(240):
        rng = np.random.default_rng((9, i))
        level = SHAPE_LEVELS[i % 3]
        height, width = level.sizes[i % len(level.sizes)]
        figures = draw_figures(rng, level, LAYOUTS[i % len(LAYOUTS)], tuple(COLOURS), height, width)
        for question in ask_about(rng, figures, level, tuple(COLOURS), height, width, "heldout"):
            topic = check(question, figures, height, width)
            asked["absent " + topic if question.kind == "absent" else topic] += 1
    topics = "count exists colour shape relation neighbour size in_corner box corner side".replace("_", " ")
    assert set(topics.split()) <= set(" ".join(asked).split())
    assert asked["absent absent"] > 10
    assert asked["absent colour"] > 5


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from(SHAPE_LEVELS), st.sampled_from(LAYOUTS))
def test_figures_keep_their_number_and_sizes(seed, level, layout):
    height, width = level.sizes[0]
    figures = draw_figures(np.random.default_rng(seed), level, layout, tuple(COLOURS), height, width)
    assert 1 <= len(figures) <= level.figures[1]
    for figure in figures:
        low, high = level.large if figure.look.large else level.small
        assert low <= figure.look.pixels <= high
        left, top, right, bottom = figure.box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_what_stands_in_the_middle_is_not_asked_for_by_its_side():
    look = Look("star", "red", 40, COLOURS["red"])
    for i in range(40):
        middle = [Figure(look, 92, 92)]
        questions = ask_about(np.random.default_rng(i), middle, SHAPE_LEVELS[0], tuple(COLOURS), 224, 224, "train")
        assert not {"left", "right", "top", "bottom"} & {q.answer for q in questions}


def test_shapes_that_cannot_fit_are_refused():
    level = replace(CLEAN, sizes=((40, 40),), small=(60, 70), large=(90, 100))
    with pytest.raises(ConfigError, match="40 x 40"):
        draw(0, level)


def test_further_boxes_are_asked_for_other_figures():
    level = replace(SHAPE_LEVELS[0], boxes=2)
    counts = []
    for seed in range(40):
        questions = draw_shapes(np.random.default_rng(seed), level, "train").questions
        boxes = [q for q in questions if q.kind == "box"]
        assert len({q.answer for q in boxes}) == len(boxes) <= 3
        counts.append(len(boxes))
    assert max(counts) == 3
