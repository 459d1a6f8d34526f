"""The synthetic suite: every task draws the same scorable examples again, from the held-out split."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pocketvlm.errors import ConfigError
from pocketvlm.evaluation import suite
from pocketvlm.evaluation.scoring import score
from pocketvlm.evaluation.suite import ROWS, Row, SyntheticSuite, SyntheticTask, to_example
from pocketvlm.evaluation.tasks import Clip, Example, ListTask, chosen_indices, examples_of
from pocketvlm.synthetic import NOT_THERE, REGISTRY, Question, Sample, Task, make_sample

FRAME = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize("name", SyntheticSuite().names())
def test_every_task_draws_the_same_scorable_examples_again(name: str) -> None:
    task = SyntheticSuite().task(name)
    for index in (0, 3):
        a, b = (task.example(index, 7) for _ in range(2))
        assert (a.id, a.question, a.answers, a.metric) == (b.id, b.question, b.answers, b.metric)
        assert a.task == name
        assert score(a.answers[0], a) == 1
        for first, second in zip(a.media, b.media, strict=True):
            frames = [m.frames if isinstance(m, Clip) else (m,) for m in (first, second)]
            assert all(np.array_equal(x, y) for x, y in zip(*frames, strict=True))
    assert task.example(0, 7).id != task.example(0, 8).id


def test_every_kind_of_picture_is_asked_about() -> None:
    assert set(REGISTRY) <= {row.draws for row in suite.rows().values()}


def test_words_are_held_out_samples_of_their_level() -> None:
    sample = make_sample("words", (5, 2), "heldout", ROWS["words"].level)
    drawn = SyntheticSuite().task("words").example(2, 5)
    assert np.array_equal(drawn.media[0], sample.image)
    assert (drawn.question, drawn.answers) == (sample.questions[0].text, (sample.questions[0].answer,))


def register(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    """Two kinds of picture, "odd" and "even": the samples of one in two ask for what is not there."""

    def draw(rng: np.random.Generator, _level: object, _split: str, task: str) -> Sample:
        questions = [
            Question("As JSON.", '{"a": "1"}', "json"),
            Question(f"Main of {task}?", "1", "number"),
            Question("Where is it?", "<box>1 2 3 4</box>", "box"),
        ]
        if rng.random() < 0.5:
            questions.append(Question("What colour is the hat?", NOT_THERE, "absent"))
        return Sample((FRAME,), tuple(questions), task, ((),))

    for cached in (suite._with_absent_questions, suite._has_absent):
        monkeypatch.setattr(suite, cached.__name__, cached.__wrapped__)
    monkeypatch.setattr(suite, "ROWS", {})
    for name in list(REGISTRY):
        monkeypatch.delitem(REGISTRY, name)
    for kind in kinds:
        monkeypatch.setitem(REGISTRY, kind, Task(draw, (0,)))


def test_a_new_kind_of_picture_needs_no_row_and_absent_questions_come_from_all_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(monkeypatch, "odd", "even")
    assert SyntheticSuite().names() == ["odd", "even", "not-there"]
    task = SyntheticSuite().task("not-there")
    drawn = [task.example(i, 0) for i in range(6)]
    assert [e.subset for e in drawn] == ["odd", "even"] * 3
    assert {e.answers for e in drawn} == {(NOT_THERE,)}
    assert len({e.id for e in drawn}) == 6
    assert {e.task for e in drawn} == {"not-there"}
    assert SyntheticSuite().task("odd").example(0, 0).question == "Main of odd?"


def test_a_row_chooses_the_question_by_kind_text_or_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "odd")

    def asked(row: Row) -> set[str]:
        return {SyntheticTask("t", row).example(i, 0).metric for i in range(20)}

    assert asked(Row("odd")) == {"relaxed"}
    assert asked(Row("odd", kinds=("box",))) == {"iou"}
    assert asked(Row("odd", kinds=("json",))) == {"fields"}
    assert asked(Row("odd", pattern="^Where")) == {"iou"}
    assert asked(Row("odd", any_question=True)) == {"relaxed", "iou"}
    with pytest.raises(ConfigError, match="no question"):
        asked(Row("odd", kinds=("long",)))


@pytest.mark.parametrize("name", ["receipt-json", "invoice-json", "form-json"])
def test_documents_are_asked_for_as_json_in_tasks_of_their_own(name: str) -> None:
    for index in range(4):
        asked = SyntheticSuite().task(name).example(index, 1)
        assert isinstance(json.loads(asked.answers[0]), dict)
        other = SyntheticSuite().task(name.removesuffix("-json")).example(index, 1)
        assert (asked.metric, other.metric) == ("fields", "strict")


def test_rows_that_cannot_be_drawn_yet_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "odd")
    monkeypatch.setattr(suite, "ROWS", {"hard": Row("odd", 9), "other": Row("none"), "easy": Row("odd")})
    assert SyntheticSuite().names() == ["easy", "not-there"]


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'nope' is unknown\. Use some of words"):
        SyntheticSuite().task("nope")


def test_an_unknown_task_is_said_without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    for cached in (suite._with_absent_questions, suite._has_absent):
        cached.cache_clear()
    monkeypatch.setattr(suite, "make_sample", lambda *_: pytest.fail("it was drawn"))
    with pytest.raises(ConfigError, match="'recipt' is unknown"):
        SyntheticSuite().task("recipt")


def test_frames_with_a_rate_are_one_clip() -> None:
    sample = Sample((FRAME, FRAME), (Question("?", "left"),), "clip", ((), ()), fps=2.0)
    (clip,) = to_example(sample, sample.questions[0], "clip", "1").media
    assert isinstance(clip, Clip)
    assert (len(clip.frames), clip.fps) == (2, 2.0)


def test_a_list_is_asked_in_order_and_in_part_by_seed() -> None:
    task = ListTask("set", [Example(str(i), "set", (), "?", ("a",), "exact") for i in range(50)])
    assert chosen_indices(task, 100, 0) == list(range(50))
    some = chosen_indices(task, 10, 0)
    assert len(set(some)) == 10
    assert some == sorted(some) == chosen_indices(task, 10, 0)
    assert some != chosen_indices(task, 10, 1)
    assert [e.id for e in examples_of(task, 10, 0)] == [str(i) for i in some]
