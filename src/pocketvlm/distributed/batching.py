"""`pocketvlm batch --ray`: the lines of a file, each read where it is answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm.batch.requests import MAX_LINE, open_lines, parse_line
from pocketvlm.batch.results import Results
from pocketvlm.batch.run import BatchJob, conversation_of, missing, result_line
from pocketvlm.distributed.fleet import Fleet
from pocketvlm.distributed.stages import Outcome, Row
from pocketvlm.errors import ConfigError
from pocketvlm.remote_files import is_remote


@dataclass(frozen=True)
class _Lines:
    """The `Work` of a file of requests. A row is a line (`text`), or its place in bytes, and its number.

    Attributes:
        path, folder, model, defaults: as of `BatchJob`.
    """

    path: Path
    folder: str
    model: str
    defaults: Mapping[str, Any]

    def request(self, row: Row) -> tuple[list[Any], dict[str, Any]]:
        return conversation_of(self._line(row), self.folder, self.defaults)

    def value(self, row: Row, outcome: Outcome) -> dict[str, Any]:
        return result_line(self._line(row)["custom_id"], outcome, self.model)

    def _line(self, row: Row) -> dict[str, Any]:
        where = f"{self.path}, line {row['line']}"
        if "text" in row:
            return parse_line(row["text"].encode(), where, self.model)
        with open_lines(self.path) as file:
            file.seek(row["offset"])
            return parse_line(file.readline(MAX_LINE), where, self.model)


def answer_on(fleet: Fleet, job: BatchJob, results: Results) -> Iterator[tuple[int, dict[str, Any]]]:
    """`Answering` by the engines of a fleet. On one machine they read the file themselves, to others its lines are
    sent; pictures named by paths must have the same paths on every machine."""
    folder = job.folder if is_remote(job.folder) else str(Path(job.folder).absolute())
    work = _Lines(job.path.absolute(), folder, job.model, job.defaults)
    lines = job.lines

    def rows() -> Iterator[tuple[int, Row]]:
        with open_lines(job.path) as file:
            for index in missing(lines, results):
                place: dict[str, Any] = {"offset": lines.offsets[index]}
                if fleet.machines > 1:
                    file.seek(lines.offsets[index])
                    place = {"text": file.readline(MAX_LINE).decode(errors="replace")}
                yield index, {"line": lines.numbers[index], **place}

    for index, result in fleet.answer(rows(), work):
        if lines.index_of(result["custom_id"]) != index:
            where = f"{job.path}, line {lines.numbers[index]}"
            raise ConfigError(f"{where} has changed since the run began", hint="Leave it alone while it runs.")
        yield index, result
