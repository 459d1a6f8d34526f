"""Requests of a long run that a fault took are asked once more, alone; bad input is an outcome at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from pocketvlm.api.retry import FAULTS, answer_each
from pocketvlm.api.vlm import VLM
from pocketvlm.errors import ConfigError, EngineError, PocketVLMError, UnavailableError

Outcome = Any


class Model:
    """Answers with what it is asked, and fails as often as is said of a request."""

    def __init__(self, faults: dict[str, list[Exception]]) -> None:
        self.faults, self.asked, self.ahead = faults, list[str](), list[int]()

    def as_completed(self, requests: Any, ahead: int) -> Iterator[tuple[str, Outcome]]:
        self.ahead.append(ahead)
        for key, (message,), _ in requests:
            self.asked.append(message)
            waiting = self.faults.get(key, [])
            yield key, waiting.pop(0) if waiting else [message]


def answered(model: Model, keys: str, ahead: int = 3, refused: str = "") -> list[tuple[str, Outcome]]:
    def request(key: str) -> tuple[Any, dict[str, Any]] | PocketVLMError:
        return ConfigError(f"bad {key}") if key in refused else ([key], {})

    return list(answer_each(cast("VLM", model), keys, request, ahead))


def test_what_was_lost_is_asked_again_behind_the_others() -> None:
    model = Model({"b": [EngineError("a step failed")], "c": [EngineError("a step failed"), EngineError("again")]})
    found = answered(model, "abcd")
    assert [key for key, _ in found] == ["a", "d", "b", "c"]
    assert [str(outcome) for _, outcome in found] == ["['a']", "['d']", "['b']", "again"]
    assert (model.asked, model.ahead) == ([*"abcdbc"], [3, 1])


def test_bad_input_is_asked_once_or_not_at_all() -> None:
    model = Model({"b": [ConfigError("over a limit")]})
    found = answered(model, "abcd", refused="ad")
    assert sorted((key, str(outcome)) for key, outcome in found) == [
        ("a", "bad a"),
        ("b", "over a limit"),
        ("c", "['c']"),
        ("d", "bad d"),
    ]
    assert model.asked == [*"bc"]


@pytest.mark.parametrize("ahead", [1, 3])
def test_faults_that_last_end_the_run(ahead: int) -> None:
    keys = "".join(map(chr, range(65, 65 + FAULTS + ahead + 1)))
    faults = {key: [EngineError(key), EngineError(key)] for key in keys}
    with pytest.raises(EngineError, match=keys[-1]):
        answered(Model(dict(faults)), keys + "xyz", ahead)


def test_each_may_be_to_blame_for_its_own_fault_however_many() -> None:
    keys = "abcdefghijklmno"
    assert len(keys) > FAULTS + 1
    model = Model({key: [EngineError("first"), EngineError(key)] for key in keys})
    found = answered(model, keys, ahead=len(keys))
    assert [str(outcome) for _, outcome in found] == [*keys]
    assert model.ahead == [len(keys), 1]


def test_an_engine_that_is_gone_ends_it_at_once() -> None:
    model = Model({"a": [UnavailableError("closed")]})
    with pytest.raises(UnavailableError):
        answered(model, "abc")
    assert model.asked == ["a"]
