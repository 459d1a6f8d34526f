"""Screens: boxes around what they name, answers that the picture holds, splits that share no label."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from helpers.wordings import read
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.synthetic import NOT_THERE, make_sample
from pocketvlm.synthetic.documents import screens
from pocketvlm.synthetic.documents.screens import HELDOUT_LAYOUTS, SCREEN_LEVELS, TRAIN_LAYOUTS, USUAL, draw_screen
from pocketvlm.synthetic.sample import BOX_STEP, Sample
from pocketvlm.synthetic.words.vocabulary import in_split

LEVELS = range(len(SCREEN_LEVELS))


def lines_of(sample: Sample) -> dict[str, tuple[float, float, float, float]]:
    """Printed texts (without spaces) with the boxes around them; a new one starts where the pen jumps."""
    lines: list[list] = []
    for box in sample.characters[0]:
        last = lines[-1][-1] if lines else None
        near = last is not None and abs(box.bottom - last.bottom) < 14 and -4 <= box.left - last.right < 9
        lines[-1].append(box) if near else lines.append([box])
    return {
        "".join(b.character for b in line): (
            min(b.left for b in line),
            min(b.top for b in line),
            max(b.right for b in line),
            max(b.bottom for b in line),
        )
        for line in lines
    }


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), level=st.sampled_from(LEVELS), split=st.sampled_from(["train", "heldout"]))
def test_boxes_hold_the_label_that_is_asked_for(seed: int, level: int, split: str) -> None:
    sample = make_sample("screen", seed, split, level)
    height, width = sample.image.shape[:2]
    where = sample.questions[0]
    assert where.kind == "box"
    label = re.search(r"the (\S+) (button|field|box)", where.text)[1]
    left, top, right, bottom = (int(n) for n in re.findall(r"\d+", where.answer))
    assert 0 <= left < right <= 1000
    assert 0 <= top < bottom <= 1000
    slack = BOX_STEP / 2 + 2
    inside = [
        b
        for b in sample.characters[0]
        if left - slack <= b.left / width * 1000 <= right + slack
        and top - slack <= b.top / height * 1000 <= bottom + slack
    ]
    assert label in "".join(b.character for b in inside)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), level=st.sampled_from(LEVELS), split=st.sampled_from(["train", "heldout"]))
def test_answers_are_printed_or_closed_and_labels_differ(seed: int, level: int, split: str) -> None:
    sample = make_sample("screen", seed, split, level)
    printed = "".join(b.character for b in sample.characters[0])
    assert len({q.text for q in sample.questions}) == len(sample.questions)
    for question in sample.questions[1:]:
        if question.kind == "absent":
            assert question.answer == NOT_THERE
            label = re.search(r"the (\S+) (button|field)", question.text)[1]
            assert label not in lines_of(sample)
        elif read(screens, question.text).group not in ("TICKED_QUESTIONS", "COUNT_QUESTIONS"):
            assert question.answer.replace(" ", "") in printed
            assert question.answer in USUAL or in_split(question.answer, split)


def test_every_character_stands_inside_the_picture() -> None:
    for level in LEVELS:
        for seed in range(15):
            sample = make_sample("screen", (level, seed), "train", level)
            height, width = sample.image.shape[:2]
            for _, left, top, right, bottom in sample.characters[0]:
                assert 0 <= left < right <= width
                assert 0 <= top < bottom <= height


def test_the_same_seed_draws_the_same_screen_and_splits_share_no_layout() -> None:
    seen: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for seed in range(60):
        for split, layouts in seen.items():
            sample = make_sample("screen", (9, seed), split, seed % len(LEVELS))  # type: ignore[arg-type]
            layouts.add(sample.layout)
    assert seen == {"train": set(TRAIN_LAYOUTS), "heldout": set(HELDOUT_LAYOUTS)}
    first, second = (make_sample("screen", (3, 1), "train", 1) for _ in range(2))
    assert np.array_equal(first.image, second.image)
    assert first.questions == second.questions


@pytest.mark.parametrize("level", LEVELS)
def test_ticks_are_seen_in_the_picture(level: int) -> None:
    """A ticked box differs from one that is not: its square, left of the label, has ink inside."""
    found = {"yes": 0, "no": 0}
    for seed in range(80):
        sample = make_sample("screen", (7, seed), "train", level)
        for question in sample.questions:
            group, _, words, _ = read(screens, question.text)
            if group != "TICKED_QUESTIONS" or words["label"] not in lines_of(sample):
                continue
            left, top, _, bottom = lines_of(sample)[words["label"]]
            em = bottom - top
            square = sample.image[int(top) : int(bottom), int(left - 1.75 * em) : int(left - 1.05 * em)].astype(int)
            if square.size:
                found[question.answer] += 1
                assert np.ptp(square.mean(-1)) > 90 or question.answer == "no", seed
    assert min(found.values()) > 3


def test_further_boxes_are_asked_for_other_elements():
    level = replace(SCREEN_LEVELS[0], boxes=2)
    for seed in range(20):
        boxes = [q for q in draw_screen(np.random.default_rng(seed), level, "train").questions if q.kind == "box"]
        assert len({q.answer for q in boxes}) == len(boxes)
        assert 2 <= len(boxes) <= 3
