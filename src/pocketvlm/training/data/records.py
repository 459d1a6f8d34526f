"""A file of data → its records, read one at a time when they are asked for; and what every kind of file has in common.

Opening a file finds out where its records are, and nothing more: memory holds 24 bytes a record, whatever it says.
"""

from __future__ import annotations

import codecs
import stat
from pathlib import Path
from typing import Any, Protocol

from pocketvlm.errors import ConfigError, PromptError
from pocketvlm.files import KINDS
from pocketvlm.json_text import is_text
from pocketvlm.text_files import LFS_POINTER

MAX_RECORD = 512 * 2**20  # bytes: sixteen pictures of the largest size in base64 are less
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".csv", ".tsv")
SUFFIXES = (*JSON_SUFFIXES, *TABLE_SUFFIXES, ".parquet")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Records(Protocol):
    """The records of one file. They can be sent to other processes, and hold no open file.

    Attributes:
        path: of the file.
    """

    path: Path

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """The place of a record, for people: `train.jsonl:17`."""
        ...

    def read(self, index: int) -> dict[str, Any]:
        """A record by the names of its columns; `PromptError` says what is wrong with it, and not where."""
        ...


def open_records(path: Path) -> Records:
    """The records of a file, told by its content and the end of its name; nothing of the network is ever read.

    Raises:
        ConfigError: it is missing, empty, no ordinary file, or of no kind that is known here.
        MissingExtraError: it is a Parquet file and pyarrow is not installed.
    """
    head = read_head(path)
    if head.startswith(b"PAR1") or path.suffix.lower() == ".parquet":
        from pocketvlm.training.data.parquet_records import ParquetRecords

        return ParquetRecords(path)
    if head.startswith(LFS_POINTER):
        raise ConfigError(f"{path} is a Git LFS pointer, not the file itself", hint="Run `git lfs pull` there.")
    if head.startswith(_UTF16) or b"\0" in head[:4]:
        raise ConfigError(f"{path} is UTF-16, UTF-32 or no text, expected UTF-8", hint="Save it as UTF-8.")
    suffix, first = path.suffix.lower(), head.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if suffix in TABLE_SUFFIXES:
        from pocketvlm.training.data.csv_records import CsvRecords

        return CsvRecords(path)
    if suffix not in JSON_SUFFIXES and first not in (b"{", b"["):
        raise ConfigError(f"{path} is no file of samples", hint=f"Give one of {', '.join(SUFFIXES)}.")
    from pocketvlm.training.data.json_records import JsonArray, JsonLines

    return JsonArray(path) if first == b"[" else JsonLines(path)


def read_head(path: Path) -> bytes:
    """The first 4 KiB of an ordinary file that is not empty; `ConfigError` says what it is instead."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = KINDS.get(stat.S_IFMT(mode), "no file")
            raise ConfigError(f"{path} is {kind}, expected a file", hint="Save the samples to a file first.")
        with path.open("rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", hint="Check the path.") from None
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError, and so is a `ConfigError`
        if isinstance(error, ConfigError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{str(path)!r:.200} cannot be read: {reason}", hint="Check its permissions.") from None
    if not head.strip():
        raise ConfigError(f"{path} is empty", hint="Write one sample a line.")
    return head


def read_span(path: Path, begin: int, end: int) -> bytes:
    """Bytes `begin` to `end` of a file."""
    if end - begin > MAX_RECORD:
        raise PromptError(f"it is {end - begin} bytes long, at most {MAX_RECORD} are read", hint="Give paths of media.")
    try:
        with path.open("rb") as file:
            file.seek(begin)
            data = file.read(end - begin)
    except OSError as error:
        raise PromptError(f"the file cannot be read any more ({error.strerror})") from None
    if len(data) != end - begin:
        raise PromptError("the file is shorter than when it was opened", hint="Leave it as it is during a run.")
    return data


def decode(data: bytes) -> str:
    """UTF-8 → text; `PromptError` where it is none."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise PromptError(f"it is not UTF-8 at byte {error.start + 1}", hint="Save the file as UTF-8.") from None


def check_text(value: str, what: str) -> str:
    """`value`, which may hold no control character but those of plain text, and no half of a character."""
    if not is_text(value):
        raise PromptError(f"{what} holds half of a surrogate pair, which is no character")
    if not value.isprintable():
        for character in value:
            if character < " " and character not in "\t\n\r\f":
                raise PromptError(f"{what} holds the control character U+{ord(character):04X}", hint="Take it away.")
    return value
