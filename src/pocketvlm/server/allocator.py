"""How the C library hands out memory in a server."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

_M_ARENA_MAX = -8  # of glibc's malloc.h


def use_one_arena() -> None:
    """Have all threads allocate from one heap, where the C library is glibc; to be called before threads start.

    Otherwise each thread takes a heap of its own (up to eight for each core) and keeps what it once needed: with 64
    threads that prepare requests, memory grows for thousands of requests. The variable `MALLOC_ARENA_MAX` overrides it.
    """
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
