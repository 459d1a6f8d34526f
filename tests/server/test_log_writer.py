"""Nobody waits for whoever is to read the log; what is taken is written in order, and what is lost is counted."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import pytest
from helpers.serving import NO_DECODERS, Serving

from pocketvlm.server.log_writer import MAX_WAITING, LogWriter

pytestmark = pytest.mark.skipif(os.name == "nt", reason="its pipes and signals are others; run on Linux or macOS")
MORE = 2**16  # bytes, than which a pipe takes no more


@contextmanager
def pipe() -> Iterator[tuple[int, TextIO]]:
    """What reads, and a stream to it."""
    reader, writer = os.pipe()
    try:
        with os.fdopen(writer, "w") as stream:
            yield reader, stream
    finally:
        with suppress(OSError):
            os.close(reader)


def say(handler: LogWriter, text: str) -> None:
    handler.emit(logging.makeLogRecord({"msg": text, "levelname": "WARNING"}))


def read_all(reader: int, handler: LogWriter) -> str:
    """What comes until all is written."""
    found = b""
    os.set_blocking(reader, False)
    done = False
    while not done:
        done = handler.is_written(0.05)
        with suppress(BlockingIOError):
            while piece := os.read(reader, MORE):
                found += piece
    return found.decode()


def test_lines_that_nobody_takes_hold_nobody_up_and_their_number_is_said_once_somebody_does() -> None:
    with pipe() as (reader, stream):
        handler = LogWriter(stream)
        count = 3 * MAX_WAITING
        for number in range(count):
            say(handler, f"{number} {'x' * 100}")
        assert not handler.is_written(0.01)
        lines = read_all(reader, handler).splitlines()
    told = [line for line in lines if line.endswith(" lines of this log are lost: nobody took them in time")]
    kept = [int(line.split()[0]) for line in lines if line not in told]
    assert kept == sorted(set(kept))
    assert MAX_WAITING <= len(kept) < count
    assert len(kept) + sum(int(line.split()[0]) for line in told) == count


def test_a_pipe_in_which_no_write_waits_gets_all_of_it() -> None:
    with pipe() as (reader, stream):
        os.set_blocking(stream.fileno(), False)
        handler = LogWriter(stream)
        text = "y" * (3 * MORE)
        say(handler, text)
        assert read_all(reader, handler) == f"{text}\n"


def test_what_is_being_written_when_its_stream_is_closed_goes_into_no_file_that_is_opened_next() -> None:
    with pipe() as (reader, stream), pipe() as (other, next_one):
        handler = LogWriter(stream)
        say(handler, "x" * (3 * MORE))
        assert not handler.is_written(0.1)
        number = stream.fileno()
        stream.close()
        os.dup2(next_one.fileno(), number)  # as any file that is opened now may get it
        os.close(reader)
        assert handler.is_written(60)
        os.close(number)
        os.set_blocking(other, False)
        with pytest.raises(BlockingIOError):
            os.read(other, MORE)


def test_a_reader_that_left_and_a_line_that_cannot_be_formatted_end_no_log() -> None:
    with pipe() as (reader, stream):
        handler = LogWriter(stream)
        os.close(reader)
        say(handler, "nobody")
        assert handler.is_written(60)
    text = io.StringIO()
    handler = LogWriter(text)
    handler.emit(logging.makeLogRecord({"msg": "%d", "args": ("no number",), "levelname": "ERROR", "name": "other"}))
    say(handler, "é")
    assert handler.is_written(60)
    assert text.getvalue().splitlines() == ["ERROR other: a line that cannot be formatted", "é"]


def test_what_follows_a_log_that_nobody_takes_is_lost_and_waits_for_nobody() -> None:
    with pipe() as (_reader, stream):
        handler = LogWriter(stream)
        say(handler, "z" * (3 * MORE))
        handler.end()
        stream.write("and the last words" * MORE)
        stream.flush()


def test_a_server_whose_log_nobody_reads_answers_and_ends_as_any_other() -> None:
    command = [sys.executable, "-m", "pocketvlm.cli", "serve", "--port=0", "--json", *NO_DECODERS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "pipesize": 4096}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            assert process.stdout is not None
            served = Serving(process, json.loads(process.stdout.readline())["url"], Path(os.devnull))
            for _ in range(200):
                assert served.ask("/v1/models", headers={"x-request-id": "r" * 64})[0] == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
