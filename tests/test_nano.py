"""The embedded model: in the package, small, and it reads."""

from __future__ import annotations

from pathlib import Path

import pytest

import pocketvlm
from pocketvlm.model.hub import resolve
from recipes.nano.evaluate import evaluate

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def nano() -> pocketvlm.VLM:
    return pocketvlm.load()


def test_its_weights_are_under_20_megabytes() -> None:
    assert sum(file.stat().st_size for file in resolve("nano").iterdir()) < 20_000_000


def test_it_has_every_kind_of_layer_and_early_compression(nano: pocketvlm.VLM) -> None:
    config = nano.model.config
    assert set(config.text.layer_types) == {"linear_attention", "full_attention"}
    assert 0 <= config.insert_layer_id < config.vision.num_hidden_layers - 1


def test_it_answers_greedily_by_default_and_the_same_every_time(nano: pocketvlm.VLM) -> None:
    picture = EXAMPLES / "word.png"
    answers = [nano.ask(picture, "What does it say?") for _ in range(2)]
    assert answers[0].text == answers[1].text
    assert answers[0].finish_reason == "stop"


FLOORS = {"numbers": 70.0, "words": 55.0, "receipts": 80.0}


def test_it_reads_held_out_numbers_and_words_in_held_out_fonts(nano: pocketvlm.VLM) -> None:
    # Floors well under what `python -m recipes.nano.evaluate` measures, on fewer pictures: this guards against a
    # broken pipeline or weights, not against a model that is a little worse.
    for task, characters in FLOORS.items():
        assert evaluate(nano, task, "4x", 40)["characters"] >= characters, task
