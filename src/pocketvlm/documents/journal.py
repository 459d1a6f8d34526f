"""What is done of a run: one line a page, by the hashes of the content and of the settings it was answered with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.files import Journal, open_journal

Key = tuple[str, int]  # SHA-256 of a file, page from 1


class Done:
    """The pages that were answered under these settings, whichever run did so. See `open_done`."""

    def __init__(self, journal: Journal, settings: str) -> None:
        self._journal, self._settings = journal, settings
        self._pages: dict[Key, dict[str, Any]] = {}
        for number, _, line in journal.lines():
            try:
                entry = json.loads(line)
                if entry["settings"] == settings:
                    self._pages[entry["file"], entry["page"]] = entry["value"]
            except (ValueError, TypeError, LookupError):
                raise ConfigError(
                    f"{journal.path}, line {number} is damaged", hint="Move the file away; its pages are read again."
                ) from None

    def get(self, key: Key) -> dict[str, Any] | None:
        """What came of a page, if it is done."""
        return self._pages.get(key)

    def add(self, key: Key, value: dict[str, Any]) -> None:
        """Keep a page: it is on the disk when this returns; `OutputError` where there is no room."""
        self._journal.append({"file": key[0], "page": key[1], "settings": self._settings, "value": value})
        self._journal.sync()
        self._pages[key] = value


@contextmanager
def open_done(path: Path, settings: Mapping[str, Any]) -> Iterator[Done]:
    """Open the journal at `path` for this process alone.

    Args:
        settings: what decides the answers beside the pages, as JSON values.

    Raises:
        ConfigError, OutputError: as `open_journal`.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    with open_journal(path, "pocketvlm documents", {}, _differs) as journal:
        yield Done(journal, digest)


def _differs(name: str, there: Any, wanted: Any) -> ConfigError:
    return ConfigError(f"the journal has {name}={there}, expected {wanted}", hint="Move it away.")
