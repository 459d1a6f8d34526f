"""Rows → a file: JSON lines as they are, or a table whose columns are fields (CSV, Excel, Parquet).

Arrays of a row have columns of their own (`data.items.0.price`), or rows of their own in a second table. In Parquet
they stay arrays, with the types of the schema (`arrow`).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import IO, Any

from pocketvlm.documents.fields import join
from pocketvlm.errors import ConfigError, MissingExtraError
from pocketvlm.files import whole_file

Rows = Callable[[], Iterable[dict[str, Any]]]  # may be asked for several times: a table's columns are known at its end
SUFFIXES = (".jsonl", ".csv", ".xlsx", ".parquet")
ARRAYS = ("columns", "table")
# What a spreadsheet takes for the beginning of a formula; a document may come from anyone.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NO_XML = re.compile(
    "[\ud800-\udfff\ufffe\uffff]"
)  # beside what openpyxl knows: halves of characters, and no characters
_EXCEL_ROWS, _EXCEL_COLUMNS, _EXCEL_TEXT = 1_048_576, 16_384, 32_767


def check_table(out: Path, arrays: str = "columns") -> None:
    """Refuse a table that could not be written.

    Raises:
        ConfigError: the name ends in none of `SUFFIXES`, or its format has no use for `arrays`.
        MissingExtraError: its package is not installed.
    """
    if out.suffix not in SUFFIXES:
        endings = ", ".join(SUFFIXES[:-1])
        raise ConfigError(f"{out} ends in no table that can be written", hint=f"Use {endings} or {SUFFIXES[-1]}.")
    if arrays == "table" and out.suffix not in (".csv", ".xlsx"):
        raise ConfigError(f"a second table has no use for {out.suffix}: it keeps arrays", hint="Leave --arrays out.")
    if out.suffix == ".xlsx" and find_spec("openpyxl") is None:
        raise MissingExtraError("openpyxl", "tables")
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "tables")


def second_table(out: Path) -> Path:
    """Where the rows of arrays go, of a CSV."""
    return out.with_name(f"{out.stem}.items{out.suffix}")


def write_rows(out: Path, rows: Rows, *, arrays: str = "columns", schema: Mapping[str, Any] | None = None) -> None:
    """Write all rows, or nothing.

    Args:
        arrays: "columns" gives each item columns of its own; "table" gives it a row in a second table (the sheet
            "items", or `second_table`), with the file and the name of the array.
        schema: of `data`, for types of columns.

    Raises:
        ConfigError, MissingExtraError: as `check_table` and `whole_file`.
        OutputError: as `whole_file`.
    """
    check_table(out, arrays)
    if out.suffix == ".jsonl":
        _write(out, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows()))
        return
    if out.suffix == ".parquet":
        from pocketvlm.documents.arrow import write_parquet

        with whole_file(out) as file:
            write_parquet(file, rows(), schema or {})
        return
    tables = {"rows": lambda: (row_cells(row, arrays=arrays == "columns") for row in rows())}
    if arrays == "table":
        tables["items"] = lambda: (item for row in rows() for item in items_of(row))
    if out.suffix == ".xlsx":
        with whole_file(out) as file:
            _write_excel(file, tables)
        return
    for name, table in reversed(tables.items()):  # the rows last: where they stand, all is there
        _write(out if name == "rows" else second_table(out), _csv_lines(table))


def row_cells(row: Mapping[str, Any], *, arrays: bool = True) -> dict[str, Any]:
    """One level of fields of a row: `data.items.0.price`; items of arrays count from 0, as in `confidence`.

    Args:
        arrays: False leaves arrays out, and the confidences of what is in them.
    """
    cells = _where(row)
    if row["data"] is not None:
        cells |= flattened(row["data"], "data", arrays=arrays)
    for name, sure in row["confidence"].items():
        if arrays or f"data.{name}" in cells:
            cells[f"confidence.{name}"] = sure
    return {**cells, "error": row["error"]}


def flattened(value: Any, name: str, *, arrays: bool = True) -> dict[str, Any]:
    """The values in `value`, which is called `name`, by their own names; empty objects and arrays are left out."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value)) if arrays else []
    else:
        return {name: value}
    return {k: v for key, part in pairs for k, v in flattened(part, join(name, key), arrays=arrays).items()}


def items_of(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each item of the arrays in `data`: the file, its pages, the array's name, the item's number from 0, and
    its fields, each behind `value`, and how sure the model is of them, behind `confidence`."""
    for array, number, item in _items(row["data"], ""):
        cells = flattened(item, "value")
        names = {name: name.removeprefix("value") for name in cells}
        sure = {f"confidence{rest}": row["confidence"].get(f"{join(array, number)}{rest}") for rest in names.values()}
        known = {name: value for name, value in sure.items() if value is not None}
        yield {**_where(row), "array": array, "item": number, **cells, **known}


def _where(row: Mapping[str, Any]) -> dict[str, Any]:
    """The file, and its page or pages, of which a cell holds all."""
    pages = {"page": row["page"]} if "page" in row else {"pages": ", ".join(map(str, row["pages"]))}
    return {"file": row["file"], **pages}


def _items(value: Any, name: str) -> Iterator[tuple[str, int, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _items(part, join(name, key))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield name, number, part


def _columns(table: Callable[[], Iterable[dict[str, Any]]]) -> list[str]:
    """In the order in which they first appear; the error last."""
    names = dict.fromkeys(name for row in table() for name in row)
    return [*(name for name in names if name != "error"), *(["error"] if "error" in names else [])]


def _csv_lines(table: Callable[[], Iterable[dict[str, Any]]]) -> Iterator[str]:
    columns = _columns(table)
    line = io.StringIO(newline="")
    writer = csv.writer(line, lineterminator="\r\n")  # RFC 4180; cells with either of them are quoted
    for cells in chain([columns], ([_harmless(row.get(name)) for name in columns] for row in table())):
        writer.writerow(cells)
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def _harmless(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text that would be one begins with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _write(out: Path, lines: Iterable[str]) -> None:
    with whole_file(out) as file:
        for line in lines:
            file.write(line.encode(errors="replace"))


def _write_excel(file: IO[bytes], tables: Mapping[str, Callable[[], Iterable[dict[str, Any]]]]) -> None:
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = Workbook(write_only=True)
    for name, table in tables.items():
        sheet = book.create_sheet(name)

        def cell(value: Any, sheet: Any = sheet) -> Any:
            if not isinstance(value, str):
                return value
            text = _NO_XML.sub("\ufffd", ILLEGAL_CHARACTERS_RE.sub("\ufffd", value))
            made = WriteOnlyCell(sheet, text[:_EXCEL_TEXT])
            made.data_type = "s"  # text, also where it begins with "="
            return made

        columns = _columns(table)
        if len(columns) > _EXCEL_COLUMNS:
            raise ConfigError(
                f"the table has {len(columns)} columns, Excel takes {_EXCEL_COLUMNS}",
                hint="Use --arrays table, or write .parquet or .jsonl.",
            )
        sheet.append([cell(name) for name in columns])
        for number, row in enumerate(table(), 2):
            if number > _EXCEL_ROWS:
                raise ConfigError(f"the table has more than {_EXCEL_ROWS - 1} rows", hint="Write .csv or .parquet.")
            sheet.append([cell(row.get(name)) for name in columns])
    book.save(file)
