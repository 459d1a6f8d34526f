"""A page that meets a fault of the program or the engine is an error of that page; a run of faults ends the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from helpers.command import run

from pocketvlm.api.retry import FAULTS
from pocketvlm.api.vlm import VLM
from pocketvlm.documents.inputs import Document, find_files, open_documents
from pocketvlm.documents.journal import Done, open_done
from pocketvlm.documents.pages import PageTask, answer_documents, ask_here, pages_to_ask
from pocketvlm.errors import EngineError, MediaError, UnavailableError
from pocketvlm.processing.media_encoding import MediaTask
from pocketvlm.processing.media_workers import MediaWorkers

AHEAD = 4
TASK = PageTask("What?", lambda answer: {"text": answer, "error": None}, {"text": ""})


class Answers:
    """Stands for a model that is asked about pages: what becomes of each is said beforehand."""

    def __init__(self, outcomes: list[Any]) -> None:
        self.outcomes = iter(outcomes)
        self.ahead: list[int] = []

    def prepare(self, messages: Any, options: Any) -> None:
        """Nothing is wrong with the options."""

    def as_completed(self, requests: Any, ahead: int) -> Iterator[tuple[Any, Any]]:
        self.ahead.append(ahead)
        for key, *_ in requests:
            outcome = next(self.outcomes)
            yield key, outcome if isinstance(outcome, Exception) else [outcome]


def became(outcomes: list[Any], pages: int | None = None) -> Iterator[tuple[int, str | None, bool]]:
    """The number and the error of each page, and whether it is kept for later runs."""
    document = Document("a.pdf", Path("a.pdf"), tuple(range(1, (pages or len(outcomes)) + 1)), "digest", choice="1-99")
    for (_, page), value, keep in ask_here(cast("VLM", Answers(outcomes)), AHEAD, [document], Done(), TASK):
        yield page, value["error"], keep


def test_what_a_fault_took_is_asked_once_more() -> None:
    outcomes = ["one", EngineError("the answer was lost"), "three", MemoryError(), MediaError("it is torn"), "six"]
    found = list(became([*outcomes, "two", MemoryError("again")], 6))
    lost = "a fault of the program: MemoryError: again"
    torn = (5, "it is torn", False)
    assert found == [(1, None, True), (3, None, True), torn, (6, None, True), (2, None, True), (4, lost, False)]


def test_the_second_time_each_is_asked_alone() -> None:
    """One of them may be what makes the step fail that it shares with others."""
    answers = Answers([*(EngineError("a step failed") for _ in range(AHEAD)), *"abcd"])
    document = Document("a.pdf", Path("a.pdf"), tuple(range(1, AHEAD + 1)), "digest", choice="1-99")
    found = list(ask_here(cast("VLM", answers), AHEAD, [document], Done(), TASK))
    assert [value["error"] for _, value, _ in found] == [None] * AHEAD
    assert answers.ahead == [AHEAD, 1]


def test_more_faults_one_after_the_other_than_one_step_causes_end_it() -> None:
    faults = [KeyError(str(number)) for number in range(1, FAULTS + AHEAD + 3)]
    found = became(["one", *faults])
    assert next(found) == (1, None, True)
    with pytest.raises(KeyError, match=str(FAULTS + AHEAD + 1)):
        next(found)
    assert len(list(became(["one", *faults[: FAULTS + AHEAD], *"x" * (1 + FAULTS + AHEAD)], 2 + FAULTS + AHEAD))) == (
        2 + FAULTS + AHEAD
    )


def test_bad_pages_are_no_faults_however_many() -> None:
    assert len(list(became([MediaError("it is torn")] * (3 * FAULTS)))) == 3 * FAULTS


def test_an_engine_that_is_broken_for_good_ends_it_at_once() -> None:
    found = became(["one", UnavailableError("the engine has failed"), "two"])
    assert next(found) == (1, None, True)
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


def test_the_answer_about_a_file_that_has_changed_is_not_kept_under_its_old_content(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(Path("examples/word.png").read_bytes() + name.encode())
    documents = list(open_documents(find_files([str(tmp_path)])))

    def ask(documents: Any, done: Done, task: PageTask) -> Iterator[tuple[Any, Any, bool]]:
        (tmp_path / "b.png").write_bytes(b"another one")
        yield from ((key, task.value_of(cast("Any", "x")), True) for key, _ in pages_to_ask(documents, done))

    with open_done(tmp_path / "journal", {}) as done:
        assert len(list(answer_documents(ask, documents, done, TASK))) == 2
        assert [done.keeps((document.digest, 1)) for document in documents] == [True, False]
