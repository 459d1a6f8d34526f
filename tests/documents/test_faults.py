"""A page that meets a fault of the program or the engine is an error of that page; a run of faults ends the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from helpers.command import run

from pocketvlm.api.vlm import VLM
from pocketvlm.documents.inputs import Document
from pocketvlm.documents.journal import Done
from pocketvlm.documents.pages import FAULTS, PageTask, ask_here
from pocketvlm.errors import EngineError, MediaError, UnavailableError
from pocketvlm.processing.media_encoding import MediaTask
from pocketvlm.processing.media_workers import MediaWorkers

TASK = PageTask("What?", lambda answer: {"text": answer, "error": None}, {"text": ""})


class Answers:
    """Stands for a model that is asked about pages: what becomes of each is said beforehand."""

    def __init__(self, outcomes: list[Any]) -> None:
        self.outcomes = outcomes

    def prepare(self, messages: Any, options: Any) -> None:
        """Nothing is wrong with the options."""

    def as_completed(self, requests: Any, ahead: int) -> Iterator[tuple[Any, Any]]:  # noqa: ARG002
        for (key, *_), outcome in zip(requests, self.outcomes, strict=False):
            yield key, outcome if isinstance(outcome, Exception) else [outcome]


def became(outcomes: list[Any]) -> Iterator[tuple[str | None, bool]]:
    """The error of each page, and whether it is kept for later runs."""
    document = Document("a.pdf", Path("a.pdf"), tuple(range(1, len(outcomes) + 1)), "digest", choice="1-99")
    for _, value, keep in ask_here(cast("VLM", Answers(outcomes)), 4, [document], Done(), TASK):
        yield value["error"], keep


def test_a_fault_on_one_page_does_not_end_the_run() -> None:
    outcomes = ["one", EngineError("the answer was lost"), "two", MemoryError(), MediaError("it is torn"), "three"]
    found = list(became(outcomes))
    assert [keep for _, keep in found] == [True, False, True, False, False, True]
    lost = "a fault of the program: MemoryError: "
    assert [error for error, _ in found] == [None, "the answer was lost", None, lost, "it is torn", None]


def test_many_faults_one_after_the_other_end_it() -> None:
    found = became(["one", *(KeyError(str(number)) for number in range(FAULTS + 3))])
    assert len([next(found) for _ in range(FAULTS + 1)]) == FAULTS + 1
    with pytest.raises(KeyError, match=str(FAULTS)):
        next(found)


def test_bad_pages_are_no_faults_however_many() -> None:
    assert len(list(became([MediaError("it is torn")] * (3 * FAULTS)))) == 3 * FAULTS


def test_an_engine_that_is_broken_for_good_ends_it_at_once() -> None:
    found = became(["one", UnavailableError("the engine has failed"), "two"])
    assert next(found) == (None, True)
    with pytest.raises(UnavailableError):
        next(found)


@pytest.mark.parametrize("command", ["read", "extract"])
def test_a_decoder_that_crashes_takes_one_page_with_it(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Media are decoded in processes of their own."""
    picture, whole = Path("examples/receipt.png").read_bytes(), MediaWorkers.encode
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture + bytes([number]))
    asked = []

    def encode(self: MediaWorkers, task: MediaTask) -> Any:
        asked.extend(str(part.source) for part in task.parts)
        if task.parts and asked[-1].endswith("1.png"):
            raise MediaError("the decoder crashed")
        return whole(self, task)

    monkeypatch.setattr(MediaWorkers, "encode", encode)
    out = {"read": ("--out", str(tmp_path / "out")), "extract": ("--schema", "a: string", "--out", f"{tmp_path}/r.csv")}
    status, _, err = run(capsys, command, *sorted(map(str, tmp_path.glob("*.png"))), *out[command], "--max-tokens", "8")
    assert (status, len(asked), "decoder crashed" in err) == (1, 3, True), err
