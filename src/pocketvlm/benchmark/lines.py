"""What is timed: the stages of an answer, each as a function that runs it once and says how long it took.

Timing is done where the work is, so that programs which report their own times can take part.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from pocketvlm.errors import ConfigError

Timed = Callable[[], float]  # runs once, returns seconds


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        amount, unit: what one run does, for rates.
        rounds: the maximum that is worth its time.
    """

    name: str
    label: str
    amount: int
    unit: str
    rounds: int = 100


STEPS = 16  # tokens of one run of a decode line
PROMPT = 700

LINES = {
    line.name: line
    for line in (
        Line("view", "encode one 448² view, 16x", 1, "views"),
        Line("image", "encode a 1344² picture, 16x", 10, "views", rounds=3),
        Line("prompt", f"read a prompt of {PROMPT} tokens", PROMPT, "tokens"),
        Line("decode1", "decode, batch 1", STEPS, "tokens"),
        Line("decode8", "decode, batch 8", 8 * STEPS, "tokens"),
    )
}


_GROWING = re.compile(r"(views|prompt)-(\d+)|(decode)(\d+)")


def line_of(name: str) -> Line:
    """The line of that name: one of `LINES`, or one of any size, as "views-4", "prompt-3200" or "decode16"."""
    if name in LINES:
        return LINES[name]
    match = _GROWING.fullmatch(name)
    if match is None:
        raise ConfigError(f"there is no line {name!r}", hint=f"Use {', '.join(LINES)}, or as in views-4, prompt-3200.")
    kind, count = match[1] or match[3], int(match[2] or match[4])
    if count < 1:
        raise ConfigError(f"a line of {name!r} does nothing")
    if kind == "views":
        return Line(name, f"encode {count} views of 448², 16x", count, "views", rounds=3)
    if kind == "prompt":
        return Line(name, f"read a prompt of {count:,} tokens", count, "tokens", rounds=3)
    return Line(name, f"decode, batch {count}", count * STEPS, "tokens")


@dataclass(frozen=True)
class Work:
    """What one run of a line needs at least, and which ceiling it is measured by: "int8" or "fp32" (operations), or
    "read" (bytes of weights)."""

    ceiling: str
    amount: float


def ended(code: int | None) -> str:
    """How a process of this exit status ended, as in "it ended by SIGILL"."""
    if code is not None and code < 0:
        with suppress(ValueError):  # a signal without a name
            return f"by {signal.Signals(-code).name}"
    return "by itself"


class Contender(Protocol):
    """Something that can be timed."""

    name: str

    def work(self, line: str) -> Work | None:
        """What a line needs; None where nobody knows."""
        ...

    def prepare(self, line: str) -> Timed | None:
        """The function of a line, None where there is no such thing."""
        ...


def timed(function: Callable[[], object]) -> Timed:
    """`function` by the clock on the wall."""

    def run() -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    return run
