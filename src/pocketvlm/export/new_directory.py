"""A new directory, complete or not at all: written beside its place and moved there when everything is in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketvlm.errors import CheckpointError, ConfigError

PARTIAL = ".partial-"  # stands between the name of the directory and what makes it one of its own


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `out` at the end of the block, and is removed if the block fails.

    Raises:
        ConfigError: `out` exists and is not an empty directory.
        CheckpointError: the system refuses to write.
    """
    partial = None
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out} is there already", hint="Name a new directory, or remove it first.")
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{out.name}{PARTIAL}", dir=out.parent))
        yield partial
        partial.chmod(0o755)
        if out.exists():
            out.rmdir()  # it is empty; not every system moves one directory over another
        partial.replace(out)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written ({error.strerror or error})") from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
