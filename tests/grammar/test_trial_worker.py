"""The process that tries grammars: whatever ends it, the next request is served."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from pocketvlm.grammar import trial_worker
from pocketvlm.grammar.trial_worker import GrammarWorker


@pytest.fixture
def worker() -> Iterator[GrammarWorker]:
    worker = GrammarWorker(257, {token: token for token in range(256)}, {}, [256])
    yield worker
    worker.close()


def test_one_that_was_killed_is_replaced_before_the_next_question(worker: GrammarWorker) -> None:
    assert worker.try_out("start: /a+/") == ""
    for wait in (False, True):
        killed = worker._process
        os.kill(killed.pid, signal.SIGKILL)
        if wait:
            killed.wait()
        assert worker.try_out("start: /b+/") == ""
        assert worker._process is not killed
    assert worker.try_out("start: (")


def test_one_that_is_killed_while_it_tries_is_asked_again(
    worker: GrammarWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker.try_out("start: /a+/") == ""
    monkeypatch.setattr(trial_worker, "TO_TRY", 60.0)
    stopped, faults = worker._process, list[str]()
    os.kill(stopped.pid, signal.SIGSTOP)
    thread = threading.Thread(target=lambda: faults.append(worker.try_out("start: /c+/")))
    thread.start()
    time.sleep(0.2)  # long enough for the question to be on its way; nothing depends on it
    os.kill(stopped.pid, signal.SIGKILL)
    thread.join(60)
    assert faults == [""]


def test_one_that_is_out_of_time_is_not_asked_again(worker: GrammarWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker.try_out("start: /a+/") == ""
    asked = list[object]()
    ask = worker._ask
    monkeypatch.setattr(worker, "_ask", lambda question, seconds: asked.append(question[0]) or ask(question, seconds))
    monkeypatch.setattr(trial_worker, "TO_TRY", 0.2)
    os.kill(worker._process.pid, signal.SIGSTOP)
    assert "too much time" in worker.try_out("start: /d+/")
    assert asked == ["start: /d+/"]
    monkeypatch.undo()
    assert worker.try_out("start: /e+/") == ""


def test_time_that_others_take_is_not_its_own(worker: GrammarWorker) -> None:
    """It is stopped for twice as long as it may work, as on a machine where others always go first."""
    assert worker.try_out("start: /a+/") == ""
    process, faults = worker._process, list[str]()
    os.kill(process.pid, signal.SIGSTOP)
    thread = threading.Thread(target=lambda: faults.append(worker.try_out("start: /f+/")))
    thread.start()
    time.sleep(2 * trial_worker.TRIAL_SECONDS)
    os.kill(process.pid, signal.SIGCONT)
    thread.join(60)
    assert faults == [""]
    assert worker._process is process


def test_what_keeps_the_processor_busy_is_ended_by_its_own_time_and_not_asked_again(
    worker: GrammarWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_worker, "TO_TRY", 600.0)
    assert worker.try_out("start: /a+/") == ""
    process, asked, ask = worker._process, list[object](), worker._ask
    monkeypatch.setattr(worker, "_ask", lambda question, seconds: asked.append(question[0]) or ask(question, seconds))
    grammar = "start: " + '"a"? ' * 18_000  # many times TRIAL_SECONDS to compile, on any machine
    assert "too much time or memory to compile" in worker.try_out(grammar)
    assert process.returncode == -signal.SIGPROF
    assert asked == [grammar]
    monkeypatch.undo()
    assert worker.try_out("start: /g+/") == ""
