"""Results on disk: one JSON line an example, appended as answers come, so that a run which was stopped goes on.

The first line holds the settings under which all others were measured; a file of other settings is refused, not mixed.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from pocketvlm.errors import ConfigError
from pocketvlm.evaluation.scoring import METRICS

FORMAT = "pocketvlm eval 1"
Key = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One example and what came of it.

    Attributes:
        task, index, id, subset, metric, question, expected: of the example; `expected` are the accepted answers.
        answer: what the model said; "" where it failed.
        score: from 0 to 1; a failure is 0.
        prompt_tokens, visual_tokens, completion_tokens: None where the endpoint does not say.
        seconds: of the request; of a batch, its share. Drawing or reading the example is not in it.
        error: why there is no answer, or "".
    """

    task: str
    index: int
    id: str
    subset: str
    metric: str
    question: str
    expected: tuple[str, ...]
    answer: str
    score: float
    prompt_tokens: int | None
    visual_tokens: int | None
    completion_tokens: int | None
    seconds: float
    error: str = ""

    @property
    def key(self) -> Key:
        return self.task, self.index


class ResultFile:
    """The records of a file, and new ones at its end. Made by `open_results`."""

    def __init__(self, file: IO[bytes], records: dict[Key, Record]) -> None:
        self._file = file
        self.records = records

    def add(self, record: Record) -> None:
        """Append a record; it is on its way to the disk when this returns."""
        self._file.write(json.dumps(asdict(record), ensure_ascii=False).encode(errors="replace") + b"\n")
        self._file.flush()
        self.records[record.key] = record


@contextmanager
def open_results(path: Path, settings: Mapping[str, Any]) -> Iterator[ResultFile]:
    """Open a file of results, new or to be continued. A last line that was cut off is dropped.

    Args:
        settings: what all results of the file have in common; JSON values.

    Raises:
        ConfigError: the file cannot be written, is none of ours, was measured with other settings, is damaged, or is
            being written by another run.
    """
    header = json.dumps({"format": FORMAT, "settings": settings}, ensure_ascii=False, sort_keys=True) + "\n"
    try:
        file = path.open("a+b")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", hint="Give --out another file.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{path} is being written by another run", hint="Give --out another file.") from None
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if not whole and not header.encode().startswith(content):  # neither new nor a header that was cut off
            raise _not_ours(path)
        records = _read(path, whole, header) if whole else {}
        file.truncate(len(whole))
        if not whole:
            file.write(header.encode())
            file.flush()
        results = ResultFile(file, records)
        try:
            yield results
        finally:
            if not whole and not records:
                path.unlink(missing_ok=True)  # nothing came of it


def _read(path: Path, content: bytes, header: str) -> dict[Key, Record]:
    """Records of whole lines, the header first."""
    try:
        first, *lines = content.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise _not_ours(path) from None
    try:
        found = json.loads(first)
        ours = isinstance(found, dict) and found.get("format") == FORMAT and isinstance(found["settings"], dict)
    except (ValueError, KeyError):
        ours = False
    if not ours:
        raise _not_ours(path)
    if first != header.rstrip():
        _refuse_other_settings(path, found["settings"], json.loads(header)["settings"])
    records: dict[Key, Record] = {}
    for number, line in enumerate(lines, 2):
        try:
            record = _parse(line)
        except (ValueError, TypeError, KeyError):
            raise ConfigError(f"line {number} of {path} is not a result", hint="Give --out another file.") from None
        records[record.key] = record
    return records


def _parse(line: str) -> Record:
    values = json.loads(line)
    if not isinstance(values, dict) or set(values) != {field.name for field in fields(Record)}:
        raise ValueError
    record = Record(**{**values, "expected": tuple(values["expected"])})
    numbers = isinstance(record.index, int) and all(isinstance(v, int | float) for v in (record.score, record.seconds))
    if (
        record.metric not in METRICS
        or not numbers
        or not all(isinstance(v, str) for v in (record.task, record.id, record.answer, record.error))
    ):
        raise ValueError
    return record


def _not_ours(path: Path) -> ConfigError:
    return ConfigError(f"{path} is not a file of results", hint="Give --out a new file.")


def _refuse_other_settings(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise ConfigError(
                f"{path} was measured with {name}={found.get(name)!r:.80}, this run has {wanted.get(name)!r:.80}",
                hint="Give --out a new file.",
            )
