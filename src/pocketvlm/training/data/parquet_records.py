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
        try:
            with _parquet().ParquetFile(path) as file:
                self.columns: list[str] = file.schema_arrow.names
                for group in range(file.num_row_groups):
                    about = file.metadata.row_group(group)
                    self._firsts.append(self._rows)
                    self._sizes.append(about.total_byte_size)
                    self._rows += about.num_rows
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from ValueError
            if isinstance(error, MissingExtraError):
                raise
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
        if group not in self._kept:
            try:
                with _parquet().ParquetFile(self.path) as file:
                    self._kept[group] = file.read_row_group(group)
            except (OSError, ValueError) as error:
                if isinstance(error, MissingExtraError):
                    raise
                raise PromptError(f"row group {group} cannot be read ({error})", hint="Download it again.") from None
            while len(self._kept) > 1 and sum(self._sizes[one] for one in self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
        row: dict[str, Any] = self._kept[group].slice(index - self._firsts[group], 1).to_pylist()[0]
        return row

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}


def _parquet() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow, which reads Parquet files,", "tune") from None
