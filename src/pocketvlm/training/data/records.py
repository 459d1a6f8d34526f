"""A file of data → its records, read one at a time when they are asked for.

Opening a file finds out where its records are, and nothing more: memory holds 24 bytes a record, whatever it says.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any, Protocol

from pocketvlm.errors import ConfigError
from pocketvlm.text_files import LFS_POINTER
from pocketvlm.training.data.reading import read_head

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".csv", ".tsv")
SUFFIXES = (*JSON_SUFFIXES, *TABLE_SUFFIXES, ".parquet")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Records(Protocol):
    """The records of one file. They can be sent to other processes, and hold no open file.

    Attributes:
        path: of the file.
        name: of the file in messages, as short as it can be told from others by.
    """

    path: Path
    name: str

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
