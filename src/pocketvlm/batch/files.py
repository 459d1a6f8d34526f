"""The files of `pocketvlm batch`: requests, one a line, by their places; results so far, appended; results in order.

Of each line only its place and a hash of its custom_id are kept in memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from pocketvlm.errors import ConfigError
from pocketvlm.protocol.chat_response import to_json

Progress = Callable[[str, int, int], None]

FORMAT = "pocketvlm batch 1"
URL = "/v1/chat/completions"
MAX_LINE = 512 * 2**20  # bytes: sixteen pictures of the largest size in base64 are less
_FIELDS = ("custom_id", "method", "url", "body")


class Lines:
    """Where the requests of a file are.

    Attributes:
        offsets: of each request's line, in bytes.
        numbers: of each request's line, from 1, for messages.
        digest: of the whole file.
    """

    def __init__(self) -> None:
        self.offsets, self.numbers = array("q"), array("q")
        self.digest = ""
        self._places: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.offsets)

    def place(self, custom_id: str) -> int | None:
        """Which request has this custom_id."""
        return self._places.get(_hash(custom_id))

    def add(self, custom_id: str, offset: int, number: int) -> None:
        self._places[_hash(custom_id)] = len(self)
        self.offsets.append(offset)
        self.numbers.append(number)


def open_lines(path: Path) -> IO[bytes]:
    """The file of the requests; `ConfigError` where it is none, or cannot be read."""
    try:
        if not path.is_file():
            raise ConfigError(f"{path} is not a file", hint="Give the path of a file with one request a line.")
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint="Check the path.") from None


def read_lines(path: Path, model: str, report: Progress | None = None) -> Lines:
    """Check every line of a file, one at a time, before anything is run.

    Args:
        model: the name that lines may give.
        report: called with (what, done, in all).

    Raises:
        ConfigError: the file cannot be read, or the first line that is no request; the message has its number.
    """
    lines, digest = Lines(), hashlib.sha256()
    with open_lines(path) as file:
        size, offset, number = os.fstat(file.fileno()).st_size, 0, 0
        while line := file.readline(MAX_LINE):
            number += 1
            digest.update(line)
            if line.strip():
                where = f"{path}, line {number}"
                custom_id = parse_line(line, where, model)["custom_id"]
                if (other := lines.place(custom_id)) is not None:
                    raise ConfigError(
                        f"{where}: custom_id {custom_id!r:.60} is that of line {lines.numbers[other]}",
                        hint="Give each line its own.",
                    )
                lines.add(custom_id, offset, number)
            offset += len(line)
            if report and number % 1000 == 0:
                report("Checking", offset, size)
        if report:
            report("Checking", size, size)
    if not lines:
        raise ConfigError(f"{path} holds no requests", hint="Write one a line, in the format of OpenAI's batch files.")
    lines.digest = digest.hexdigest()
    return lines


def parse_line(line: bytes, where: str, model: str) -> dict[str, Any]:
    """One line of a batch file, its body still unchecked but for its model.

    Raises:
        ConfigError: what is wrong, after `where`.
    """
    try:
        request = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        long = len(line) == MAX_LINE and not line.endswith(b"\n")
        raise ConfigError(f"{where}: {'too long' if long else 'not valid JSON'}") from None
    if not isinstance(request, dict):
        raise ConfigError(f"{where}: expected an object with {', '.join(_FIELDS)}")
    for name in request:
        if name not in _FIELDS:
            raise ConfigError(f"{where}: a request has no field {ascii(name)[:60]}", hint="Leave it out.")
    custom_id = request.get("custom_id")
    # Half a surrogate pair can be read as JSON, but is no text that could be written again.
    if not isinstance(custom_id, str) or not custom_id or any("\ud800" <= char <= "\udfff" for char in custom_id):
        raise ConfigError(f"{where}: custom_id is missing or no text", hint="Give each line its own.")
    if request.get("method") != "POST":
        raise ConfigError(f"{where}: method is {ascii(request.get('method'))[:60]}, expected 'POST'")
    if request.get("url") != URL:
        raise ConfigError(f"{where}: url is {ascii(request.get('url'))[:60]}, expected '{URL}'")
    body = request.get("body")
    if not isinstance(body, dict):
        raise ConfigError(f"{where}: body is missing or not an object")
    if body.get("model") not in (None, model):
        raise ConfigError(
            f"{where}: model is {ascii(body['model'])[:60]}, this run has {model!r:.60}",
            hint="Pass --model, or --served-model-name with the name that the lines give.",
        )
    return request


class Partial:
    """Results so far, and where in their file each of them is. Made by `open_partial`.

    Attributes:
        done: results that are there.
        failed: how many of them are refusals or failures.
        output_tokens: of the others, in all.
    """

    def __init__(self, path: Path, file: IO[bytes], lines: Lines) -> None:
        self.path, self._file, self._lines = path, file, lines
        self._offsets = array("q", [-1]) * len(lines)
        self._end = 0
        self._lock = threading.Lock()  # refusals come from whoever draws the requests
        self.done = self.failed = self.output_tokens = 0

    def has(self, index: int) -> bool:
        """Whether request `index` has a result."""
        return self._offsets[index] >= 0

    def add(self, index: int, result: Mapping[str, Any]) -> None:
        """Append a result; it survives the end of this process when this returns."""
        line = to_json(result).encode(errors="replace") + b"\n"
        with self._lock:
            start = self._end
            self._append(line)
            self._note(index, start, result)

    def write(self, out: Path) -> None:
        """All results in the order of the requests, at once or not at all; then the partial file goes."""
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            with self.path.open("rb") as results, temporary.open("wb") as file:
                for offset in self._offsets:
                    results.seek(offset)
                    file.write(results.readline())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(out)
            _sync_directory(out.parent)
            self.path.unlink()
        except OSError as error:
            raise _cannot_write(out, error) from None
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, header: bytes) -> None:
        """Take up what an earlier run left; a last line that was cut off is dropped."""
        with self.path.open("rb") as file:
            first = file.readline()
            if not first.endswith(b"\n") and not header.startswith(first):  # neither new nor cut off in the header
                raise _not_ours(self.path)
            if first.endswith(b"\n"):
                _check_header(self.path, first, header)
                self._end, number = len(first), 1
                while (line := file.readline()).endswith(b"\n"):
                    number += 1
                    self._take_up(line, number)
        self._file.truncate(self._end)
        if self._end == 0:
            self._append(header)

    def _take_up(self, line: bytes, number: int) -> None:
        try:
            result = json.loads(line)
            index = self._lines.place(result["custom_id"])
            if index is None or self.has(index):
                raise ValueError
            self._note(index, self._end, result)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise ConfigError(
                f"line {number} of {self.path} is not a result of this input", hint="Delete the file to begin anew."
            ) from None
        self._end += len(line)

    def _note(self, index: int, start: int, result: Mapping[str, Any]) -> None:
        response = result["response"]
        if response["status_code"] == 200:
            self.output_tokens += response["body"]["usage"]["completion_tokens"]
        else:
            self.failed += 1
        self._offsets[index] = start
        self.done += 1

    def _append(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        self._end += len(line)


@contextmanager
def open_partial(path: Path, lines: Lines, settings: Mapping[str, Any]) -> Iterator[Partial]:
    """Open the file of results so far, new or to be continued. It goes where nothing came of it.

    Args:
        settings: what all results have in common; JSON values.

    Raises:
        ConfigError: the file cannot be written, is none of ours, is of another input or other settings, is damaged, or
            is being written by another run.
    """
    header = json.dumps({"format": FORMAT, "settings": settings}, sort_keys=True).encode() + b"\n"
    try:
        file = path.open("a+b", buffering=0)  # every result goes to the system at once
    except OSError as error:
        raise _cannot_write(path, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{path} is being written by another run", hint="Wait for it.") from None
        results = Partial(path, file, lines)
        results.read(header)
        try:
            yield results
        finally:
            if not results.done:
                path.unlink(missing_ok=True)


def _check_header(path: Path, first: bytes, header: bytes) -> None:
    """Refuse a file that is none of ours, or of another run."""
    try:
        header_found = json.loads(first)
        found = header_found["settings"]
        ours = header_found["format"] == FORMAT and isinstance(found, dict)
    except (ValueError, TypeError, LookupError, RecursionError):
        ours = False
    if not ours:
        raise _not_ours(path)
    wanted = json.loads(header)["settings"]
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            how = f"with {name}={found.get(name)!r:.80}, this run has {wanted.get(name)!r:.80}"
            raise ConfigError(
                f"{path} was begun {'with other content of the input' if name == 'input' else how}",
                hint="Delete the file to begin anew, or give the command that began it.",
            )


def _hash(custom_id: str) -> bytes:
    return hashlib.blake2b(custom_id.encode(), digest_size=16).digest()


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _sync_directory(directory: Path) -> None:
    """A new name is on the disk only when its directory is."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_ours(path: Path) -> ConfigError:
    return ConfigError(f"{path} is not a file of results", hint="Move it away, or give OUT.jsonl another name.")


def _cannot_write(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path} cannot be written: {error.strerror}", hint="The same command goes on from there.")
