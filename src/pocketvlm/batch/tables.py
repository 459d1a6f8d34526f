"""Requests and results as Parquet, for those who keep their data in tables.

A table of requests has the columns `custom_id` and `body` (the request as JSON text, or as a struct), one of results
`custom_id`, `status_code`, `content` (the text of the first answer, null where there is none) and `body` (JSON text).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

from pocketvlm.batch.requests import URL
from pocketvlm.errors import ConfigError, need
from pocketvlm.files import whole_file
from pocketvlm.ranges import show_json

SUFFIX = ".parquet"
_ROWS = 1024  # of a group


def is_table(path: Path) -> bool:
    """Whether a file is a table, by its name."""
    return path.suffix.lower() == SUFFIX


def lines_of_table(table: Path, lines: Path, name: str) -> None:
    """Write the requests of a table as lines in the format of OpenAI's batch files.

    Args:
        name: of the table, for messages.

    Raises:
        ConfigError: it is no Parquet file, or has no such columns.
        MissingExtraError: pyarrow is not installed.
    """
    need("pyarrow", "pyarrow", "tables")
    with whole_file(lines) as file:
        for row in _rows_of(table, name):
            file.write(_line(row, name))


def _rows_of(table: Path, name: str) -> Iterator[dict[str, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(table) as source:
            for missing in {"custom_id", "body"} - set(source.schema_arrow.names):
                raise ConfigError(f"{name} has no column {missing}", hint="Give custom_id, and the request as body.")
            for group in source.iter_batches(_ROWS, columns=["custom_id", "body"]):
                yield from group.to_pylist()
    except (OSError, ArrowException) as error:  # pyarrow has the former of damage, too
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{name} is no table of Parquet: {reason:.200}", hint="Check the file.") from None


def _line(row: Mapping[str, Any], name: str) -> bytes:
    body = row["body"]
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):
            raise ConfigError(f"{name}: the body of {show_json(row['custom_id'])} is not valid JSON") from None
    elif isinstance(body, dict):
        body = _without_nulls(body)  # a struct of a column has all fields in every row
    request = {"custom_id": row["custom_id"], "method": "POST", "url": URL, "body": body}
    return json.dumps(request, ensure_ascii=False, default=str).encode(errors="replace") + b"\n"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def write_results(file: IO[bytes], results: Iterable[bytes]) -> None:
    """Write lines of results as a table.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    need("pyarrow", "pyarrow", "tables")
    import pyarrow
    from pyarrow import parquet

    text = pyarrow.string()
    fields = [("custom_id", text), ("status_code", pyarrow.int32()), ("content", text), ("body", text)]
    schema = pyarrow.schema(fields)
    rows = map(_result, results)
    with parquet.ParquetWriter(file, schema) as writer:
        while some := list(islice(rows, _ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(some, schema))


def _result(line: bytes) -> dict[str, Any]:
    result = json.loads(line)
    response = result["response"]
    body = response["body"]
    contents: Iterator[Any] = (choice["message"]["content"] for choice in body.get("choices", ()))
    return {
        "custom_id": result["custom_id"],
        "status_code": response["status_code"],
        "content": next(contents, None),
        "body": json.dumps(body, ensure_ascii=False),
    }
