"""Questions of the training in other words: the same questions, and never those that the suite has for itself."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.wordings import groups, modules

from pocketvlm.synthetic import REGISTRY, Question, make_sample
from recipes.nano.rewording import is_held_out, reword

HELD_OUT = sorted({wording for module in modules() for group in groups(module).values() for wording in group.heldout})


@pytest.mark.parametrize("wording", [wording for wording in HELD_OUT if wording != "{label}:"])
def test_every_held_out_wording_is_known_whatever_its_case_and_last_sign(wording: str) -> None:
    text = wording.replace("{", "").replace("}", "")
    for one in (text, text.upper(), text.rstrip("?."), f"{text}?"):
        assert is_held_out(one)


@pytest.mark.parametrize("task", REGISTRY)
def test_no_question_is_reworded_as_the_suite_words_it(task: str) -> None:
    rng = np.random.default_rng(3)
    questions = [question for i in range(12) for question in make_sample(task, (31, i), "train", 0).questions]
    drawn = [(question, reword(rng, question)) for question in questions for _ in range(10)]
    changed = [(question, other) for question, other in drawn if other.text != question.text]
    assert len(changed) > len(drawn) / 10
    assert not [other.text for _, other in changed if is_held_out(other.text)]
    for question, other in drawn:
        assert (other.answer, other.kind) == (question.answer, question.kind)


def test_what_was_asked_for_stays_in_the_question() -> None:
    rng = np.random.default_rng(4)
    asked = {
        "How much does the green tea cost?": ("green tea",),
        "What stock does Silver have?": ("stock", "Silver"),
        "What colour is the ring?": ("ring",),
        "How many crosses do you see?": ("crosses",),
        "Where is the blue heart? Answer with a box.": ("blue heart", "box"),
        "Which shop has the code K2?": ("shop", "code K2"),
        "Read the due date of Oak.": ("due date of Oak",),
    }
    for text, words in asked.items():
        made = {reword(rng, Question(text, "x")).text for _ in range(200)}
        assert len(made) > 5
        missing = [(one, word) for one in made for word in words if word not in one]
        assert [one for one, word in missing if (text, word) != ("Which shop has the code K2?", "shop")] == []


def test_questions_for_json_keep_their_words() -> None:
    rng = np.random.default_rng(5)
    question = Question("What is the total?", "{}", "json")
    assert all(reword(rng, question) == question for _ in range(50))
