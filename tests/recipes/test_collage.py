"""Pictures full of print: whole, of one split, densely printed, and the same for the same seed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pocketvlm.synthetic import make_sample
from pocketvlm.synthetic.sample import SPLITS, Split
from pocketvlm.synthetic.words.vocabulary import in_split
from recipes.nano.collage import CollageLevel, draw_collage
from recipes.nano.curriculum import FEW_LINES, ONE_LINE
from recipes.nano.settings import IMAGE

DENSE = CollageLevel()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("level", [DENSE, FEW_LINES, dataclasses.replace(DENSE, shrunk=1.0)])
def test_every_character_of_the_answer_is_printed_inside(level: CollageLevel, split: Split) -> None:
    for number in range(6):
        sample = draw_collage((0, number), level, split)
        ((question,), (boxes,), image) = sample.questions, sample.characters, sample.image
        assert "".join(question.answer.split()) == "".join(box.character for box in boxes)
        assert in_split(question.answer, split)
        assert question.answer.count("\n") < level.lines
        height, width = image.shape[:2]
        assert all(0 <= b.left < b.right <= width and 0 <= b.top < b.bottom <= height for b in boxes)
        assert not height % 56
        assert height * width <= IMAGE.scale_resolution**2  # it goes in as it is


def test_the_same_seed_draws_the_same_and_fonts_are_shared_where_that_is_asked() -> None:
    one, again, other = (draw_collage((3, n), DENSE, fonts=(1,)) for n in (0, 0, 1))
    assert np.array_equal(one.image, again.image)
    assert one.questions == again.questions
    assert one.questions != other.questions


def test_it_shows_several_times_the_characters_of_a_page_with_a_line() -> None:
    collage = sum(len(draw_collage((5, n), DENSE).characters[0]) for n in range(10))
    lines = sum(len(make_sample("words", (5, n), "train", ONE_LINE).characters[0]) for n in range(10))
    assert collage > 4 * lines
