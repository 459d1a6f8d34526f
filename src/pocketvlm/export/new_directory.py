"""A new directory, complete or not at all: written beside its place and moved there when everything is in it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pocketvlm.errors import CheckpointError, ConfigError
from pocketvlm.files import cannot_write
from pocketvlm.model.directory import ModelDirectory

PARTIAL = ".partial-"  # stands between the name of the directory and what makes it one of its own
_LONG = 200  # bytes; of a longer name the first ones will do, so that what is added does not make it too long
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `out` at the end of the block, and is removed if the block fails,
    together with the parents that were made for it.

    Raises:
        ConfigError: `out` exists and is not an empty directory, or is the working directory, or cannot be made.
        CheckpointError: the block could not read a file that lies elsewhere.
        OutputError: the directory could not be written to its end.
    """
    place, partial, missing = Path(), None, list[Path]()
    try:
        try:
            place = Path(os.path.realpath(out))  # a name for an empty directory elsewhere is as good as its own
            if place.exists() and (not place.is_dir() or any(place.iterdir())):
                raise ConfigError(f"{out} is there already", hint="Name a new directory, or remove it first.")
            if place == _working_directory():  # whoever stands there would stand in one that is gone
                raise ConfigError(f"{out} is the working directory", hint="Name a new directory.")
            missing = [parent for parent in place.parents if not parent.exists()]
            place.parent.mkdir(parents=True, exist_ok=True)
            name = place.name if len(os.fsencode(place.name)) <= _LONG else place.name[: _LONG // 4]
            partial = Path(tempfile.mkdtemp(prefix=f"{name}{PARTIAL}", dir=place.parent))
        except (OSError, ValueError) as error:  # ValueError: a zero byte, or a `ConfigError`
            if isinstance(error, ConfigError):
                raise
            if isinstance(error, OSError) and error.errno in _FULL:
                raise cannot_write(out, error) from None
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise ConfigError(f"{str(out)!r:.300} cannot be made ({reason})", hint="Name another directory.") from None
        try:
            yield partial
            partial.chmod(0o755)
            if place.exists():
                place.rmdir()  # it is empty; not every system moves one directory over another
            partial.replace(place)
        except OSError as error:
            file = Path(error.filename) if isinstance(error.filename, str) else place
            if file != place and not file.is_relative_to(partial):
                raise CheckpointError(f"{file}: {error.strerror}") from None
            raise cannot_write(out, error) from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):  # it has something in it, or is not there
                parent.rmdir()


def _working_directory() -> Path | None:
    try:
        return Path(os.path.realpath(os.curdir))
    except OSError:  # it was removed
        return None


@contextmanager
def unchanged(directory: ModelDirectory) -> Iterator[str]:
    """Give the fingerprint of a checkpoint that is read in the block.

    Raises:
        CheckpointError: it is another one at the end: some of what was read is old, and some is new.
    """
    before = directory.fingerprint
    yield before
    if directory.current_fingerprint() != before:
        raise CheckpointError(
            f"{directory.path} was written to while it was read", hint="Export it again when it is complete."
        )
