"""Results on disk: one JSON line an example, appended as answers come, so that a run which was stopped goes on.

The first line holds the settings under which all others were measured; a file of other settings is refused, not mixed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.evaluation.scoring import METRICS
from pocketvlm.files import Journal, open_journal

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

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.records: dict[Key, Record] = {}
        for number, _, line in journal.lines():
            try:
                record = _parse(line)
            except (ValueError, TypeError, KeyError, RecursionError):
                raise ConfigError(
                    f"line {number} of {journal.path} is not a result", hint="Give --out another file."
                ) from None
            self.records[record.key] = record

    def add(self, record: Record) -> None:
        """Append a record; it survives the end of this process when this returns.

        Raises:
            OutputError: it could not be written.
        """
        self._journal.append(asdict(record))
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

    def differs(name: str, found: Any, wanted: Any) -> ConfigError:
        how = f"with {name}={found!r:.80}, this run has {wanted!r:.80}"
        return ConfigError(f"{path} was measured {how}", hint="Give --out a new file.")

    with open_journal(path, FORMAT, settings, differs) as journal:
        yield ResultFile(journal)


def _parse(line: bytes) -> Record:
    """Read the record of a line; ValueError, TypeError, KeyError or RecursionError where it holds none."""
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
