"""Boxes of what is drawn beside print: inside the picture, around something, and the ones that answers name."""

from __future__ import annotations

import numpy as np
import pytest

from pocketvlm.synthetic import make_sample
from pocketvlm.synthetic.sample import box_answer
from recipes.nano.cells import COLOUR_NAMES, KINDS


@pytest.mark.parametrize("task", ["shapes", "screen", "chart", "pair", "clip"])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_objects_lie_in_their_picture_and_are_painted(task: str, level: int) -> None:
    seen = 0
    for seed in range(12):
        sample = make_sample(task, (7, seed), "train", level)
        assert len(sample.objects) == len(sample.images)
        for picture, boxes in zip(sample.images, sample.objects, strict=True):
            height, width = picture.shape[:2]
            seen += len(boxes)
            for box in boxes:
                assert 0 <= box.left < box.right <= width, box
                assert 0 <= box.top < box.bottom <= height, box
                assert box.kind in KINDS
                assert box.colour in COLOUR_NAMES
                inside = picture[int(box.top) : int(box.bottom), int(box.left) : int(box.right)]
                assert inside.reshape(-1, 3).std(0).max() > 1 or np.ptp(picture) > 60, box
    assert seen


@pytest.mark.parametrize("task", ["shapes", "screen"])
def test_answers_name_boxes_of_objects(task: str) -> None:
    asked = 0
    for seed in range(20):
        sample = make_sample(task, (8, seed), "heldout", 0)
        height, width = sample.image.shape[:2]
        known = {box_answer(b.left, b.top, b.right, b.bottom, height, width) for b in sample.objects[0]}
        answers = [question.answer for question in sample.questions if question.kind == "box"]
        asked += len(answers)
        assert known.issuperset(answers)
    assert asked > 5
