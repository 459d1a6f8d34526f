"""A process of its own that looks into files: which pages a document has, the text that a PDF itself holds, and what a
page looks like to people.

`read` and `extract` need these before, or beside, what the model is shown. A file that makes a decoder crash,
hang or take all memory ends this process, which is replaced: it costs that file, and the run goes on.

Run as a module, it answers until its input ends: pickled questions from us, JSON back, as a decoder that was taken over
could be speaking.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from pocketvlm.errors import EngineError, MediaError, PocketVLMError
from pocketvlm.processing.confinement import confine
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.sources import describe
from pocketvlm.remote_files import MAX_BYTES

_T = TypeVar("_T")
SECONDS = 120.0  # that an answer may take
START_SECONDS = 60.0  # until a new process has answered
MAX_ANSWER = 2**28  # bytes
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
        self._is_late = False

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
            EngineError: no such process can be started.
        """
        return self._ask(_as_pages, "pages", source)

    def texts(self, source: str | bytes, pages: Sequence[int]) -> list[str] | None:
        """The text layer of pages of a PDF, "" of a scan without one; None of what is no PDF.

        Args:
            source: a path without a choice of pages, or content.
            pages: counted from 1.

        Raises:
            MediaError, EngineError: as `pages`.
        """

        def as_texts(found: Any) -> list[str] | None:
            if found is None:
                return None
            if len(found) != len(pages) or not all(isinstance(text, str) for text in found):
                raise TypeError
            return list(found)

        return self._ask(as_texts, "texts", source, list(pages))

    def picture(self, source: str | bytes, side: int, quality: int) -> str:
        """One page as a JPEG file, in base64, whose longer side has at most `side` pixels.

        Args:
            source: a path or content, with a choice of one page behind it where it has several.
            quality: of the JPEG, 1 to 95.

        Raises:
            MediaError, EngineError: as `pages`.
        """

        def as_text(found: Any) -> str:
            base64.b64decode(found, validate=True)
            return str(found)

        return self._ask(as_text, "picture", source, side, quality)

    def _ask(self, read: Callable[[Any], _T], question: str, source: str | bytes, *more: Any) -> _T:
        """What `read` makes of the answer, which may be anything: a decoder that was taken over could be speaking."""
        for _ in range(2):  # once more, as somebody else may have ended the process
            process = self._process or self._start()
            answer = self._exchange(process, (question, source, *more), self._seconds)
            if isinstance(answer, dict) and "fault" in answer:
                raise MediaError(str(answer["fault"])[:1000])
            with suppress(Exception):
                return read(answer["found"])
            self._end()
            if self._is_late:
                raise MediaError(f"{describe(source)}: looking into it took more than {self._seconds:g} seconds")
        raise MediaError(f"{describe(source)}: the decoder crashed", hint="Save the file anew.")

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
            )
        except OSError as error:
            raise EngineError(f"the process that opens documents cannot be started: {error.strerror}") from None
        if self._exchange(self._process, ("ready",), START_SECONDS) != {"found": "ready"}:
            self._end()
            raise EngineError("the process that opens documents did not start")
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], question: tuple[Any, ...], seconds: float) -> Any:
        """The answer, or None where the process has ended, says what is no JSON, or was killed as it took too long."""
        self._is_late = False

        def kill() -> None:
            self._is_late = True
            process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            pickle.dump(question, process.stdin, pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            return json.loads(process.stdout.readline(MAX_ANSWER))
        except Exception:
            return None
        except BaseException:  # Ctrl-C: its answer would be taken for that to the next question
            self._end()
            raise
        finally:
            timer.cancel()

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


def _as_pages(found: Any) -> tuple[int, ...]:
    if not found or not all(type(page) is int and 0 < page < 2**31 for page in found):
        raise TypeError
    return tuple(found)


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


def _picture(source: str | bytes, side: int, quality: int) -> str:
    from PIL import Image

    from pocketvlm.processing.media.load_image import load_image

    picture = Image.fromarray(load_image(source, _MANY))
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return base64.b64encode(file.getvalue()).decode()


_QUESTIONS: Mapping[str, Callable[..., Any]] = {
    "pages": _pages,
    "texts": _texts,
    "picture": _picture,
    "ready": lambda: "ready",
}


def _serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    while True:
        try:
            question, *about = pickle.load(questions)
        except EOFError:
            return
        # Whoever asks has a clock of its own, but may have been killed.
        _end_after(2 * SECONDS)
        name = describe(about[0]) if about else ""
        try:
            answer: dict[str, Any] = {"found": _QUESTIONS[question](*about)}
        except MemoryError:
            answer = {"fault": f"{name}: looking into it takes more than {MEMORY >> 30} GiB of memory"}
        except OSError as error:
            answer = {"fault": f"{name} cannot be read: {error.strerror}"}
        except PocketVLMError as error:
            answer = {"fault": str(error)}
        except Exception as error:
            answer = {"fault": f"{name}: a fault of the program: {type(error).__name__}"}
        _end_after(0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _end_after(seconds: float) -> None:
    """Let the system end this process then, whatever it is doing; 0 calls that off."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _main() -> None:
    confine(MEMORY)
    # What a library prints is no answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    _main()
