"""Where things are kept that were made once for this user: bundles, compiled operators."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "POCKETVLM_CACHE"


def cache_directory() -> Path:
    """$POCKETVLM_CACHE, else pocketvlm in the user's cache."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pocketvlm"
