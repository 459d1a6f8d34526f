"""What is done of a run: one line a page, by the hashes of the content and of the settings it was answered with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

from pocketvlm.errors import ConfigError
from pocketvlm.files import Journal, open_journal

Key = tuple[str, int]  # SHA-256 of a file, page from 1
Value = dict[str, Any]  # what became of a page: JSON values
FORMAT = "pocketvlm documents 1"
# In the place of settings: a line about a file that was written, and not about a page. Its name stands in per cent
# signs, as it need not be UTF-8; those of versions before did not.
_WRITTEN, _WRITTEN_PLAIN = "written, quoted", "written"


class Done:
    """What became of pages, whichever run answered them: in a journal (see `open_done`), or in memory.

    A journal's values stay in its file, so that a million pages take no more memory than where they stand.
    """

    def __init__(self, journal: Journal | None = None, file: IO[bytes] | None = None, settings: str = "") -> None:
        self._journal, self._file, self._settings = journal, file, settings
        self._offsets: dict[Key, int] = {}
        self._memory: dict[Key, Value] = {}
        self._written = set[str]()
        for number, offset, line in journal.lines() if journal else ():
            try:
                entry = json.loads(line)
                key, is_ours = (str(entry["file"]), int(entry["page"])), entry["settings"] == settings
                dict(entry["value"])
            except (ValueError, TypeError, LookupError, RecursionError):
                assert journal is not None
                raise ConfigError(
                    f"{journal.path}, line {number} is damaged", hint="Move the file away; its pages are read again."
                ) from None
            if is_ours:
                self._offsets[key] = offset
            if entry["settings"] in (_WRITTEN, _WRITTEN_PLAIN):
                self._written.add(_name_of(key[0]) if entry["settings"] == _WRITTEN else key[0])

    def __contains__(self, key: Key) -> bool:
        return key in self._offsets or key in self._memory

    def keeps(self, key: Key) -> bool:
        """Whether the next run will know of a page."""
        return key in self._offsets

    def get(self, key: Key) -> Value | None:
        """What became of a page, if it is done."""
        if (offset := self._offsets.get(key)) is None:
            return self._memory.get(key)
        assert self._file is not None
        self._file.seek(offset)
        found: Value = json.loads(self._file.readline())["value"]
        return found

    def add(self, key: Key, value: Value, *, keep: bool = True) -> None:
        """Note a page; in a journal it survives the end of this process when this returns.

        Args:
            keep: False for what the next run should try again: it is known to this one alone.

        Raises:
            OutputError: the journal could not be written.
        """
        if self._journal is None or not keep:
            self._memory[key] = value
            return
        entry = {"file": key[0], "page": key[1], "settings": self._settings, "value": value}
        self._offsets[key] = self._journal.append(entry)

    def note_written(self, name: str) -> None:
        """Note that a file of this name is about to be written: what stands there then is this run's. See
        `names_written`."""
        if self._journal is not None and name not in self._written:
            self._journal.append(
                {"file": quote(name, errors="surrogateescape"), "page": 0, "settings": _WRITTEN, "value": {}}
            )
            self._written.add(name)


@contextmanager
def open_done(path: Path, settings: Mapping[str, Any]) -> Iterator[Done]:
    """Open the journal at `path` for this process alone.

    Args:
        settings: what decides the answers beside the pages, as JSON values. Pages that were answered under others stay
            in the journal, and count when those come back.

    Raises:
        ConfigError, OutputError: as `open_journal`.
    """
    with open_journal(path, FORMAT, {}, _differs) as journal, path.open("rb") as file:
        yield Done(journal, file, digest_of(settings))


def keys_done(path: Path, settings: Mapping[str, Any]) -> set[Key]:
    """The pages that the journal at `path` holds under these settings; none where there is no journal. It is only
    looked at: another run may be writing it."""
    return _keys_under(path, digest_of(settings))


def names_written(path: Path) -> set[str]:
    """The files that the runs of the journal at `path` have written, or begun to write."""
    plain = {name for name, _ in _keys_under(path, _WRITTEN_PLAIN)}
    return plain | {_name_of(name) for name, _ in _keys_under(path, _WRITTEN)}


def _name_of(quoted: str) -> str:
    return unquote(quoted, errors="surrogateescape")


def _keys_under(path: Path, settings: str) -> set[Key]:
    found = set()
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    if entry["settings"] == settings:
                        found.add((str(entry["file"]), int(entry["page"])))
                except (ValueError, TypeError, LookupError, RecursionError):
                    continue
    except OSError:
        return set()
    return found


def digest_of(settings: Mapping[str, Any]) -> str:
    """What stands for the settings in each line."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode(errors="replace")).hexdigest()


def _differs(name: str, there: Any, wanted: Any) -> ConfigError:
    return ConfigError(f"the journal has {name}={there}, expected {wanted}", hint="Move it away.")
