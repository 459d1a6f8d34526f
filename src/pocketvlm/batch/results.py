"""Results so far, appended to a file as they come → the file of all results, in the order of the requests."""

from __future__ import annotations

import json
import threading
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pocketvlm.batch.requests import Lines
from pocketvlm.batch.tables import is_table, write_results
from pocketvlm.errors import ConfigError
from pocketvlm.files import Journal, open_journal, whole_file

FORMAT = "pocketvlm batch 1"


class Results:
    """Results so far, and where in their file each of them is. Made by `open_partial`.

    Attributes:
        done: results that are there.
        failed: how many of them are refusals or failures.
        output_tokens: of the others, in all.
        is_written: whether all of them are in their final file.
    """

    def __init__(self, journal: Journal, lines: Lines) -> None:
        self._journal, self._lines = journal, lines
        self._offsets = array("q", [-1]) * len(lines)
        self._lock = threading.Lock()  # refusals come from whoever draws the requests
        self.done = self.failed = self.output_tokens = 0
        self.is_written = False
        for number, offset, line in journal.lines():
            self._take_up(number, offset, line)

    def has(self, index: int) -> bool:
        """Tell whether request `index` has a result."""
        return self._offsets[index] >= 0

    def add(self, index: int, result: Mapping[str, Any]) -> None:
        """Append a result; it survives the end of this process when this returns.

        Raises:
            OutputError: it could not be written.
        """
        with self._lock:
            self._note(index, self._journal.append(result), result)

    def write(self, out: Path) -> None:
        """Write all results in the order of the requests, complete or not at all; as a table where `out` is one.

        Raises:
            ConfigError: no file can be made there.
            OutputError: it could not be written to its end; the results so far are kept.
        """
        with whole_file(out) as file, self._journal.path.open("rb") as results:
            lines = self._in_order(results)
            if is_table(out):
                write_results(file, lines)
            else:
                file.writelines(lines)
        self.is_written = True

    def _in_order(self, results: IO[bytes]) -> Iterator[bytes]:
        for offset in self._offsets:
            results.seek(offset)
            yield results.readline()

    def _take_up(self, number: int, offset: int, line: bytes) -> None:
        """Note what an earlier run left in one line."""
        try:
            result = json.loads(line)
            index = self._lines.index_of(result["custom_id"])
            if index is None or self.has(index):
                raise ValueError
            self._note(index, offset, result)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise ConfigError(
                f"line {number} of {self._journal.path} is not a result of this input",
                hint="Delete the file to begin anew.",
            ) from None

    def _note(self, index: int, offset: int, result: Mapping[str, Any]) -> None:
        response = result["response"]
        if response["status_code"] == 200:
            self.output_tokens += response["body"]["usage"]["completion_tokens"]
        else:
            self.failed += 1
        self._offsets[index] = offset
        self.done += 1


@contextmanager
def open_partial(path: Path, lines: Lines, settings: Mapping[str, Any]) -> Iterator[Results]:
    """Open the file of results so far, new or to be continued. It goes where nothing came of it, or all is written.

    Args:
        settings: what all results have in common; JSON values.

    Raises:
        ConfigError: the file cannot be written, is none of ours, is of another input or other settings, is damaged, or
            is being written by another run.
    """

    def differs(name: str, found: Any, wanted: Any) -> ConfigError:
        how = f"with {name}={found!r:.80}, this run has {wanted!r:.80}"
        return ConfigError(
            f"{path} was begun {'with other content of the input' if name == 'input' else how}",
            hint="Delete the file to begin anew, or give the command that began it.",
        )

    is_written = False
    try:
        with open_journal(path, FORMAT, settings, differs) as journal:
            results = Results(journal, lines)
            try:
                yield results
            finally:
                is_written = results.is_written
    finally:
        if is_written:  # closed by now: Windows removes no file that is open
            with suppress(OSError):
                path.unlink(missing_ok=True)
