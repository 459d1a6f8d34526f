"""Clips: frames that show what the answers say."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers.figure_checks import assert_same, assert_well_formed, blobs
from helpers.wordings import read
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.errors import ConfigError
from pocketvlm.synthetic.drawing.figures import COLOURS, SHAPES
from pocketvlm.synthetic.scenes import clips
from pocketvlm.synthetic.scenes.arrangements import HELDOUT_LAYOUTS, MARGIN, TRAIN_LAYOUTS
from pocketvlm.synthetic.scenes.clips import CLIP_LEVELS, ask_about_arrivals, ask_about_motion, draw_clip
from pocketvlm.synthetic.scenes.motions import (
    DIAGONALS,
    DIRECTIONS,
    HELDOUT_PATHS,
    PATHS,
    TRAIN_PATHS,
    draw_arrivals,
    draw_motion,
    trace,
)

CLEAN = replace(CLIP_LEVELS[0], variety=0.0, wear=0.0)
WAYS = DIRECTIONS | DIAGONALS


def draw(seed, level=CLEAN, split="train"):
    return draw_clip(np.random.default_rng(seed), level, split)


def middle(box):
    return np.array([box[0] + box[2], box[1] + box[3]]) / 2


@pytest.mark.parametrize("level", CLIP_LEVELS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_samples_are_well_formed_and_reproducible(level, split):
    layouts = set()
    for i in range(25):
        sample = draw((4, i), level, split)
        assert_well_formed(sample, "clip")
        assert sample.fps == 1.0
        assert level.frames[0] <= len(sample.images) <= level.frames[1]
        assert len({image.shape for image in sample.images}) == 1
        assert sample.image.shape[:2] in level.sizes
        assert len(sample.questions) <= level.questions + 1
        layouts.add(sample.layout)
        if i < 3:
            assert_same(sample, draw((4, i), level, split))
    assert layouts == set(TRAIN_PATHS if split == "train" else HELDOUT_PATHS)


def test_layouts_of_the_splits_are_disjoint():
    assert not set(TRAIN_PATHS) & set(HELDOUT_PATHS)


def test_the_first_level_is_four_small_frames():
    assert CLIP_LEVELS[0].frames == (4, 4)
    assert CLIP_LEVELS[0].sizes == ((112, 112),)
    assert not CLIP_LEVELS[0].diagonals


def test_answers_follow_from_the_pixels():
    checked = Counter()
    for i in range(40):
        sample = draw((6, i), split=("train", "heldout")[i % 2])
        frames = [blobs(image) for image in sample.images]
        places = [middle(patches[0][0]) for patches in frames]
        for text, answer, kind in sample.questions:
            if kind == "absent":
                continue
            group, _, words, _ = read(clips, text)
            if group == "DIRECTION_QUESTIONS":
                step = places[-1] - places[0]
                assert step[np.abs(step).argmax()] * sum(DIRECTIONS[answer]) > 20
                assert np.abs(step).argmax() == (answer in ("up", "down"))
                checked["direction"] += 1
            elif group == "MOVES_QUESTIONS":
                assert (answer == "yes") == (np.abs(places[-1] - places[0]).max() > 20)
                checked["moves"] += 1
            elif group == "STOPS_QUESTIONS":
                assert (answer == "yes") == (np.abs(places[-1] - places[-2]).max() < 3)
                checked["stops"] += 1
            elif group == "END_COLOUR_QUESTIONS":
                ((_, colour),) = frames[0 if words["time"] == "start" else -1]
                assert answer == colour
                checked["colour"] += 1
            elif group == "CHANGES_QUESTIONS":
                assert (answer == "yes") == (frames[0][0][1] != frames[-1][0][1])
                checked["changes"] += 1
            elif group == "CHANGE_FRAME_QUESTIONS":
                colours = [patches[0][1] for patches in frames]
                assert int(answer) - 1 == next(k for k, colour in enumerate(colours) if colour != colours[0])
                checked["when"] += 1
            elif group == "COLOURS_QUESTIONS":
                assert int(answer) == len({colour for patches in frames for _, colour in patches})
                checked["colours"] += 1
    assert set(checked) == {"direction", "moves", "stops", "colour", "changes", "when", "colours"}


@settings(max_examples=200)
@given(
    st.integers(0, 2**32),
    st.sampled_from(PATHS),
    st.sampled_from(sorted(WAYS)),
    st.integers(1, 7),
    st.integers(100, 224),
    st.integers(100, 224),
)
def test_a_path_stays_inside_and_leads_its_way(seed, path, direction, steps, height, width):
    extent = (36, 30)
    places = np.array(trace(np.random.default_rng(seed), path, direction, extent, (height, width), steps))
    assert len(places) == steps + 1
    assert (places >= MARGIN - 1).all()
    assert (places + extent <= (width - MARGIN + 1, height - MARGIN + 1)).all()
    towards = np.array(WAYS[direction])
    moved = places[-1] - places[0]
    ahead, aside = moved @ towards / np.abs(towards).sum(), abs(moved @ (towards[::-1] * (-1, 1)))
    assert ahead > 25
    assert aside < 0.45 * ahead
    # Never back, and never so slowly that it seems to have stopped.
    assert (np.diff(places, axis=0) @ towards >= 2).all()


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(PATHS), st.integers(3, 8), st.integers(0, 2))
def test_motions_are_what_they_say(seed, path, count, beside):
    rng = np.random.default_rng(seed)
    frames, motion = draw_motion(rng, path, (168, 168), count, tuple(COLOURS), (28, 44), tuple(WAYS), beside)
    assert len(frames) == len(motion.colours) == count
    movers = [next(f for f in figures if f.shape == motion.shape) for figures in frames]
    assert tuple(f.colour for f in movers) == motion.colours
    assert sorted(f.shape for f in frames[0]) == sorted((motion.shape, *motion.still))
    for shape in motion.still:
        assert len({f for figures in frames for f in figures if f.shape == shape}) == 1
    corners = [(f.left, f.top) for f in movers]
    assert (len(set(corners)) > 1) == bool(motion.direction)
    assert not motion.direction or motion.stops == (corners[-1] == corners[-2])
    for text, answer, _ in ask_about_motion(rng, motion, "heldout"):
        group, _, words, _ = read(clips, text)
        if group == "MOVES_QUESTIONS":
            assert answer == ("yes" if words["name"] == motion.shape and motion.direction else "no")
        if group == "MOVER_QUESTIONS":
            assert answer == motion.shape
            assert motion.direction


@settings(max_examples=60)
@given(
    st.integers(0, 2**32), st.sampled_from(PATHS), st.sampled_from(TRAIN_LAYOUTS + HELDOUT_LAYOUTS), st.integers(3, 8)
)
def test_arrivals_are_what_they_say(seed, path, layout, count):
    rng = np.random.default_rng(seed)
    frames, arrivals = draw_arrivals(rng, path, layout, (168, 168), count, tuple(COLOURS), (28, 44), 5)
    assert len(frames) == count
    first_seen, colours = {}, {}
    for i, figures in enumerate(frames):
        assert figures
        assert arrivals.stay or len(figures) == 1
        for figure in figures:
            first_seen.setdefault(figure.shape, i)
            colours[figure.shape] = figure.colour
    assert len(first_seen) >= 2
    order = sorted(first_seen, key=first_seen.__getitem__)
    assert arrivals.shapes == tuple(order)
    for text, answer, _ in ask_about_arrivals(rng, arrivals, "heldout"):
        group, _, words, _ = read(clips, text)
        if group == "FRAME_QUESTIONS":
            assert int(answer) == first_seen[words["name"]] + 1
        elif group == "COLOURS_QUESTIONS":
            assert int(answer) == len(set(colours.values()))
        elif group == "COUNT_QUESTIONS":
            assert int(answer) == len(order)
        elif group == "COLOUR_QUESTIONS":
            assert answer == colours[words["name"]]
        elif group == "NEXT_QUESTIONS":
            assert order.index(answer) == order.index(words["name"]) + (1 if words["relation"] == "after" else -1)
        else:
            assert group == "FIRST_QUESTIONS"
            assert answer == (order[0] if words["which"] == "first" else order[-1])


@pytest.mark.parametrize("level", CLIP_LEVELS)
def test_what_is_not_there_is_never_seen(level):
    """Its shape stands in no other question of that clip."""
    absent = 0
    for i in range(60):
        questions = draw((8, i), level).questions
        known = {word for q in questions if q.kind != "absent" for word in re.findall(r"\w+", f"{q.text} {q.answer}")}
        for question in questions:
            if question.kind == "absent":
                assert not known & set(SHAPES) & set(re.findall(r"\w+", question.text))
                absent += 1
    assert absent > 5


def test_answers_are_about_even():
    counts = Counter(q.answer for i in range(300) for q in draw((9, i)).questions)
    assert max(counts[d] for d in DIRECTIONS) < 1.8 * min(counts[d] for d in DIRECTIONS)
    assert 0.5 < counts["yes"] / counts["no"] < 1.5


def test_figures_that_cannot_fit_are_refused():
    with pytest.raises(ConfigError, match="112 x 112"):
        draw(0, replace(CLEAN, pixels=(120, 130)))
