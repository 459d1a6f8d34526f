"""The folder of a run of `pocketvlm tune`: what may be written into, and what may not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pocketvlm.errors import ConfigError
from pocketvlm.training.interchange.programs import FILES
from pocketvlm.training.settings import LOG

if TYPE_CHECKING:
    from pocketvlm.training.data.dataset import Dataset


def check_data(out: Path, names: Iterable[str], *datasets: Dataset | None) -> None:
    """Refuse to write over the files that samples are read from."""
    written = {(out / name).resolve() for name in names}
    for dataset in filter(None, datasets):
        for path in (records.path for source in dataset.sources for records, _ in source.files):
            if path.resolve() in written:
                raise ConfigError(f"{path} is data, and would be written over", hint="Name another folder by --out.")


def _is_ours(out: Path) -> bool:
    """Whether a run, a check or `--emit` wrote a folder. A run that wrote README.md wrote its log too: without that the
    folder is somebody's project."""
    if os.path.lexists(out / LOG) or (out / "checkpoints" / "lock").is_file():
        return True
    return any((out / name).is_file() for name in ("check.html", *FILES.values())) and not (out / "README.md").exists()


def check_out(out: Path) -> None:
    """Refuse a folder that cannot be made, or that holds something else than a run."""
    try:
        if out.is_dir():
            # What is half written was left by a run that was killed, and is no other run's.
            others = any(not path.name.endswith(".partial") for path in out.iterdir())
            if others and not _is_ours(out):
                raise ConfigError(f"{out} holds something else than a run", hint="Name a new folder by --out.")
            return
        os.lstat(out)
    except FileNotFoundError:
        if out.parent.is_dir():
            return
        raise ConfigError(f"{out} cannot be made: {out.parent} is no directory", hint="Check the path.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{str(out)!r:.80} is no path to a folder", hint="Check it.") from None
    raise ConfigError(f"{out} is no folder", hint="Name a new one by --out.")
