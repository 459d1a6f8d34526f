"""Parquet files → records, by row groups: of those that were read last a few are kept, up to 256 MiB a file."""

from __future__ import annotations

import importlib
from array import array
from bisect import bisect_right
from pathlib import Path
from typing import Any

from pocketvlm.errors import ConfigError, MissingExtraError, PromptError

_KEPT = 256 * 2**20  # bytes of row groups; what `datasets` writes has 100 rows of pictures in each


class ParquetRecords:
    """Rows of a file. Rows are numbered from 0, as `datasets` does. See `Records`.

    Raises:
        ConfigError: it is no Parquet file, or has no rows.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self._firsts, self._sizes = array("q"), array("q")  # of each row group: its first row, its bytes
        self._rows = 0
        self._kept: dict[int, Any] = {}
        reader, unreadable = _parquet()
        try:
            with reader.ParquetFile(path) as file:
                self.columns: list[str] = file.schema_arrow.names
                for group in range(file.num_row_groups):
                    about = file.metadata.row_group(group)
                    self._firsts.append(self._rows)
                    self._sizes.append(about.total_byte_size)
                    self._rows += about.num_rows
        except unreadable as error:
            raise ConfigError(f"{path} is not a readable Parquet file: {error}", hint="Download it again.") from None
        if not self._rows:
            raise ConfigError(f"{path} holds no rows", hint="Download it again.")
        if len(set(self.columns)) < len(self.columns):
            raise ConfigError(f"{path} has two columns of one name", hint="Give each column its own name.")

    def __len__(self) -> int:
        return self._rows

    def where(self, index: int) -> str:
        return f"{self.name} row {index}"

    def read(self, index: int) -> dict[str, Any]:
        group = bisect_right(self._firsts, index) - 1
        reader, unreadable = _parquet()
        try:
            if group not in self._kept:
                with reader.ParquetFile(self.path) as file:
                    self._kept[group] = file.read_row_group(group)
                while len(self._kept) > 1 and sum(self._sizes[one] for one in self._kept) > _KEPT:
                    del self._kept[next(iter(self._kept))]
            row: dict[str, Any] = self._kept[group].slice(index - self._firsts[group], 1).to_pylist()[0]
        except unreadable as error:
            # Among what pyarrow has not implemented are nested columns of more than 2 GiB in one group.
            is_large = isinstance(error, NotImplementedError | MemoryError)
            hint = "Write smaller row groups." if is_large else "Download it again."
            raise PromptError(f"row group {group} cannot be read ({error!s:.200})", hint=hint) from None
        return row

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}


def _parquet() -> tuple[Any, tuple[type[Exception], ...]]:
    """The reader, and what it raises for a file that it cannot read: not all of its own errors are ValueErrors."""
    try:
        reader, errors = importlib.import_module("pyarrow.parquet"), importlib.import_module("pyarrow").ArrowException
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow, which reads Parquet files,", "tune") from None
    return reader, (OSError, ValueError, OverflowError, errors)
