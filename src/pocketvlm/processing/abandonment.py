"""Whether anybody still waits for what a thread prepares.

A thread cannot be cancelled. One that waits for its turn to decode asks here when the turn has come, so that requests
whose clients have left do not hold up those of clients that wait.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pocketvlm.errors import EngineError

_thread = threading.local()


@contextmanager
def abandoned_by(event: threading.Event) -> Iterator[None]:
    """Within the block, what this thread prepares is wanted until `event` is set."""
    before = getattr(_thread, "event", None)
    _thread.event = event
    try:
        yield
    finally:
        _thread.event = before


def check_wanted() -> None:
    """`EngineError` where nobody waits any more for what this thread prepares; nobody sees it."""
    event: threading.Event | None = getattr(_thread, "event", None)
    if event is not None and event.is_set():
        raise EngineError("nobody waits for this request any more")
