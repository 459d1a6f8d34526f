"""Files of a local copy: where they are and what they say.

A missing file is named together with the places where it was looked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar, overload

from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.evaluation.public_sets.prompts import SHORT_ANSWER
from pocketvlm.evaluation.tasks import Example, Media, MetricName

Key = TypeVar("Key")
Item = TypeVar("Item")
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Lazy(Sequence[Item], Generic[Key, Item]):
    """A sequence whose items are made each time they are asked for, so that their pictures are never all in memory.

    Attributes:
        keys: what each item is made of, without its pictures.
        make: key to item.
    """

    keys: Sequence[Key]
    make: Callable[[Key], Item]

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Lazy[Key, Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Lazy[Key, Item]:
        if isinstance(index, slice):
            return Lazy(self.keys[index], self.make)
        return self.make(self.keys[index])


def find(places: Iterable[Path]) -> Path | None:
    """The first of `places` that is a file."""
    return next((place for place in places if place.is_file()), None)


def missing(title: str, places: Sequence[Path], hint: str) -> ConfigError:
    """The error for files of which none is there."""
    return ConfigError(f"{title}: none of {_listed(places)} exists", hint=hint)


def find_picture(title: str, name: str, folders: Sequence[Path]) -> Path:
    """The file `name` (a relative path, as annotations have it) in one of `folders`.

    Raises:
        MediaError: it is in none of them, or its name would lead out of them.
    """
    inside(title, name)
    places = list(dict.fromkeys(folder / name for folder in folders))
    found = find(places)
    if found is None:
        raise MediaError(f"{title}: {name} is missing", hint=f"It was looked for as {_listed(places)}.")
    return found


def inside(title: str, name: str) -> None:
    """`MediaError` for a file name of an annotation that would lead out of the set's folder."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        raise MediaError(f"{title}: {name!r:.80} is no file name inside the set", hint="Check the annotation file.")


def read_json_rows(path: Path) -> list[Row]:
    """The records of an annotation file: a list, or an object that holds it as "data"."""
    content = _read_json(path)
    return _records(path, content.get("data") if isinstance(content, dict) else content)


def read_json_object(path: Path) -> Row:
    """An annotation file that is one object."""
    content = _read_json(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} does not hold an object", hint="Expected the published annotation file.")
    return content


def read_json_lines(path: Path) -> list[Row]:
    """The records of a file with one JSON object a line."""
    try:
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable lines of JSON: {error}", hint="Download it again.") from None
    return _records(path, rows)


def value(row: Row, name: str, path: Path) -> Any:
    """A field of a row; `ConfigError` says which file lacks it and what is there instead."""
    if row.get(name) is None:
        raise ConfigError(
            f"{path} has a record without {name!r}",
            hint=f"It has {', '.join(sorted(k for k in row if row[k] is not None)) or 'nothing'}.",
        )
    return row[name]


def texts(row: Row, name: str, path: Path) -> tuple[str, ...]:
    """A field that holds a text or a list of texts, as a tuple of at least one."""
    given = value(row, name, path)
    listed = tuple(map(str, given if isinstance(given, list | tuple) else [given]))
    if not listed:
        raise ConfigError(f"{path} has a record with an empty {name!r}", hint="Use a split whose answers are public.")
    return listed


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable JSON: {error}", hint="Download it again.") from None


def _records(path: Path, rows: Any) -> list[Row]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path} does not hold a list of records", hint="Expected the published annotation file.")
    if not rows:
        raise ConfigError(f"{path} holds no records", hint="Download it again.")
    return rows


def _listed(places: Sequence[Path]) -> str:
    shown = [str(place) for place in places[:8]]
    return ", ".join(shown) + (f" and {len(places) - 8} more" if len(places) > 8 else "")


def short_answers(
    task: str, metric: MetricName, id_field: str, rows: Sequence[Row], path: Path, picture: Callable[[int], Media]
) -> Sequence[Example]:
    """Examples of `task` from rows of `path` with a question and accepted answers; `picture` gives that of a row."""

    def make(number: int) -> Example:
        row = rows[number]
        return Example(
            id=str(value(row, id_field, path)),
            task=task,
            media=(picture(number),),
            question=SHORT_ANSWER(str(value(row, "question", path))),
            answers=texts(row, "answers", path),
            metric=metric,
        )

    return Lazy(range(len(rows)), make)
