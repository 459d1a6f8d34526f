"""Where answers stand, and what questions name: tokens point to cells that show their character or their object."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pocketvlm.processing.prompt.tokenizer import Tokenizer
from pocketvlm.synthetic import Question, make_sample
from pocketvlm.synthetic.sample import CharacterBox, ObjectBox
from recipes.nano.cells import UNKNOWN
from recipes.nano.curriculum import Share, Stage
from recipes.nano.data import NOWHERE, Collator
from recipes.nano.objective import _places
from recipes.nano.places import named, places
from recipes.nano.run import new_learner
from recipes.nano.settings import ASSETS, IMAGE
from recipes.nano.views import Rates, encode_picture

TOKENIZER = Tokenizer.from_directory(ASSETS)
COLLATE = Collator(TOKENIZER, IMAGE)
PLAN = encode_picture(np.zeros((112, 112, 3), np.uint8), IMAGE, "4x", np.random.default_rng(0), 1.0).plan  # 4 x 4 cells


@pytest.mark.parametrize("rates", [Rates(1.0, 0.0), Rates(0.0, 1.0), Rates(0.0, 0.0)])
@pytest.mark.parametrize("task", ["words", "receipt", "form"])
def test_an_answer_token_points_to_cells_that_show_its_character(task: str, rates: Rates) -> None:
    pairs = 0
    for seed in range(4):
        batch = COLLATE(Stage("a", (Share(task, 0, 1.0),), 400, rates=rates), (5, seed))
        for row, cell in batch.places.T.tolist():
            character = TOKENIZER.decode([int(batch.targets[row])]).strip()[0]
            seen = batch.cells.characters[cell]
            crowded = (seen[:, 0] == UNKNOWN).all() or (batch.cells.compressed[cell] and UNKNOWN in seen)
            assert crowded or character in [chr(31 + one) for one in seen.flatten().tolist() if one > 0]
            pairs += 1
    assert pairs > 20


def test_an_answer_in_several_places_or_in_none_has_no_place() -> None:
    sample = make_sample("words", 1, "train", 0)
    picture = encode_picture(sample.image, IMAGE, "4x", np.random.default_rng(0), 1.0)
    printed = [CharacterBox(c, 10.0 * i, 10, 10.0 * i + 8, 20) for i, c in enumerate("abcabd")]
    assert places(["a", "b"], printed, (), picture.plan, 14) is None
    assert places(["x"], printed, (), picture.plan, 14) is None
    found = places(["b", "d"], printed, (), picture.plan, 14)
    assert found is not None
    assert [len(cells) for cells in found] == [1, 2]  # the last stands near the border of two


@pytest.mark.parametrize("task", ["shapes", "screen"])
def test_the_box_of_an_object_is_in_its_middle_for_every_token(task: str) -> None:
    """The tokens that open and close a box are special: they must not be lost on the way."""
    sample = next(
        s for i in range(20) for s in [make_sample(task, i, "train", 0)] if any(q.kind == "box" for q in s.questions)
    )
    picture = encode_picture(sample.image, IMAGE, "4x", np.random.default_rng(0), 1.0)
    question = next(q for q in sample.questions if q.kind == "box")
    batch = COLLATE.pack([(sample, [picture], [question])])
    pointing = batch.places[0].unique().tolist()
    assert pointing == list(range(len(batch.rows) - 1))  # all but the end of the answer


def test_the_kind_or_colour_of_one_object_is_in_its_middle_and_that_of_several_nowhere() -> None:
    objects = [ObjectBox("star", "red", 0, 0, 28, 28), ObjectBox("ring", "red", 56, 56, 84, 84)]
    assert places(["star"], [], objects, PLAN, 14) == [[0]]
    assert places(["r", "ing"], [], objects, PLAN, 14) == [[10], [10]]
    assert places(["red"], [], objects, PLAN, 14) is None


def test_a_question_names_all_that_its_words_may_mean() -> None:
    objects = [ObjectBox("cross", "red", 0, 0, 28, 28), ObjectBox("cross", "blue", 56, 56, 84, 84)]
    printed = [CharacterBox(c, 14.0 * i, 87, 14.0 * i + 8, 95) for i, c in enumerate("Enjoy7")]
    tokens = ["How", " many", " crosse", "s", ",", " blue", " ones", " and", " e", "nj", "oy", " or", " 7", "?"]
    found = {tokens[i]: cells for i, cells in enumerate(named(tokens, printed, objects, PLAN, 14)) if cells}
    assert found == {"s": [0, 10], " blue": [10], " e": [12], "nj": [12], "oy": [13]}


def test_a_kind_behind_a_colour_is_what_has_both_and_what_no_object_has_is_nowhere() -> None:
    objects = [ObjectBox("cross", "red", 0, 0, 28, 28), ObjectBox("star", "blue", 56, 56, 84, 84)]
    tokens = ["Is", " the", " red", " cross", " above", " the", " blue", " cross", " or", " a", " pink", " star", "?"]
    found = {i: cells for i, cells in enumerate(named(tokens, [], objects, PLAN, 14)) if cells != []}
    assert found == {2: [0], 3: [0], 6: [10], 7: None, 10: None, 11: None}
    assert not any(named(tokens, [], (), PLAN, 14))  # nothing is known of a page of print


def test_what_has_no_colour_is_found_by_its_kind_and_a_box_that_is_asked_for_is_none() -> None:
    objects = [ObjectBox("button", "", 0, 0, 28, 28), ObjectBox("box", "", 56, 56, 84, 84)]
    tokens = ["Where", " is", " the", " button", "?", " Answer", " with", " a", " box", "."]
    assert named(tokens, [], objects, PLAN, 14, "box") == [[], [], [], [0], [], [], [], [], [], []]
    assert named(tokens, [], objects, PLAN, 14)[8] == [10]


@pytest.mark.parametrize("text", ["Until?", "title?", "What is the value of Gount?"])
def test_a_short_first_question_is_found_in_its_prompt(text: str) -> None:
    printed = tuple(CharacterBox(c, 14.0 * i, 87, 14.0 * i + 8, 95) for i, c in enumerate("Until title Gount"))
    sample = dataclasses.replace(make_sample("form", 3, "train", 0), characters=(printed,))
    picture = encode_picture(sample.image, IMAGE, "4x", np.random.default_rng(0), 1.0)
    batch = COLLATE.pack([(sample, [picture], [Question(text, "x")])])
    found = [TOKENIZER.decode([int(batch.input_ids[i])]) for i in batch.names[0].unique().tolist()]
    assert "".join(found).strip() in ("Until", "title", "Gount")


def test_a_printed_name_that_is_not_there_is_nowhere_only_where_that_is_asked() -> None:
    tokens = ["What", " is", " the", " c", "it", "y", "?"]
    assert named(tokens, [], (), PLAN, 14, "absent") == [[], [], [], [], [], None, []]
    assert named(tokens, [], (), PLAN, 14) == [[]] * 7


def test_what_is_not_there_is_looked_for_at_the_beginning_of_its_sample() -> None:
    batch = COLLATE(Stage("a", (Share("shapes", 0, 1.0),), 3000), (5, 3))
    missing = batch.names[:, batch.names[1] == NOWHERE]
    assert missing.shape[1] > 2
    learner = new_learner(0)
    _, names, _ = _places(batch, learner.config, torch.device("cpu"))
    beginnings = {sum(batch.lengths[:i]) for i in range(len(batch.lengths))}
    where = dict(zip(names[0].tolist(), names[1].tolist(), strict=True))
    assert {where[int(token)] for token in missing[0]} <= beginnings


def test_the_names_of_a_batch_stand_in_its_questions() -> None:
    batch = COLLATE(Stage("a", (Share("form", 0, 0.5), Share("shapes", 0, 0.5)), 3000), (5, 1))
    assert batch.names.shape[1] > 40
    answers = set(batch.rows.tolist())
    for position, cell in batch.names.T.tolist():
        text = TOKENIZER.decode([int(batch.input_ids[position])], skip_special=False).strip()
        assert text.isprintable()
        assert not text.startswith("<|")
        assert position not in answers
        if cell != NOWHERE and batch.cells.objects[cell, 0] <= 0:  # print: the cell shows the token's first character
            seen = [chr(31 + one).lower() for one in batch.cells.characters[cell].flatten().tolist() if one > 0]
            assert not seen or text[0].lower() in seen


def test_every_answer_of_a_batch_counts_by_the_root_of_its_length() -> None:
    batch = COLLATE(Stage("a", (Share("form", 0, 1.0),), 2000), (5, 2))
    assert batch.weights.mean().item() == pytest.approx(1.0, abs=1e-5)
    ends = (batch.targets == COLLATE.end).nonzero().squeeze(1) + 1
    lengths = torch.diff(ends, prepend=torch.zeros(1, dtype=torch.long))
    sums = torch.stack([part.sum() for part in batch.weights.split(lengths.tolist())])
    assert torch.allclose(sums / lengths.sqrt(), (sums / lengths.sqrt())[:1].expand(len(sums)), rtol=1e-4)


def test_the_strings_of_json_point_to_where_they_are_printed() -> None:
    """Each by itself: a name that stands twice has no place, and what is not printed has none."""
    boxes = [CharacterBox(c, 14.0 * i, 3.0, 14.0 * i + 8, 11.0) for i, c in enumerate("ab12ab9")]
    picture = np.zeros((112, 112, 3), np.uint8)
    plan = encode_picture(picture, IMAGE, "4x", np.random.default_rng(0), 1.0).plan
    answer = '{"ab": "12", "zz": "9"}'
    found = places(list(answer), boxes, (), plan, 14)
    assert found is not None
    assert {i: cells for i, cells in enumerate(found) if cells} == {8: [0, 1], 9: [1], 20: [2, 3]}
