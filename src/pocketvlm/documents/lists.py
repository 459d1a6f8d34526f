"""A list of documents in a file → the documents that are meant: names a line each, or a column of a table.

scans/a.pdf                     .txt, or any other name, or standard input (-): a name a line
{"file": "scans/a.pdf#2-5"}     .jsonl: objects with that column, or strings
file,customer                   .csv, .parquet: that column
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pocketvlm.documents.inputs import Found
from pocketvlm.errors import ConfigError, need
from pocketvlm.processing.media.pages import split_pages
from pocketvlm.processing.media.sources import is_path
from pocketvlm.ranges import show
from pocketvlm.remote_files import is_remote, read_remote
from pocketvlm.text_files import BYTE_ORDER_MARK

COLUMN = "file"
STANDARD_INPUT = "-"


def listed(source: str, column: str = COLUMN) -> list[Found]:
    """The files that a list names, in its order. Each is one file or address, not a folder or a pattern; that one does
    not exist is found out when it is opened, and is no error of the others.

    Args:
        source: a path, an address on a storage elsewhere, or "-".
        column: of a table, that has the names.

    Raises:
        ConfigError: the list cannot be read, has no such column, or names nothing.
        MissingExtraError: it is a Parquet file, and pyarrow is not installed.
    """
    suffix = Path(source).suffix.lower()
    body = _content(source)
    if suffix == ".parquet":
        names = _of_parquet(body, column, source)
    else:
        names = _of_text(_text(body, source), suffix, column, source)
    found = [_found(name) for name in names if name]
    if not found:
        raise ConfigError(
            f"the list {source} names no file", hint="Give a name a line, or a table with a column of them."
        )
    return found


def _content(source: str) -> bytes:
    if source == STANDARD_INPUT:
        return sys.stdin.buffer.read()
    try:
        return read_remote(source) if is_remote(source) else Path(source).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no path"
        raise ConfigError(
            f"the list {show(source)} cannot be read: {reason}", hint="Name a file, or - for input."
        ) from None


def _text(body: bytes, source: str) -> str:
    try:
        return body.decode().removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError:
        raise ConfigError(f"the list {source} is not in UTF-8", hint="Save it as UTF-8.") from None


def _of_text(text: str, suffix: str, column: str, source: str) -> Iterator[str]:
    if suffix == ".csv":
        yield from _of_csv(text, column, source)
        return
    for number, line in enumerate(text.splitlines(), 1):
        yield _of_line(line, column, source, number) if suffix in (".jsonl", ".ndjson") else line.strip()


def _of_csv(text: str, column: str, source: str) -> Iterator[str]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        _check_column(rows.fieldnames or (), column, source)
        for row in rows:
            yield _name(row[column], source, rows.line_num)
    except csv.Error as error:
        raise ConfigError(f"line {rows.line_num + 1} of the list {source}: {error}", hint="Check the file.") from None


def _of_line(line: str, column: str, source: str, number: int) -> str:
    if not line.strip():
        return ""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"line {number} of the list {source} is not valid JSON") from None
    if isinstance(value, dict):
        _check_column(value, column, f"{source}, line {number},")
        value = value[column]
    return _name(value, source, number)


def _of_parquet(body: bytes, column: str, source: str) -> Iterator[str]:
    need("pyarrow", "pyarrow", "tables")
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(io.BytesIO(body)) as table:
            _check_column(table.schema_arrow.names, column, source)
            values = (value for group in table.iter_batches(columns=[column]) for value in group[column].to_pylist())
            yield from (_name(value, source, number) for number, value in enumerate(values, 1))
    except (OSError, ArrowException) as error:  # pyarrow has the former of damage, too
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"the list {source} is no table of Parquet: {reason:.200}", hint="Check the file.") from None


def _check_column(names: Iterable[str], column: str, source: str) -> None:
    if column not in names:
        known = ", ".join(show(name) for name in names) or "none"
        raise ConfigError(
            f"the list {source} has no column {show(column)}: {known:.200}", hint="Name one: --list-column."
        )


def _name(value: Any, source: str, number: int) -> str:
    """A name that stands in a row; "" of an empty one."""
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value:
        raise ConfigError(f"row {number} of the list {source} holds {show(value)}", hint="Expected the name of a file.")
    return value.strip()


def _found(name: str) -> Found:
    """One file. A relative name is its place, too, as if the folder had been named that the list was made in."""
    if is_remote(name):
        bare, hash_, choice = name.rpartition("#")
        url = bare if hash_ else name
        return Found(name, Path(url.rstrip("/").rpartition("/")[2]), url, choice if hash_ else None)
    bare = str(split_pages(name)[0])
    path = Path(bare)
    is_below = not path.is_absolute() and ".." not in path.parts
    return Found(name if is_path(bare) else f"./{name}", path if is_below else Path(path.name))
