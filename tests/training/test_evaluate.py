"""The share of exact answers to validation samples: of those that can be compared with what a model says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.api.answers import Answer, Usage
from pocketvlm.processing.processor import Processor
from pocketvlm.training import evaluate
from pocketvlm.training.data.sample import Sample

USER = {"role": "user", "content": "Where?"}
CALL = [{"function": {"name": "look", "arguments": {}}}]


class Says:
    """A model that says one thing, in text as it is decoded."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __enter__(self) -> Says:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def as_completed(self, requests: Iterable[tuple[int, Any, Any]]) -> Iterator[tuple[int, list[Answer]]]:
        for index, _, _ in requests:
            yield index, [Answer(self.text, Usage(1, 0, 1), {}, "stop")]


def share(monkeypatch: pytest.MonkeyPatch, checkpoint: Path, says: str, *answers: dict[str, Any]) -> float | None:
    samples = [Sample([USER, {"role": "assistant", **answer}], f"a:{i}") for i, answer in enumerate(answers)]
    monkeypatch.setattr(evaluate, "_as_vlm", lambda *_: Says(says))
    return evaluate.exact_answers(None, Processor.from_directory(checkpoint), samples, {})  # type: ignore[arg-type]


def test_places_count_as_they_are_decoded(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    answers = ({"content": "<ref>it</ref><box>1 2 3 4</box>"}, {"content": "<box>5 6 7 8</box>"})
    assert share(monkeypatch, checkpoint, "it1 2 3 4", *answers) == 0.5


def test_calls_of_tools_and_what_is_no_text_are_not_compared(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    call, parts = {"content": "", "tool_calls": CALL}, {"content": [{"type": "text", "text": "a"}]}
    assert share(monkeypatch, checkpoint, "", call, parts) is None
    assert share(monkeypatch, checkpoint, "", call, {"content": "b"}) == 0.0
