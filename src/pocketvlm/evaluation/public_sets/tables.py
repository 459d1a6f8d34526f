"""Tables with pictures in them → rows without the pictures, and pictures one at a time."""

from __future__ import annotations

import base64
import binascii
import csv
import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketvlm.errors import ConfigError, MediaError, MissingExtraError
from pocketvlm.evaluation.public_sets.files import Row

# Cells may hold base64 pictures; the csv module stops at 128 KiB by default. Its limit is the process's, so it is only
# ever raised.
_LONGEST_CELL = 1 << 30


def parquet_files(folders: Iterable[Path], splits: Iterable[str]) -> list[Path]:
    """The shards of a split, in order, from the first folder that has some: `SPLIT-00000-of-00004.parquet`."""
    patterns = [f"{split}-*.parquet" for split in splits] + [f"{split}.parquet" for split in splits]
    for folder in folders:
        for pattern in patterns:
            if shards := sorted(folder.glob(pattern)):
                return shards
    return []


class ParquetTable:
    """Rows of Parquet shards; the pictures stay on the disk until asked for, and of those one row group is kept.

    Args:
        shards: files of equal columns.
        image: name of the column of pictures (a struct of bytes and path, or bytes), or None without pictures.

    Attributes:
        rows: every row without its picture.

    Raises:
        MissingExtraError: pyarrow is not installed.
        ConfigError: a file that is no Parquet file, or has no such column.
    """

    def __init__(self, shards: Sequence[Path], image: str | None = "image") -> None:
        self._parquet, self._unreadable = _parquet()
        self._image = image
        self.rows: list[Row] = []
        self.path = shards[0]
        self._groups: list[tuple[int, Path, int]] = []  # number of the first row, file, group in the file
        self._kept: tuple[int, Any] = (-1, None)
        for shard in shards:
            self._read(shard)
        if not self.rows:
            raise ConfigError(f"{self.path} holds no rows", hint="Download it again.")

    def _read(self, shard: Path) -> None:
        try:
            with self._parquet.ParquetFile(shard) as file:
                names = file.schema_arrow.names
                light = [name for name in names if name != self._image]
                first = len(self.rows)
                for group in range(file.num_row_groups):
                    self._groups.append((first, shard, group))
                    first += file.metadata.row_group(group).num_rows
                self.rows += file.read(columns=light).to_pylist()
        except self._unreadable as error:
            raise ConfigError(f"{shard} is not a readable Parquet file: {error!s:.200}", hint=_hint(error)) from None
        if self._image is not None and self._image not in names:
            raise ConfigError(f"{shard} has no column {self._image!r}", hint=f"It has {', '.join(names)}.")

    def picture(self, row: int) -> bytes:
        """The bytes of the picture of a row; `MediaError` where there are none."""
        at = next(i for i in reversed(range(len(self._groups))) if self._groups[i][0] <= row)
        first, shard, group = self._groups[at]
        kept, column = self._kept
        if kept != at:
            try:
                with self._parquet.ParquetFile(shard) as file:
                    column = file.read_row_group(group, columns=[self._image]).column(0)
            except self._unreadable as error:
                text = f"{shard}: row group {group} cannot be read ({error!s:.200})"
                raise MediaError(text, hint=_hint(error)) from None
            self._kept = (at, column)
        cell = column[row - first].as_py()
        body = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(body, bytes) or not body:
            raise MediaError(f"{shard} holds no picture in row {row - first} of group {group}")
        return body


@dataclass
class TsvTable:
    """Rows of a tab-separated table with base64 pictures; the pictures stay on the disk until asked for.

    A short cell in the column of pictures is the "index" of the row whose picture is meant.

    Attributes:
        path: the file.
        rows: every row without its picture.

    Raises:
        ConfigError: a file that is no such table.
    """

    path: Path
    rows: list[Row] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)  # where each row's picture stands: the row's first byte
    _columns: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if csv.field_size_limit() < _LONGEST_CELL:
            csv.field_size_limit(_LONGEST_CELL)
        references: dict[int, str] = {}
        by_index: dict[str, int] = {}
        try:
            for start, cells in self._parse(0):
                if not self._columns:
                    self._columns = cells
                    for needed in ("index", "image"):
                        if needed not in cells:
                            raise ConfigError(f"{self.path} has no column {needed!r}", hint=f"It has {cells!r:.300}.")
                    continue
                row: Row = dict(zip(self._columns, cells, strict=False))
                if len(cells) != len(self._columns):
                    raise ConfigError(
                        f"{self.path}, row {len(self.rows) + 1} has {len(cells)} cells, not {len(self._columns)}",
                        hint="Download it again.",
                    )
                picture = row.pop("image")
                if len(picture) <= 64:
                    references[len(self.rows)] = picture
                else:
                    by_index[row["index"]] = start
                self.rows.append(row)
                self._starts.append(start)
        except (OSError, ValueError, csv.Error) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{self.path} is not a readable table: {error}", hint="Download it again.") from None
        if not self.rows:
            raise ConfigError(f"{self.path} holds no rows", hint="Download it again.")
        for number, index in references.items():
            if index not in by_index:
                raise ConfigError(f"{self.path}, row {number + 1} takes the picture of row {index!r}, which has none")
            self._starts[number] = by_index[index]

    def _parse(self, start: int) -> Iterator[tuple[int, list[str]]]:
        """(first byte, cells) of each row from byte `start` on; quoted cells may hold line ends."""
        with self.path.open("rb") as file:
            file.seek(start)
            at = begin = start

            def lines() -> Iterator[str]:
                nonlocal at
                for line in file:
                    at += len(line)
                    yield line.decode("utf-8-sig" if at == len(line) else "utf-8")

            for cells in csv.reader(lines(), delimiter="\t"):
                if cells:
                    yield begin, cells
                begin = at

    def picture(self, row: int) -> bytes:
        """The bytes of the picture of a row; `MediaError` where they are no base64."""
        _, cells = next(self._parse(self._starts[row]))
        try:
            return base64.b64decode(cells[self._columns.index("image")], validate=True)
        except (binascii.Error, ValueError):
            raise MediaError(f"{self.path}: the picture of row {row + 1} is not valid base64") from None


def _parquet() -> tuple[Any, tuple[type[Exception], ...]]:
    """The reader, and what it raises for a file that it cannot read: not all of its own errors are ValueErrors."""
    try:
        reader, errors = importlib.import_module("pyarrow.parquet"), importlib.import_module("pyarrow").ArrowException
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow, which reads Parquet files,", "eval") from None
    return reader, (OSError, ValueError, OverflowError, errors)


def _hint(error: Exception) -> str:
    """What may help. Among what pyarrow has not implemented are nested columns of more than 2 GiB in one row group."""
    is_large = isinstance(error, NotImplementedError | MemoryError)
    return "Write smaller row groups." if is_large else "Download it again."
