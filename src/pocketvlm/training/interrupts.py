"""Ctrl-C and SIGTERM between two steps: a step that is cut in the middle would leave weights that no checkpoint may
have."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)


class StopRequest:
    """Whether a signal has asked the run to stop."""

    def __init__(self) -> None:
        self.is_set = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block the first signal only sets the flag, and a second one raises `KeyboardInterrupt` at once.
        Nothing changes off the main thread, which gets no signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, _number: int, _frame: Any) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True
        logger.warning("stopping after this step; once more stops at once, at the last checkpoint")
