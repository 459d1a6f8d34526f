"""Interrupts at chosen lines of our own code, where a signal would come at a place that nobody can choose."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from linecache import getline
from pathlib import Path
from types import FrameType
from typing import Any

import pocketvlm

PACKAGE = Path(pocketvlm.__file__).parent


class Lines:
    """Raises `KeyboardInterrupt` at some lines of some rooms, and counts all lines that are run there.

    Args:
        rooms: folders of the package.
        at: which lines, counted from 1 as they are run.
    """

    def __init__(self, *rooms: str, at: tuple[int, ...] = ()) -> None:
        self.rooms, self.at, self.count = tuple(str(PACKAGE / room) for room in rooms), at, 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self.rooms):
            return None
        # A line event comes again where a `with` block is left, and an interrupt there would keep its lock: a signal is
        # not taken at that place.
        if event == "line" and not getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
            self.count += 1
            if self.count in self.at:
                raise KeyboardInterrupt
        return self

    @contextmanager
    def watched(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)
