"""Pictures of names and values: what is asked for is printed, its answer too, and nothing is asked twice over."""

from __future__ import annotations

import numpy as np
import pytest

from pocketvlm.synthetic.sample import NOT_THERE, SPLITS, Split
from pocketvlm.synthetic.words.vocabulary import in_split
from recipes.nano.lookup import LAYOUTS, LookupLevel, draw_lookup


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_are_printed_and_what_is_not_there_is_not(layout: str, split: Split) -> None:
    asked, absent = 0, 0
    for number in range(12):
        sample = draw_lookup((1, number), LookupLevel(layouts=(layout,)), split)
        printed = "".join(box.character for box in sample.characters[0])
        height, width = sample.image.shape[:2]
        assert all(0 <= b.left < b.right <= width and 0 <= b.top < b.bottom <= height for b in sample.characters[0])
        assert sample.questions
        for question in sample.questions:
            if question.kind == "absent":
                assert question.answer == NOT_THERE
                absent += 1
            else:
                assert "".join(question.answer.split()) in printed
                assert question.kind == "absent" or in_split(question.answer, split)
                asked += 1
        answers = [question.answer for question in sample.questions]
        assert len(set(answers)) == len(answers)
    assert asked > 12
    assert absent


def test_the_same_seed_draws_the_same() -> None:
    one, again, other = (draw_lookup((3, n), LookupLevel(), fonts=(1,)) for n in (0, 0, 1))
    assert np.array_equal(one.image, again.image)
    assert one.questions == again.questions
    assert one.questions != other.questions
