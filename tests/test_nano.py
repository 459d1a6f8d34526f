"""The embedded model: in the package, small, and it reads."""

from __future__ import annotations

from pathlib import Path

import pytest

import pocketvlm
from pocketvlm.evaluation.answerers import LocalModel
from pocketvlm.evaluation.harness import evaluate
from pocketvlm.evaluation.report import summarise
from pocketvlm.evaluation.suite import SyntheticSuite
from pocketvlm.model.hub import resolve

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def nano() -> pocketvlm.VLM:
    return pocketvlm.load()


def test_its_files_are_small() -> None:
    """A wheel, which is compressed, has 20 MB at most: tests/test_package.py."""
    assert sum(file.stat().st_size for file in resolve("nano").path.iterdir()) < 28_000_000


def test_it_has_every_kind_of_layer_and_early_compression(nano: pocketvlm.VLM) -> None:
    config = nano.config
    assert set(config.text.layer_types) == {"linear_attention", "full_attention"}
    assert 0 <= config.insert_layer_id < config.vision.num_hidden_layers - 1


def test_it_answers_greedily_by_default_and_the_same_every_time(nano: pocketvlm.VLM) -> None:
    picture = EXAMPLES / "word.png"
    answers = [nano.ask(picture, "What does it say?") for _ in range(2)]
    assert answers[0].text == answers[1].text
    assert answers[0].finish_reason == "stop"


# Floors well under what `pocketvlm eval` measures, on fewer examples: they guard against a broken pipeline or broken
# weights, not against a model that is a little worse.
FLOORS = {"one-word": 0.4, "one-number": 0.5, "receipt": 0.7}


@pytest.mark.parametrize("task", FLOORS)
def test_it_answers_held_out_questions(nano: pocketvlm.VLM, task: str) -> None:
    answerer = LocalModel(nano, {"temperature": 0.0}, batch_size=20)
    records = evaluate([SyntheticSuite().task(task)], answerer, count=24, seed=1)[task]
    assert summarise(records).score >= FLOORS[task]
