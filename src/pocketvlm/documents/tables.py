"""Rows → a file: JSON lines as they are, or a table with a column for each field (CSV)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.files import whole_file

SUFFIXES = (".jsonl", ".csv")


def check_suffix(out: Path) -> None:
    """Refuse a file that is none of `SUFFIXES`; `ConfigError`."""
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"{out} ends in no table that can be written", hint=f"Expected {' or '.join(SUFFIXES)}.")


def write_rows(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write all rows, or nothing.

    Raises:
        ConfigError, OutputError: as `whole_file`.
    """
    text = io.StringIO()
    if out.suffix == ".csv":
        flat = [flattened(row) for row in rows]
        columns = list(dict.fromkeys(name for row in flat for name in row))
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(flat)
    else:
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with whole_file(out) as file:
        file.write(text.getvalue().encode())


def flattened(value: Any, name: str = "") -> dict[str, Any]:
    """One level of fields: `data.items.0.price`; items of arrays count from 0, as in `confidence`."""
    if isinstance(value, dict):
        pairs = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, list) and name != "pages":
        pairs = [(str(key), part) for key, part in enumerate(value)]
    else:
        return {name: json.dumps(value) if isinstance(value, list) else value}
    return {k: v for key, part in pairs for k, v in flattened(part, f"{name}.{key}" if name else key).items()}
