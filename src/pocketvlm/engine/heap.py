"""Memory that is free goes back to the system.

Pictures of all sizes are made in some threads and let go of in others. glibc keeps the gaps between them for itself: no
object is lost, but a process that serves for days grows.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

REQUESTS_BETWEEN = 256  # a call takes some milliseconds


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Of glibc; other C libraries have none, and Windows and macOS give memory back by themselves."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def release_free_memory() -> None:
    """Give pages that hold nothing back, where the C library can."""
    if (trim := _malloc_trim()) is not None:
        trim(0)
