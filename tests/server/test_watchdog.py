"""The watchdog ends a process that hangs, and none that works, idles or was stopped; time is counted in its looks."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable
from typing import Any

import pytest

from pocketvlm.server import watchdog
from pocketvlm.server.watchdog import STATUS, Watchdog

SECONDS = 8.0  # a look each second


class Engine:
    """What the watchdog sees of an engine."""

    is_stepping, steps, stack, fault = True, 0, "  in step", ""

    def give_up(self, reason: str) -> None:
        self.fault = reason


class EndedError(Exception):
    """In place of the end of the process."""


class Looks:
    """In place of the pause between two looks: what happens meanwhile; so many of them."""

    def __init__(self, count: int, meanwhile: Callable[[], None]) -> None:
        self.left, self.meanwhile = count, meanwhile

    def wait(self, _seconds: float) -> bool:
        self.left -= 1
        self.meanwhile()
        return self.left < 0


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, bool]]:
    """Nothing ends; the times that the interpreter's own timer was set to."""
    found = list[tuple[float, bool]]()

    def end(status: int) -> None:
        assert status == STATUS
        raise EndedError

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(watchdog, "GRACE", 0.0)
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda after, exit: found.append((after, exit)))
    return found


def run(engine: Any, count: int, meanwhile: Callable[[Watchdog], None]) -> int:
    """So many looks; returns how many there were before the end, or all of them."""
    dog = Watchdog(engine, SECONDS)
    looks: Any = Looks(count, lambda: meanwhile(dog))
    dog._stopped = looks
    try:
        dog._run()
    except EndedError:
        return count - looks.left
    return count


def beat(dog: Watchdog) -> None:
    dog._beats += 1


def test_a_step_that_takes_too_long_ends_the_process(
    armed: list[tuple[float, bool]], caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine()
    assert run(engine, 100, beat) == SECONDS + 1  # the first look sees where it is
    assert engine.fault == "a step of the engine has taken more than 8 seconds"
    assert engine.fault in caplog.text
    assert "in step" in caplog.text
    assert [exits for _, exits in armed] == [True] * 9, "native code that keeps the interpreter would never be ended"
    assert min(after for after, _ in armed) >= 10 * SECONDS, "a process that is paused would end as it continues"


@pytest.mark.usefixtures("armed")
def test_an_event_loop_that_stands_still_ends_the_process() -> None:
    engine = Engine()
    engine.is_stepping = False
    assert run(engine, 100, lambda _: None) == SECONDS + 2
    assert engine.fault.startswith("the event loop ")


@pytest.mark.usefixtures("armed")
def test_an_engine_that_works_or_has_nothing_to_do_goes_on() -> None:
    engine = Engine()

    def step(dog: Watchdog) -> None:
        beat(dog)
        engine.steps += 1

    assert run(engine, 100, step) == 100
    engine.is_stepping = False
    assert run(engine, 100, beat) == 100
    assert engine.fault == ""


@pytest.mark.usefixtures("armed")
def test_only_looks_in_a_row_count() -> None:
    engine, seen = Engine(), [0]

    def now_and_then(dog: Watchdog) -> None:
        seen[0] += 1
        if seen[0] % int(SECONDS) == 0:
            beat(dog)
            engine.steps += 1

    assert run(engine, 100, now_and_then) == 100
