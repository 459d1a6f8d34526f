"""Turns a hang into an end: a process that a supervisor starts again serves sooner than one that waits for ever."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import Self

from pocketvlm.engine.async_engine import AsyncEngine
from pocketvlm.server.log_writer import end_log

logger = logging.getLogger(__name__)
STATUS = 70  # EX_SOFTWARE of sysexits
GRACE = 1.0  # seconds in which /health already says that it is over
# Times the seconds, of a timer that goes on while the process is stopped: one that is paused for some minutes must not
# end as it continues.
PATIENCE = 10


class Watchdog:
    """Watches a step of the engine and the event loop, each of which may take `seconds`.

    Time is counted in looks, so that a process that was stopped (a laptop asleep, a debugger) is not taken for one that
    hangs. Where even this thread cannot run, because native code keeps the interpreter to itself, a timer of the
    interpreter's own ends the process (with status 1) after `PATIENCE` times as long. It watches within `async with`.
    """

    def __init__(self, engine: AsyncEngine, seconds: float) -> None:
        self._engine, self._seconds = engine, seconds
        self._pause = min(1.0, seconds / 4)  # between two looks
        self._beats = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pocketvlm-watchdog", daemon=True)

    async def __aenter__(self) -> Self:
        self._beating = asyncio.create_task(self._beat())
        self._thread.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._stopped.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._beating.cancel()

    async def _beat(self) -> None:
        """Show that the event loop is alive, several times between two looks."""
        while True:
            self._beats += 1
            await asyncio.sleep(self._pause / 4)

    def _run(self) -> None:
        pause = self._pause
        looks = max(2, round(self._seconds / pause))
        step, beats, same_step, same_beat = -1, -1, 0, 0
        while not self._stopped.wait(pause):
            with suppress(OSError, ValueError, AttributeError):  # stderr may be no file
                faulthandler.dump_traceback_later(PATIENCE * self._seconds + GRACE, exit=True)
            same_step = same_step + 1 if self._engine.is_stepping and step == self._engine.steps else 0
            same_beat = same_beat + 1 if beats == self._beats else 0
            step, beats = self._engine.steps, self._beats
            if same_step >= looks:
                self._end("a step of the engine")
            if same_beat >= looks + 1:
                self._end("the event loop")

    def _end(self, what: str) -> None:
        reason = f"{what} has taken more than {self._seconds:g} seconds"
        self._engine.give_up(reason)
        # All through the log: whoever writes to stderr himself may wait there for ever.
        logger.critical("%s; the process ends. The engine is at:\n%s", reason, self._engine.stack)
        logger.critical("all threads are at:\n%s", _stacks())
        time.sleep(GRACE)
        end_log()
        os._exit(STATUS)


def _stacks() -> str:
    """Where each thread is."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = sys._current_frames().items()
    return "\n".join(f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in found)
