"""A list of documents in a file → the documents that are meant: names a line each, or a column of a table.

scans/a.pdf                     .txt, or any other name, or standard input (-): a name a line, or between zero bytes
{"file": "scans/a.pdf#2-5"}     .jsonl: objects with that column, or strings where no column was named
file,customer                   .csv, .parquet: that column
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pocketvlm.documents.inputs import Found, not_read
from pocketvlm.errors import ConfigError, PocketVLMError, need
from pocketvlm.processing.media.pages import split_pages
from pocketvlm.processing.media.sources import is_path
from pocketvlm.ranges import show
from pocketvlm.remote_files import exists, is_remote, read_remote
from pocketvlm.text_files import BYTE_ORDER_MARK

COLUMN = "file"
TABLES = (".jsonl", ".ndjson", ".csv", ".parquet")
NAMELESS = "document"  # of a name that is that of a folder
STANDARD_INPUT = "-"


def listed(source: str, column: str | None = None) -> list[Found]:
    """The files that a list names, in its order. Each is one file or address, not a folder or a pattern; that one does
    not exist is found out when it is opened, and is no error of the others.

    Args:
        source: a path, an address on a storage elsewhere, or "-".
        column: of a table, that has the names; `COLUMN` when None.

    Raises:
        ConfigError: the list cannot be read, has no such column or no columns at all, or names nothing.
        MissingExtraError: it is a Parquet file, and pyarrow is not installed; or an address, and fsspec is not.
    """
    suffix = Path(source).suffix.lower()
    if column is not None and suffix not in TABLES:
        hint = f"Leave --list-column out, or give a table: {', '.join(TABLES)}."
        raise ConfigError(f"the list {show(source)} has no columns", hint=hint)
    body, wanted = _content(source), COLUMN if column is None else column
    if suffix == ".parquet":
        names = _of_parquet(body, wanted, source)
    elif suffix == ".csv":
        names = _of_csv(_text(body, source), wanted, source)
    elif suffix in TABLES:
        lines = enumerate(_text(body, source).split("\n"), 1)
        names = (_of_line(line, column, source, n) for n, line in lines)
    else:
        names = _of_plain(body, source)
    found = [_found(name) for name in names if name]
    if not found:
        hint = "Give a name a line, or a table with a column of them."
        raise ConfigError(f"the list {show(source)} names no file", hint=hint)
    return found


def _content(source: str) -> bytes:
    if source == STANDARD_INPUT:
        return sys.stdin.buffer.read()
    if is_remote(source):
        return read_remote(source)
    try:
        return Path(source).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        reason = error.strerror if isinstance(error, OSError) else "it is no path"
        hint = "Name a file, or - for standard input."
        raise ConfigError(f"the list {show(source)} cannot be read: {reason}", hint=hint) from None


def _text(body: bytes, source: str) -> str:
    try:
        return body.decode().removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError:
        raise ConfigError(f"the list {source} is not in UTF-8", hint="Save it as UTF-8.") from None


def _of_plain(body: bytes, source: str) -> Iterator[str]:
    """Names as the file system has them, in whatever encoding."""
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError(f"the list {source} is not in UTF-8", hint="Save it as UTF-8.")
    body = body.removeprefix(codecs.BOM_UTF8)
    end = b"\0" if b"\0" in body else b"\n"  # the former of `find -print0`
    for name in body.split(end):
        name = name.removesuffix(b"\r") if end == b"\n" else name
        if name.strip():
            yield os.fsdecode(name)


def _of_csv(text: str, column: str, source: str) -> Iterator[str]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        _check_column(rows.fieldnames or (), column, source)
        for row in rows:
            yield _name(row[column], source, rows.line_num)
    except csv.Error as error:
        raise ConfigError(f"line {rows.line_num + 1} of the list {source}: {error}", hint="Check the file.") from None


def _of_line(line: str, column: str | None, source: str, number: int) -> str:
    if not line.strip():
        return ""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"line {number} of the list {source} is not valid JSON") from None
    if isinstance(value, dict):
        wanted = COLUMN if column is None else column
        _check_column(value, wanted, f"{source}, line {number},")
        value = value[wanted]
    elif column is not None:
        raise ConfigError(
            f"line {number} of the list {source} has no columns", hint="Leave --list-column out, or give objects."
        )
    return _name(value, source, number)


def _of_parquet(body: bytes, column: str, source: str) -> Iterator[str]:
    need("pyarrow", "pyarrow", "tables")
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(io.BytesIO(body)) as table:
            _check_column(table.schema_arrow.names, column, source)
            values = (value for group in table.iter_batches(columns=[column]) for value in group[column].to_pylist())
            yield from (_name(value, source, number) for number, value in enumerate(values, 1))
    except (OSError, ArrowException, KeyError) as error:  # the last of a column that is there twice
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
    if not isinstance(value, str):
        raise ConfigError(f"row {number} of the list {source} holds {show(value)}", hint="Expected the name of a file.")
    return value if value.strip() else ""


def _found(name: str) -> Found:
    """One file. A relative name is its place, too, as if the folder had been named that the list was made in."""
    if is_remote(name):
        return _found_elsewhere(name)
    if reason := not_read(name):
        return Found(name, Path(NAMELESS), error=f"{name:.200} cannot be read: {reason}")
    bare = str(split_pages(name)[0])
    path = Path(bare)
    is_below = path.parts and not path.is_absolute() and ".." not in path.parts
    return Found(name if is_path(bare) else f"./{name}", path if is_below else Path(path.name or NAMELESS))


def _found_elsewhere(name: str) -> Found:
    """The file of that very name, or what stands before its last # with a choice of pages."""
    bare, hash_, choice = name.rpartition("#")
    url, pages = name, None
    if hash_:
        with suppress(PocketVLMError):  # a storage that cannot be reached is said when the file is opened
            url, pages = (name, None) if exists(name) else (bare, choice)
    last = url.rstrip("/").rpartition("/")[2]
    return Found(name, Path(NAMELESS if last in ("", ".", "..") else last), url, pages)
