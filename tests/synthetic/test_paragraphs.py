"""Paragraphs: what is asked can be read off the lines, boxes lie on ink, lines keep to their layout, splits."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from helpers.wordings import read
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.errors import ConfigError
from pocketvlm.synthetic.documents import paragraphs
from pocketvlm.synthetic.documents.paragraphs import (
    HELDOUT_LAYOUTS,
    PARAGRAPH_LEVELS,
    TRAIN_LAYOUTS,
    ask_about,
    draw_columns,
    draw_paragraph,
)
from pocketvlm.synthetic.drawing.fonts import ASCII
from pocketvlm.synthetic.words.vocabulary import in_split

levels = pytest.mark.parametrize("level", PARAGRAPH_LEVELS, ids=range(len(PARAGRAPH_LEVELS)))
#: Black on white, upright and clean, in one column.
PLAIN = dataclasses.replace(PARAGRAPH_LEVELS[2], variety=0.0, wear=0.0, degrees=0.0, columns=0.0, styles=False)


def lines_of(sample):
    """Characters without spaces, line by line as the transcript breaks them."""
    characters = iter(sample.characters[0])
    return [[next(characters) for c in line if c != " "] for line in sample.questions[0].answer.split("\n")]


@levels
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_samples_are_well_formed_and_the_same_seed_gives_the_same_one(level, split):
    for i in range(8):
        sample, again = (draw_paragraph(np.random.default_rng([3, i]), level, split) for _ in range(2))
        assert np.array_equal(sample.image, again.image)
        assert (sample.questions, sample.characters) == (again.questions, again.characters)
        height, width, _ = sample.image.shape
        assert (height, width) in level.sizes
        assert (sample.image.dtype, sample.task) == (np.uint8, "paragraph")
        assert sample.image.flags.c_contiguous
        assert len(sample.questions) == len({q.text for q in sample.questions})
        for character, left, top, right, bottom in sample.characters[0]:
            assert character in ASCII
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height


@levels
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_transcript_is_what_is_printed_and_belongs_to_the_split(level, split):
    for i in range(8):
        sample = draw_paragraph(np.random.default_rng([4, i]), level, split)
        first = sample.questions[0]
        assert first.kind == "long"
        assert "".join(box.character for box in sample.characters[0]) == "".join(first.answer.split())
        assert in_split(first.answer, split)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(PARAGRAPH_LEVELS),
    st.sampled_from(["train", "heldout"]),
    st.sampled_from([1, 2]),
)
def test_answers_can_be_read_off_the_lines(seed, level, split, count):
    rng = np.random.default_rng(seed)
    columns = draw_columns(rng, level, split, count)
    lines = [line for column in columns for line in column]
    plain = [[word.strip(",.") for word in line] for line in lines]
    words = [word for line in plain for word in line]
    assert len(columns) == count
    assert all(level.lines[0] <= len(column) <= level.lines[1] for column in columns)
    assert all(0 < len(word) <= level.longest for word in words)
    questions = ask_about(rng, columns, split)
    assert questions[0].answer == "\n".join(" ".join(line) for line in lines)
    for text, answer, kind in questions[1:]:
        assert kind == "text"
        group, _, filled, _ = read(paragraphs, text)
        if group == "CONTAINS_QUESTIONS":
            assert answer in ("yes", "no")
            assert (answer == "yes") == (filled["word"] in [word.lower() for word in words])
            assert in_split(filled["word"], split)
        elif group == "COLUMNS_QUESTIONS":
            assert answer == str(count)
        elif group == "LINES_QUESTIONS":
            assert (count, answer) == (1, str(len(lines)))
        elif group == "LINE_END_QUESTIONS":
            assert count == 1
            assert answer == plain[int(filled["number"]) - 1][-1 if filled["end"] == "last" else 0]
        elif group == "RIGHT_QUESTIONS":
            assert answer == columns[1][0][0].strip(",.")
        else:
            assert group == "END_QUESTIONS"
            assert answer == words[-1 if filled["end"] == "last" else 0]


def test_yes_and_no_are_about_as_frequent():
    answers = []
    for i in range(300):
        rng = np.random.default_rng(i)
        columns = draw_columns(rng, PARAGRAPH_LEVELS[1], "train", 1)
        answers += [
            q.answer for q in ask_about(rng, columns, "train") if read(paragraphs, q.text).group == "CONTAINS_QUESTIONS"
        ]
    assert 0.4 < np.mean([answer == "yes" for answer in answers]) < 0.6


def test_boxes_hold_the_only_ink():
    for i in range(8):
        sample = draw_paragraph(np.random.default_rng(i), PLAIN, "train")
        ink = 255 - sample.image[..., 0]
        outside = ink.copy()
        for _, left, top, right, bottom in sample.characters[0]:
            outside[top:bottom, left:right] = 0
            assert ink[top:bottom, left].any()
            assert ink[top:bottom, right - 1].any()
        assert not outside.any()


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_lines_keep_to_their_layout(split):
    seen = set()
    for i in range(40):
        sample = draw_paragraph(np.random.default_rng(i), PLAIN, split)
        lines = lines_of(sample)
        em = max(box.bottom - box.top for box in sample.characters[0])
        lefts, rights = [line[0].left for line in lines], [line[-1].right for line in lines]
        middles = [left + right for left, right in zip(lefts, rights, strict=True)]
        seen.add(sample.layout)
        if sample.layout in ("ragged", "justified"):
            assert len(set(lefts)) == 1
        elif sample.layout == "centred":
            assert np.ptp(middles) <= 2 * len(lines)
        elif sample.layout == "flush right":
            assert np.ptp(rights) <= len(lines)
        elif sample.layout == "indented":
            assert len(set(lefts[1:])) == 1
            assert lefts[0] - lefts[1] >= em
        else:
            assert len(set(lefts[1:])) == 1
            assert lefts[1] - lefts[0] >= em
    assert seen == set(TRAIN_LAYOUTS if split == "train" else HELDOUT_LAYOUTS)


def test_two_columns_stand_side_by_side_and_are_read_one_after_the_other():
    level = dataclasses.replace(PLAIN, columns=1.0)
    for i in range(8):
        sample = draw_paragraph(np.random.default_rng(i), level, "train")
        lines = lines_of(sample)
        left, right = lines[: len(lines) // 2], lines[len(lines) // 2 :]
        assert max(line[-1].right for line in left) < min(line[0].left for line in right)
        # The gap between columns is wider than any gap between words.
        gap = min(line[0].left for line in right) - max(line[-1].right for line in left)
        assert gap > max(b.left - a.right for line in lines for a, b in itertools.pairwise(line))


def test_layouts_of_the_splits_are_disjoint():
    assert not set(TRAIN_LAYOUTS) & set(HELDOUT_LAYOUTS)


def test_text_that_cannot_fit_is_refused():
    level = dataclasses.replace(PARAGRAPH_LEVELS[0], sizes=((20, 20),))
    with pytest.raises(ConfigError, match="fits"):
        draw_paragraph(np.random.default_rng(0), level, "train")
