"""What commands print, on consoles, files and pipes of every kind: results to stdout, messages to stderr.

A character that a console has no place for is escaped, in JSON as JSON has it. What cannot be written ends the command
with one line and a status of its own; stdout that was closed counts as that.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType

_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


class StdoutError(Exception):
    """The output could not be written; the message says why."""


class ReaderLeftError(StdoutError):
    """Whoever read the output has gone, as in `| head -1`: nobody misses the rest."""


def prepare() -> None:
    """Make the three streams what the rest can rely on: there, and never at a loss for a character."""
    if sys.stdin is None:
        sys.stdin = _opened(0, os.O_RDONLY, "r")
    if sys.stdout is None:
        sys.stdout = _opened(1, os.O_RDONLY, "w")  # so that writing to it fails
    if sys.stderr is None:
        sys.stderr = _opened(2, os.O_WRONLY, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def interrupts_count() -> Iterator[None]:
    """Have Ctrl-C within the block end it, at its own end at the latest.

    Python raises `KeyboardInterrupt` wherever it is; what is raised within a callback of the garbage collector is lost,
    and imports have many of them.
    """
    if threading.current_thread() is not threading.main_thread():  # no place for signals
        yield
        return
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception:  # of an import that was interrupted halfway and tried again
        if not came:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def put(text: str = "", *, end: str = "\n") -> None:
    """Print to stdout, at once.

    Raises:
        StdoutError: it could not be written; `ReaderLeftError` where nobody reads it any more.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        _leave_to_nobody(sys.stdout)
        # Windows says EINVAL where a pipe has no reader.
        has_left = isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL)
        raise (ReaderLeftError if has_left else StdoutError)(error.strerror or str(error)) from None


def put_json(value: Any) -> None:
    """Print one JSON line, valid whatever the console can show."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(value)
    put(text)


def put_rich(*parts: RenderableType, **options: Any) -> None:
    """Print tables and lines of rich; texts stand as they are, whatever brackets they hold.

    Args:
        options: of its `Console`.
    """
    from rich.console import Console

    console = Console(**{"markup": False, "highlight": False, "emoji": False, **options})
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    put(captured.get(), end="")


def harmless(text: str) -> str:
    """Text of others for a terminal, without characters that would control it; lines and tabs stay."""
    return text.translate(_CONTROLS)


def say(text: str, *, end: str = "\n") -> None:
    """Print a message to stderr; where that cannot be written it is dropped. It never stands in stdout."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        _leave_to_nobody(sys.stderr)


def say_aside(text: str) -> None:
    """Print a piece of what stands beside the result to stderr: dim on a terminal, unless NO_COLOR forbids it."""
    if sys.stderr.isatty():
        text = harmless(text)
        text = text if os.environ.get("NO_COLOR") else f"\x1b[2m{text}\x1b[0m"
    say(text, end="")


def _opened(number: int, flags: int, mode: str) -> TextIO:
    """Make a stream for one that was closed, with its number: a file that is opened later must not get that."""
    descriptor = os.open(os.devnull, flags)
    if descriptor != number:
        try:
            os.fstat(number)
        except OSError:
            os.dup2(descriptor, number)
            os.close(descriptor)
            descriptor = number
    raw = io.FileIO(descriptor, mode, closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw) if mode == "w" else io.BufferedReader(raw), encoding="utf-8")


def _leave_to_nobody(stream: TextIO) -> None:
    """Send what the stream still holds nowhere: it is written when the process ends, and would fail again."""
    with suppress(OSError, ValueError):
        nobody = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nobody, stream.fileno())
        finally:
            os.close(nobody)
