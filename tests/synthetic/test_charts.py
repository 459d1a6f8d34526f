"""Charts: marks as large as their values, answers that follow from the chart, print where its boxes say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from helpers.wordings import read
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.errors import ConfigError, MissingExtraError
from pocketvlm.synthetic import make_sample
from pocketvlm.synthetic.charts import samples as charts
from pocketvlm.synthetic.charts.drawing import paint_chart
from pocketvlm.synthetic.charts.parts import HELDOUT_LAYOUTS, MARKS, TRAIN_LAYOUTS, Axis, Chart, Style
from pocketvlm.synthetic.charts.pies import slice_ends
from pocketvlm.synthetic.charts.samples import CHART_LEVELS, COLOURS, ask_about, draw_chart, draw_contents
from pocketvlm.synthetic.drawing.canvas import Canvas
from pocketvlm.synthetic.drawing.fonts import FontFile
from pocketvlm.synthetic.drawing.lines import WHITE
from pocketvlm.synthetic.sample import NOT_THERE
from pocketvlm.synthetic.words.vocabulary import in_split

FONT = FontFile(None, "Regular")
LEVELS = range(len(CHART_LEVELS))
SPLITS = ("train", "heldout")
SHADES = (("red", COLOURS["red"]), ("green", COLOURS["green"]), ("blue", COLOURS["blue"]))


def layouts(split):
    return TRAIN_LAYOUTS if split == "train" else HELDOUT_LAYOUTS


def drawn(seed, level, split):
    try:
        return draw_chart(np.random.default_rng([3, seed]), CHART_LEVELS[level], split)
    except MissingExtraError:
        pytest.skip("no held-out font is installed")


def paint(layout, values, **style):
    axis = None if MARKS[layout] == "slice" else Axis(10, 4)
    chart = Chart(layout, ("Oak", "Elm", "Fir"), values, tuple(map(str, values)), SHADES, axis=axis)
    look = {"em": 15, "area": (6, 6, 294, 294), "grid": False} | style
    canvas = paint_chart(chart, Style(FONT, FONT, paper=WHITE, **look), np.full((300, 300, 3), 255, np.uint8))
    assert canvas
    return canvas


def coloured(canvas, shade):
    return (canvas.image == np.asarray(shade)).all(axis=2)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", SPLITS)
def test_charts_are_well_formed_and_reproducible(level, split):
    found = set()
    for i in range(25):
        sample, again = (drawn(i, level, split) for _ in range(2))
        assert np.array_equal(sample.image, again.image)
        assert (sample.questions, sample.characters) == (again.questions, again.characters)
        height, width, _ = sample.image.shape
        assert sample.image.dtype == np.uint8
        assert sample.image.flags.c_contiguous
        for character, left, top, right, bottom in sample.characters[0]:
            assert character.isascii()
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
        assert len({question.text for question in sample.questions}) == len(sample.questions) >= 3
        found.add(sample.layout)
    assert found <= set(layouts(split))
    assert len(found) > 1


def test_the_layouts_of_the_splits_are_disjoint():
    assert not set(TRAIN_LAYOUTS) & set(HELDOUT_LAYOUTS)
    assert set(MARKS) == {*TRAIN_LAYOUTS, *HELDOUT_LAYOUTS}


@pytest.mark.parametrize("layout", [*TRAIN_LAYOUTS, *HELDOUT_LAYOUTS])
@pytest.mark.parametrize("level", LEVELS)
def test_every_layout_draws_at_every_level(layout, level, monkeypatch):
    monkeypatch.setattr(charts, "choose_layout", lambda *_: layout)
    for i in range(4):
        assert drawn(i, level, "train").layout == layout


def test_the_first_level_fits_one_view_in_large_print():
    for i in range(20):
        height, width, _ = drawn(i, 0, "train").image.shape
        assert height * width <= 224 * 224
    assert CHART_LEVELS[0].font_pixels[0] >= 15


@pytest.mark.parametrize("layout", ["bars", "bars with legend", "lying bars"])
def test_bars_are_as_long_as_their_values(layout):
    canvas = paint(layout, (10, 40, 25))
    lengths = []
    for _, shade in SHADES:
        mask = coloured(canvas, shade)
        if layout == "bars with legend":  # the squares of the legend are not bars
            mask[:45] = False
        along = mask.any(axis=1 - (layout == "lying bars") * 1)
        lengths.append(int(along.sum()))
    assert lengths[0] == pytest.approx(lengths[1] / 4, abs=1.5)
    assert lengths[2] == pytest.approx(lengths[1] * 25 / 40, abs=1.5)


@pytest.mark.parametrize("layout", ["line", "stems"])
def test_points_stand_as_high_as_their_values(layout):
    canvas = paint(layout, (10, 40, 25), thickness=1.0)
    middles = [coloured(canvas, shade).nonzero() for _, shade in SHADES]
    # A stem has the colour of its dot: the topmost pixels are the dot's.
    tops = [int(rows.min()) for rows, _ in middles]
    if layout == "line":  # the line itself has the colour of the first point
        columns = middles[0][1] < middles[1][1].min() - 30
        tops[0] = int(middles[0][0][columns].max()) - (int(middles[1][0].max()) - tops[1])
    assert tops[0] - tops[2] == pytest.approx(tops[2] - tops[1], abs=2)
    assert tops[0] > tops[2] > tops[1]


@pytest.mark.parametrize("layout", ["pie with legend", "pie with labels", "ring"])
@pytest.mark.parametrize("start", [-90.0, 33.0])
def test_slices_are_as_large_as_their_values(layout, start):
    canvas = paint(layout, (10, 40, 30), start=start)
    legend = 12**2 if layout != "pie with labels" else 0
    areas = np.array([int(coloured(canvas, shade).sum()) - legend for _, shade in SHADES])
    assert areas / areas.sum() == pytest.approx(np.array([10, 40, 30]) / 80, abs=0.02)


@given(st.lists(st.integers(1, 999), min_size=2, max_size=6), st.floats(-180, 180))
def test_slices_fill_the_circle_once(values, start):
    chart = Chart("ring", ("a",) * len(values), tuple(values), (), ())
    ends = slice_ends(chart, start)
    assert ends[0] == start
    assert ends[-1] - ends[0] == pytest.approx(360)
    for i, value in enumerate(values):
        assert ends[i + 1] - ends[i] == pytest.approx(360 * value / sum(values), abs=1e-6)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(LEVELS), st.sampled_from(SPLITS), st.integers(0, 10))
def test_answers_follow_from_what_the_chart_says(seed, level, split, which):
    rng = np.random.default_rng(seed)
    layout = layouts(split)[which % len(layouts(split))]
    chart = draw_contents(rng, CHART_LEVELS[level], split, layout, WHITE)
    values = dict(zip(chart.names, chart.values, strict=True))
    ordered = sorted(chart.values)
    assert len(values) == len(chart.names)
    assert ordered[0] < ordered[1]
    assert ordered[-2] < ordered[-1]
    if chart.axis:
        assert ordered[0] > 0
        assert ordered[-1] <= chart.axis.top
        if not chart.printed:
            assert chart.has_ticks
            assert all(2 * value % chart.axis.step == 0 for value in chart.values)
    colours = {name: colour for name, (colour, _) in zip(chart.names, chart.colours, strict=True)}
    for text, answer, kind in ask_about(rng, chart, split, CHART_LEVELS[level]):
        group, _, words, _ = read(charts, text)
        if kind == "absent":
            assert answer == NOT_THERE
            assert words["name"] not in values
        elif group == "VALUE_QUESTIONS":
            assert float(answer.strip("%")) == values[words["name"]]
            assert in_split(answer, split)
            assert kind == ("text" if chart.printed else "number")
        elif group == "MORE_QUESTIONS":
            assert answer == ("yes" if values[words["first"]] > values[words["second"]] else "no")
        elif group == "EXTREME_QUESTIONS":
            assert values[answer] == ordered[-1 if words["extreme"] in ("highest", "largest") else 0]
        elif group in ("COLOUR_QUESTIONS", "LINE_QUESTIONS", "MARKS_QUESTIONS"):
            assert answer == (colours[words["name"]] if "name" in words else next(iter(colours.values())))
        elif group == "COUNT_QUESTIONS":
            assert answer == str(len(chart.names))
        elif group == "TITLE_QUESTIONS":
            assert answer == chart.title
        elif group == "KIND_QUESTIONS":
            assert answer == {"bar": "bar", "point": "line", "slice": "pie"}[chart.mark]
        else:
            assert group == "OWNER_QUESTIONS"
            assert colours[answer] == words["colour"]
            assert in_split(answer, split)


@pytest.mark.parametrize("split", SPLITS)
def test_answers_that_are_printed_stand_in_the_picture(split):
    for i in range(30):
        sample = drawn(i, 1, split)
        text = "".join(box.character for box in sample.characters[0])
        for question, answer, kind in sample.questions:
            group = read(charts, question).group
            if kind == "text" and group in ("EXTREME_QUESTIONS", "TITLE_QUESTIONS", "VALUE_QUESTIONS"):
                assert answer.replace(" ", "") in text, (question, answer)


def test_print_is_where_its_boxes_say():
    level = dataclasses.replace(CHART_LEVELS[0], variety=0.0, wear=0.0)
    for i in range(20):
        sample = draw_chart(np.random.default_rng([4, i]), level, "train")
        for _, left, top, right, bottom in sample.characters[0]:
            ink = 255 - sample.image[top:bottom, left:right].min(axis=2)
            assert all(edge.any() for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))


def test_about_a_quarter_ask_for_what_is_not_there():
    absent = sum(any(q.kind == "absent" for q in drawn(i, 0, "train").questions) for i in range(150))
    assert 25 <= absent <= 70


def test_a_chart_that_cannot_fit_is_refused():
    level = dataclasses.replace(CHART_LEVELS[0], sizes=(((40, 40), (40, 40)),))
    with pytest.raises(ConfigError, match="fits into 40 x 40"):
        draw_chart(np.random.default_rng(0), level, "train")


def test_smooth_shapes_cover_their_area_and_stay_in_the_picture():
    canvas = Canvas(np.zeros((80, 80, 3), np.uint8))
    canvas.disc((30, 40), 20, WHITE)
    assert canvas.image[..., 0].sum() / 255 == pytest.approx(np.pi * 20**2, rel=0.03)
    canvas = Canvas(np.zeros((60, 60, 3), np.uint8))
    canvas.polyline([(0, 0), (59, 59)], WHITE, 3)
    canvas.disc((0, 59), 9, WHITE)
    assert canvas.image[30, 30].tolist() == [255] * 3
    canvas.clear((-5, -5, 99, 99))
    assert not canvas.image.any()


@pytest.mark.parametrize("seed", [(1, 2095, 1, 11), (1, 2135, 1, 0)])
def test_the_lowest_tick_beside_bars_with_a_legend_above_stays_in_the_picture(seed):
    assert make_sample("chart", seed, "train", 0).layout == "bars with legend"
