"""A file of requests, one a line, in the format of OpenAI's batch files → where each of them is.

Of each line only its place and a hash of its custom_id are kept in memory.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pocketvlm.errors import ConfigError
from pocketvlm.json_text import is_text, read_json
from pocketvlm.ranges import show_json

Progress = Callable[[str, int, int], None]

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
        self._indices: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.offsets)

    def index_of(self, custom_id: str) -> int | None:
        """Return which request has this custom_id, or None."""
        return self._indices.get(_hash(custom_id))

    def add(self, custom_id: str, offset: int, number: int) -> None:
        self._indices[_hash(custom_id)] = len(self)
        self.offsets.append(offset)
        self.numbers.append(number)


def open_lines(path: Path) -> IO[bytes]:
    """Open the file of the requests; `ConfigError` where it is none, or cannot be read.

    A pipe is refused: the file is read twice, to check every line before any is answered. A device has no end.
    """
    try:
        if path.exists() and not path.is_file():
            hint = "Save the requests to a file first: they are read twice." if path.is_fifo() else ""
            raise ConfigError(f"{path} is not an ordinary file", hint=hint or "Give a file with one request a line.")
        return path.open("rb")
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError, and so is a `ConfigError`
        if isinstance(error, ConfigError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{str(path)!r:.80} cannot be read: {reason}", hint="Check the path.") from None


def read_lines(path: Path, model: str, report: Progress | None = None, place: str | None = None) -> Lines:
    """Check every line of a file, one at a time, before anything is run.

    Args:
        model: the name that lines may give.
        report: called with (what, done, in all).
        place: what messages have in front of the number of a line; None: the path, and "line".

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
                where = f"{place or f'{path}, line'} {number}"
                custom_id = parse_line(line, where, model)["custom_id"]
                if (other := lines.index_of(custom_id)) is not None:
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
    """Read one line of a batch file; of its body only the model is checked.

    Raises:
        ConfigError: what is wrong, after `where`.
    """
    try:
        request = read_json(line)
    except (ValueError, RecursionError):
        long = len(line) == MAX_LINE and not line.endswith(b"\n")
        raise ConfigError(f"{where}: {'too long' if long else 'not valid JSON'}") from None
    if not isinstance(request, dict):
        raise ConfigError(f"{where}: expected an object with {', '.join(_FIELDS)}")
    for name in request:
        if name not in _FIELDS:
            raise ConfigError(f"{where}: a request has no field {show_json(name)}", hint="Leave it out.")
    custom_id = request.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id or not is_text(custom_id):
        raise ConfigError(f"{where}: custom_id is missing or no text", hint="Give each line its own.")
    if request.get("method") != "POST":
        raise ConfigError(f"{where}: method is {show_json(request.get('method'))}, expected 'POST'")
    if request.get("url") != URL:
        raise ConfigError(f"{where}: url is {show_json(request.get('url'))}, expected '{URL}'")
    body = request.get("body")
    if not isinstance(body, dict):
        raise ConfigError(f"{where}: body is missing or not an object")
    if body.get("model") not in (None, model):
        raise ConfigError(
            f"{where}: model is {show_json(body['model'])}, this run has {model!r:.60}",
            hint="Pass --model, or --served-model-name with the name that the lines give.",
        )
    return request


def _hash(custom_id: str) -> bytes:
    return hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
