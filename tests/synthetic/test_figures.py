"""Figures and how they stand: masks cut to the ink, colours apart, arrangements without touching."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers.figure_checks import blobs
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.synthetic.drawing.canvas import Canvas
from pocketvlm.synthetic.drawing.figures import (
    COLOURS,
    JITTER,
    SHAPES,
    TILTS,
    Figure,
    Look,
    colours_on,
    draw_ground,
    draw_ink,
    draw_mask,
    other_name,
    plural,
    with_article,
)
from pocketvlm.synthetic.drawing.lines import WHITE
from pocketvlm.synthetic.scenes.arrangements import GAP, HELDOUT_LAYOUTS, LAYOUTS, MARGIN, TRAIN_LAYOUTS, arrange


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pixels", [12, 35, 84])
def test_masks_are_cut_to_the_ink_and_as_large_as_asked(shape, pixels):
    for tilt in set(TILTS):
        mask = draw_mask(shape, pixels, tilt)
        assert mask.dtype == np.uint8
        for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
            assert edge.max() > 127
        assert abs(max(draw_mask(shape, pixels).shape) - pixels) <= 1
        # A turned square is wider by its corners.
        assert max(mask.shape) <= pixels * 1.2 + 2


def test_every_two_shapes_look_different():
    """Of the same size, they differ in a tenth of the square at least."""
    masks = {}
    for shape in SHAPES:
        canvas, mask = np.zeros((62, 62)), draw_mask(shape, 60)
        top, left = (62 - mask.shape[0]) // 2, (62 - mask.shape[1]) // 2
        canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask > 127
        masks[shape] = canvas
    for first, second in itertools.combinations(SHAPES, 2):
        assert np.abs(masks[first] - masks[second]).mean() > 0.1, (first, second)


def test_a_ring_has_a_hole_and_a_circle_has_none():
    ring, circle = draw_mask("ring", 40), draw_mask("circle", 40)
    assert ring[20, 20] == 0
    assert circle[20, 20] == 255


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="hexagon"):
        draw_mask("hexagon", 30)


def test_tones_of_a_colour_stay_nearest_to_it():
    """Whatever the jitter: half the distance between two colours is more than it can move one of them."""
    for first, second in itertools.combinations(COLOURS.values(), 2):
        assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 2 * JITTER
    rng = np.random.default_rng(0)
    for name in COLOURS:
        for _ in range(50):
            tone = np.asarray(draw_ink(rng, name), int)
            assert min(COLOURS, key=lambda other: np.abs(tone - COLOURS[other]).sum()) == name


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_most_colours_stand_out_from_every_ground(seed, variety):
    image, paper = draw_ground(np.random.default_rng(seed), 24, 30, variety)
    assert image.shape == (24, 30, 3)
    assert len(colours_on(paper)) >= 5


def test_a_figure_paints_its_box():
    canvas = Canvas(np.full((90, 120, 3), WHITE, np.uint8))
    figure = Figure(Look("star", "blue", 40, COLOURS["blue"]), 50, 20)
    figure.paint(canvas)
    ((box, colour),) = blobs(canvas.image)
    assert colour == figure.colour
    assert np.abs(np.subtract(box, figure.box)).max() <= 1
    assert figure.centre == ((figure.box[0] + figure.box[2]) / 2, (figure.box[1] + figure.box[3]) / 2)
    assert figure.name == "blue star"


def test_names_are_english():
    assert [plural(shape) for shape in ("star", "cross")] == ["stars", "crosses"]
    assert [with_article(name) for name in ("orange ring", "red ring")] == ["an orange ring", "a red ring"]


def test_another_name_is_not_among_those_known():
    rng, known = np.random.default_rng(1), {"red star", "blue ring"}
    names = {other_name(rng, known, ("red", "blue")) for _ in range(300)}
    assert not names & known
    assert len(names) == 2 * len(SHAPES) - 2


def test_layouts_of_the_splits_are_disjoint():
    assert not set(TRAIN_LAYOUTS) & set(HELDOUT_LAYOUTS)


@settings(max_examples=200)
@given(
    st.integers(0, 2**32),
    st.sampled_from(LAYOUTS),
    st.lists(st.tuples(st.integers(20, 60), st.integers(20, 60)), min_size=1, max_size=6),
    st.integers(100, 300),
    st.integers(100, 300),
)
def test_what_is_arranged_touches_nothing(seed, layout, extents, height, width):
    places = arrange(np.random.default_rng(seed), layout, extents, height, width)
    if places is None:
        return
    assert len(places) == len(extents)
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(places, extents, strict=True)]
    for left, top, right, bottom in boxes:
        assert min(left, top) >= MARGIN - 1
        assert right <= width - MARGIN + 1
        assert bottom <= height - MARGIN + 1
    for one, other in itertools.combinations(boxes, 2):
        assert max(one[0] - other[2], other[0] - one[2], one[1] - other[3], other[1] - one[3]) >= GAP - 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_finds_room(layout):
    for count in (1, 3, 4):
        found = [arrange(np.random.default_rng(i), layout, [(36, 34)] * count, 224, 224) for i in range(20)]
        assert sum(places is not None for places in found) >= 10, count


def test_layouts_look_like_their_names():
    def middles(layout, i):
        places = arrange(np.random.default_rng(i), layout, [(30, 30)] * 4, 224, 300)
        return np.asarray(places) if places is not None else None

    for i in range(20):
        row, column, diagonal, zigzag = (middles(name, i) for name in ("row", "column", "diagonal", "zigzag"))
        assert row is None or (np.ptp(row[:, 1]) < 45 and (np.diff(row[:, 0]) > 30).all())
        assert column is None or (np.ptp(column[:, 0]) < 60 and (np.diff(column[:, 1]) > 30).all())
        assert diagonal is None or abs(np.sign(np.diff(diagonal[:, 1])).sum()) == 3
        assert zigzag is None or np.prod(np.sign(np.diff(zigzag[:, 1]))[:2]) == -1


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="spiral"):
        arrange(np.random.default_rng(0), "spiral", [(10, 10)], 100, 100)
