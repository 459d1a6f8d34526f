"""Tables of text with a header (CSV, TSV) → records; a cell may hold line breaks."""

from __future__ import annotations

import codecs
import csv
import io
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pocketvlm.errors import ConfigError, PromptError
from pocketvlm.processing.picture_options import PICTURE_OPTIONS
from pocketvlm.training.data.columns import LISTS, known_columns
from pocketvlm.training.data.reading import decode, read_span

_DELIMITERS = (",", ";", "\t", "|")
# Cells may hold pictures in base64; the csv module stops at 128 KiB. Its limit is the process's, and only ever raised.
_LONGEST_CELL = 2**30


class CsvRecords:
    """Rows of a table, by the names in its first row. See `Records`.

    Raises:
        ConfigError: it has no header, or no row behind it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        _raise_limit()
        self._begins, self._ends, self._numbers = array("q"), array("q"), array("q")
        self._delimiter, self.columns = self._header()
        rows = self._rows()
        next(rows)  # the header
        for number, begin, end, is_blank in rows:
            if not is_blank:
                self._begins.append(begin)
                self._ends.append(end)
                self._numbers.append(number)
        if not self._begins:
            raise ConfigError(f"{path} has a header and no rows", hint="Write one sample a row.")

    def _header(self) -> tuple[str, list[str]]:
        with self.path.open("rb") as file:
            line = file.readline(2**20).removeprefix(codecs.BOM_UTF8)
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise ConfigError(f"{self.path}:1 is not UTF-8", hint="Save it as UTF-8.") from None
        headers = []
        for delimiter in _DELIMITERS:
            try:
                names = [name.strip() for name in next(csv.reader([text], delimiter=delimiter), [])]
            except csv.Error:  # a carriage return and no line break
                hint = "Save it with the line ends of Linux or Windows."
                raise ConfigError(f"{self.path}:1 is no row of a table", hint=hint) from None
            headers.append((len(known_columns(names)), delimiter, names))
        found, delimiter, names = max(headers, key=lambda header: header[0])
        if not found:
            raise ConfigError(
                f"{self.path}:1 is no header: it names no known column, it begins {text[:60].strip()!r}",
                hint="Write a first row such as image,question,answer.",
            )
        # A spreadsheet writes columns without a name where cells behind the others were used once.
        if twins := {name for name in names if name and names.count(name) > 1}:
            raise ConfigError(f"{self.path}:1 names {min(twins)!r} twice", hint="Give each column its own name.")
        return delimiter, names

    def _rows(self) -> Iterator[tuple[int, int, int, bool]]:
        """(number of the first line, begin, end, whether it is blank) of each row.

        Bytes are read as Latin-1, which takes every byte for one character: only where rows end is looked for.
        """
        begin = end = 0
        number = first = 1
        with self.path.open("rb") as file:

            def lines() -> Iterator[str]:
                nonlocal end, number
                for line in file:
                    end += len(line)
                    number += 1
                    yield line.decode("latin-1")

            try:
                for cells in csv.reader(lines(), delimiter=self._delimiter):
                    yield first, begin, end, not any(cell.strip() for cell in cells)
                    begin, first = end, number
            except csv.Error as error:
                raise ConfigError(f"{self.path}:{first} is no row of a table: {error}") from None

    def __len__(self) -> int:
        return len(self._begins)

    def where(self, index: int) -> str:
        return f"{self.name}:{self._numbers[index]}"

    def read(self, index: int) -> dict[str, Any]:
        _raise_limit()
        text = decode(read_span(self.path, self._begins[index], self._ends[index]))
        try:
            rows = list(csv.reader(io.StringIO(text, newline="\n"), delimiter=self._delimiter, strict=True))
        except csv.Error as error:
            raise PromptError(f"it is no row of a table ({error})", hint="Check its quotation marks.") from None
        cells = rows[0]
        if len(rows) != 1 or len(cells) != len(self.columns):
            raise PromptError(
                f"it has {len(cells)} cells, expected {len(self.columns)}: {', '.join(self.columns)}",
                hint="Put cells that hold the delimiter in quotation marks.",
            )
        return {name: _value(name, cell) for name, cell in zip(self.columns, cells, strict=True) if cell.strip()}


def _value(name: str, cell: str) -> Any:
    """What a cell says: text, but for options of pictures, and for lists of media and turns in JSON."""
    if PICTURE_OPTIONS.get(name, "string").startswith("string") and not (name in LISTS and cell.startswith("[")):
        return cell
    try:
        return json.loads(cell.lower() if name in PICTURE_OPTIONS else cell)
    except (ValueError, RecursionError):
        raise PromptError(f"{name} is {cell[:40]!r}, expected JSON", hint="Such as 4, or a list.") from None


def _raise_limit() -> None:
    if csv.field_size_limit() < _LONGEST_CELL:
        csv.field_size_limit(_LONGEST_CELL)
