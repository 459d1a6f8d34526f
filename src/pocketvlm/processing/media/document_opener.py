"""A process of its own that looks into files first: which pages a document has, and the text that a PDF itself holds.

`read` and `extract` need both of every file before, or beside, any page is decoded. A file that makes a decoder crash,
hang or take all memory ends this process, which is replaced: it costs that file, and the run goes on.

Run as a module, it answers until its input ends: pickled questions from us, JSON back, as a decoder that was taken over
could be speaking.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

from pocketvlm.errors import MediaError, PocketVLMError
from pocketvlm.processing.confinement import confine
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.sources import describe
from pocketvlm.remote_files import MAX_BYTES

SECONDS = 120.0  # that looking into a file may take
MEMORY = 8 * 2**30  # bytes of address space beyond those of a process that has just begun
# Pages are asked for one by one, so that a document may have many; what is elsewhere may be as large as what is here.
_MANY = MediaLimits(max_images=1_000_000, max_bytes=MAX_BYTES)


class DocumentOpener:
    """One such process, started with the first question; for one thread at a time. A context manager.

    Args:
        seconds: that an answer may take.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def pages(self, source: str | bytes) -> tuple[int, ...]:
        """The pages of a file that are wanted, counted from 1, each once.

        Args:
            source: a path, or content as `NamedBytes`, with a choice of pages behind it or not.

        Raises:
            MediaError: the file is neither picture nor document, damaged or protected, has no such page, or looking
                into it ended the process or took too long.
        """
        return tuple(map(int, self._ask("pages", source)))

    def texts(self, source: str | bytes, pages: Sequence[int]) -> list[str] | None:
        """The text layer of pages of a PDF, "" of a scan without one; None of what is no PDF.

        Args:
            source: a path without a choice of pages, or content.
            pages: counted from 1.

        Raises:
            MediaError: as `pages`.
        """
        found = self._ask("texts", source, list(pages))
        return None if found is None else list(map(str, found))

    def _ask(self, question: str, source: str | bytes, *more: Any) -> Any:
        for _ in range(2):  # once more, as somebody else may have ended the process
            is_late = threading.Event()
            process = self._running()

            def kill(process: subprocess.Popen[bytes] = process, is_late: threading.Event = is_late) -> None:
                is_late.set()
                process.kill()

            timer = threading.Timer(self._seconds, kill)
            timer.daemon = True
            timer.start()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                pickle.dump((question, source, *more), process.stdin, pickle.HIGHEST_PROTOCOL)
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
                if "fault" in answer:
                    raise MediaError(str(answer["fault"])[:1000])
                return answer["found"]
            except MediaError:
                raise
            except (OSError, ValueError, KeyError, TypeError):  # the end of the process, or nothing that it would say
                self._end()
            except BaseException:  # Ctrl-C: its answer would be taken for that to the next question
                self._end()
                raise
            finally:
                timer.cancel()
            if is_late.is_set():
                raise MediaError(f"{describe(source)}: looking into it took more than {self._seconds:g} seconds")
        raise MediaError(f"{describe(source)}: the decoder crashed", hint="Save the file anew.")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not read any more
                    pipe.close()
        process.wait()


def _pages(source: str | bytes) -> list[int]:
    from pocketvlm.processing.media.page_reader import open_pages
    from pocketvlm.processing.media.pdf import Resolution

    with open_pages(source, _MANY, True, Resolution()) as pages:
        for index in pages.indices[:1]:
            pages.reader.size(index)  # some readers look into the file only now
        return list(dict.fromkeys(index + 1 for index in pages.indices))


def _texts(source: str | bytes, pages: Sequence[int]) -> list[str] | None:
    from pocketvlm.processing.media.kinds import HEAD_BYTES, is_pdf
    from pocketvlm.processing.media.pdf import page_texts

    body = source if isinstance(source, bytes) else Path(source).read_bytes()
    return page_texts(body, pages) if is_pdf(body[:HEAD_BYTES]) else None


_QUESTIONS: Mapping[str, Callable[..., Any]] = {"pages": _pages, "texts": _texts}


def _serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    while True:
        try:
            question, *about = pickle.load(questions)
        except EOFError:
            return
        try:
            answer: dict[str, Any] = {"found": _QUESTIONS[question](*about)}
        except OSError as error:
            answer = {"fault": f"{describe(about[0])} cannot be read: {error.strerror}"}
        except PocketVLMError as error:
            answer = {"fault": str(error)}
        except Exception as error:
            answer = {"fault": f"{describe(about[0])}: a fault of the program: {type(error).__name__}"}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    confine(MEMORY)
    _serve(sys.stdin.buffer, sys.stdout.buffer)
