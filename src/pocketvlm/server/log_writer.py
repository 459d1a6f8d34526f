"""A log that holds nobody up: its lines are written by a thread of their own, and lost where nobody takes them.

A pipe that nobody reads is full after some hundred lines, and a terminal stands still after Ctrl-S. Whoever writes to
them waits for ever, which must not be the event loop, nor whoever is to end the process.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from contextlib import suppress
from typing import TextIO

MAX_WAITING = 4096  # lines; of more than these the newest are lost
FLUSH_SECONDS = 1.0
_AT_ONCE = 64  # lines of one write
_GATHERING = 0.02  # seconds for which a line waits for others
_PAUSE = 0.05  # seconds


class LogWriter(logging.Handler):
    """Args:
    stream: a file, pipe or terminal, that others may write to as well; or text in memory.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        # One of its own: a write may still wait when the stream is closed, and its number may be another file's then.
        self._descriptor = -1
        with suppress(OSError, ValueError):
            self._descriptor = os.dup(stream.fileno())
        # Of the queues of Python only this one may be used by a signal that interrupts its own use.
        self._lines: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        self._lost = self._reported = 0
        threading.Thread(target=self._run, name="pocketvlm-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n"
        except Exception:  # telling of it as `logging` does would write to the stream here
            line = f"{record.levelname} {record.name}: a line that cannot be formatted\n"
        if self._lines.qsize() < MAX_WAITING:
            self._lines.put(line)
        else:
            self._lost += 1

    def flush(self) -> None:
        """Wait until what was logged so far is written, or nobody takes it."""
        self.is_written()

    def is_written(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until what was logged so far is; returns whether it was in time."""
        written = threading.Event()
        self._lines.put(written)
        return written.wait(seconds)

    def end(self) -> None:
        """Flush. If nobody takes the lines, whatever else is still to be written there goes nowhere."""
        if not self.is_written() and self._descriptor >= 0:
            with suppress(OSError):
                nobody = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nobody, self._stream.fileno())
                os.close(nobody)

    def _run(self) -> None:
        while True:
            found = [self._lines.get()]
            if isinstance(found[0], str):
                time.sleep(_GATHERING)  # whoever wakes this thread for each line takes turns with it at the GIL
            while len(found) < _AT_ONCE and not self._lines.empty():
                found.append(self._lines.get())
            self._write("".join(one for one in found if isinstance(one, str)))
            if lost := self._lost - self._reported:
                self._reported += lost
                text = f"{lost} lines of this log are lost: nobody took them in time"
                record = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": text}
                self._write(f"{self.format(logging.makeLogRecord(record))}\n")
            for one in found:
                if isinstance(one, threading.Event):
                    one.set()

    def _write(self, text: str) -> None:
        if self._descriptor < 0:
            with suppress(OSError, ValueError):
                self._stream.write(text)
                self._stream.flush()
            return
        # Not through the stream: Python waits for that when it ends.
        data = text.encode(self._stream.encoding or "utf-8", "backslashreplace")
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # whoever made the pipe wants nobody to wait in a write
                time.sleep(_PAUSE)
            except OSError:  # its reader has gone, or its disk is full
                return


def end_log() -> None:
    """Write what is left of the log, if anybody takes it."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogWriter):
            handler.end()
