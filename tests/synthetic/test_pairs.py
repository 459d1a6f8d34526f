"""Two or three pictures: answers that follow from the pixels and the print, splits that share no word and no layout."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers.figure_checks import assert_same, assert_well_formed, blobs, ink_of
from helpers.wordings import read
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.errors import ConfigError, MissingExtraError
from pocketvlm.synthetic.drawing.figures import COLOURS
from pocketvlm.synthetic.scenes import pairs
from pocketvlm.synthetic.scenes.cards import FORMS, HELDOUT_FORMS, TRAIN_FORMS, draw_form
from pocketvlm.synthetic.scenes.pair_scenes import CHANGES, NOTHING, PAIR_LEVELS
from pocketvlm.synthetic.scenes.pairs import draw_pair
from pocketvlm.synthetic.words.values import ORDINALS
from pocketvlm.synthetic.words.vocabulary import in_split

CLEAN = replace(PAIR_LEVELS[0], variety=0.0, wear=0.0, sizes=((112, 112), (112, 168)))


def draw(seed, level=CLEAN, split="train"):
    try:
        return draw_pair(np.random.default_rng(seed), level, split)
    except MissingExtraError:
        pytest.skip("no held-out font is installed")


def printed(sample):
    """What is printed in each picture."""
    return ["".join(box.character for box in boxes) for boxes in sample.characters]


def number_of(question):
    """Which picture a question or an answer names, from 0; None for none."""
    match = re.search(rf"\b({'|'.join(ORDINALS)})\b", question)
    return ORDINALS.index(match[1]) if match else None


@pytest.mark.parametrize("level", PAIR_LEVELS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_samples_are_well_formed_and_reproducible(level, split):
    layouts = set()
    for i in range(25):
        sample = draw((4, i), level, split)
        assert_well_formed(sample, "pair")
        assert level.pictures[0] <= len(sample.images) <= level.pictures[1]
        assert all(image.shape[:2] in level.sizes for image in sample.images)
        assert len(sample.questions) <= level.questions + 1
        assert sample.fps is None
        layouts.add(sample.layout)
        if i < 3:
            assert_same(sample, draw((4, i), level, split))
    assert layouts == set(TRAIN_FORMS if split == "train" else HELDOUT_FORMS)


def test_the_first_level_is_two_small_pictures():
    level = PAIR_LEVELS[0]
    assert level.pictures == (2, 2)
    assert set(level.sizes) <= {(112, 112), (112, 168), (168, 168)}
    assert level.font_pixels[0] >= 15


def test_layouts_of_the_splits_are_disjoint():
    assert not set(TRAIN_FORMS) & set(HELDOUT_FORMS)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_all_print_and_every_word_that_is_asked_for_is_of_the_split(split):
    asked = 0
    for i in range(50):
        sample = draw((5, i), PAIR_LEVELS[i % 3], split)
        assert all(in_split(text, split) for text in printed(sample))
        for question in sample.questions:
            if match := re.fullmatch(r"the (word|number) (\w+)", read(pairs, question.text).words.get("name", "")):
                assert in_split(match[2], split)
                asked += 1
    assert asked > 20


def test_print_is_read_and_found_where_it_stands():
    checked = Counter()
    for i in range(150):
        sample = draw((6, i))
        texts = printed(sample)
        for text, answer, kind in sample.questions:
            group, _, words, _ = read(pairs, text)
            if group == "READ_QUESTIONS":
                assert answer == texts[number_of(words["place"])]
                checked["read"] += 1
            elif match := re.fullmatch(r"the (?:word|number) (\w+)", words.get("name", "")):
                assert (kind == "absent") == (match[1] not in texts)
                assert kind == "absent" or texts.index(match[1]) == number_of(answer)
                checked[f"find {kind}"] += 1
            elif group == "LARGER_QUESTIONS":
                values = [int(text) for text in texts]
                assert values[number_of(answer)] == (max(values) if words["extreme"] == "larger" else min(values))
                checked["larger"] += 1
    assert set(checked) == {"read", "find text", "find absent", "larger"}


def test_what_differs_is_what_is_seen():
    seen = Counter()
    for i in range(150):
        sample = draw((7, i))
        answers = {read(pairs, q.text).group: q.answer for q in sample.questions}
        change = answers.get("DIFFERENCE_QUESTIONS")
        if change is None:
            continue
        seen[change] += 1
        first, second = sample.images
        assert np.array_equal(first, second) == (change == NOTHING)
        is_same = "yes" if change == NOTHING else "no"
        assert answers.get("SAME_QUESTIONS", is_same) == is_same
        texts = printed(sample)
        assert (texts[0] != texts[1]) == (change == "the word")
        if change in (NOTHING, "the word"):
            continue
        patches = [sorted(blobs(image)) for image in sample.images]
        colours = [sorted(colour for _, colour in each) for each in patches]
        areas = [ink_of(image).sum() for image in sample.images]
        assert abs(len(patches[0]) - len(patches[1])) == (change == "the number")
        if change != "the number":
            assert (colours[0] != colours[1]) == (change == "the colour")
        if change == "the colour":
            apart = [np.subtract(one, other) for (one, _), (other, _) in zip(*patches, strict=True)]
            assert np.abs(apart).max() <= 1
        if change == "the place":
            assert areas[0] == pytest.approx(areas[1], rel=0.02)
        if change == "the size":
            assert max(areas) > 1.2 * min(areas)
    assert set(seen) == {*CHANGES, NOTHING}


def test_counts_and_colours_follow_from_the_pixels():
    checked = Counter()
    for i in range(60):
        sample = draw((8, i))
        patches = [blobs(image) for image in sample.images]
        counts = [len(each) for each in patches]
        for text, answer, kind in sample.questions:
            group, _, words, _ = read(pairs, text)
            place, name = number_of(words.get("place", "")), words.get("name", "")
            if group in ("COUNT_QUESTIONS", "SUM_QUESTIONS") and name == "shapes":
                assert int(answer) == (sum(counts) if place is None else counts[place])
                checked["count"] += 1
            elif group == "MORE_QUESTIONS" and name == "shapes":
                assert counts[number_of(answer)] == (max(counts) if words["more"] == "more" else min(counts))
                assert len(set(counts)) == 2
                checked["more"] += 1
            elif group == "COLOUR_QUESTIONS" and kind == "text":
                assert answer in {colour for _, colour in patches[place]}
                checked["colour"] += 1
            elif (match := re.fullmatch(rf"an? ({'|'.join(COLOURS)}) \w+", name)) and kind == "text":
                assert match[1] in {colour for _, colour in patches[number_of(answer)]}
                checked["which"] += 1
    assert set(checked) == {"count", "more", "colour", "which"}


def test_every_kind_of_answer_is_about_as_frequent():
    """First and second, yes and no: guessing must not pay."""
    counts = Counter(q.answer for i in range(300) for q in draw((9, i)).questions)
    assert 0.75 < counts["first"] / counts["second"] < 1.33
    assert 0.6 < counts["yes"] / counts["no"] < 1.7
    assert counts["It is not there."] > 60


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from(FORMS), st.sampled_from([(112, 112), (112, 168), (280, 280)]))
def test_decoration_leaves_the_free_area_alone(seed, form, size):
    ground = draw_form(np.random.default_rng(seed), form, *size, 0.0)
    left, top, right, bottom = ground.area
    assert 0 <= left < right <= size[1]
    assert 0 <= top < bottom <= size[0]
    assert ground.size == (bottom - top, right - left)
    assert (bottom - top) * (right - left) > 0.7 * size[0] * size[1]
    assert (ground.image[top:bottom, left:right] == 255).all()
    assert (ground.image != 255).any() == (form != "plain")


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="round"):
        draw_form(np.random.default_rng(0), "round", 112, 112, 0.0)


def test_figures_that_cannot_fit_are_refused():
    level = replace(CLEAN, small=(150, 160), large=(170, 180), font_pixels=(300, 300))
    with pytest.raises(ConfigError, match="112 x 1"):
        draw(0, level)
