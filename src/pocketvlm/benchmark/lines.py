"""What is timed: the stages of an answer, each as a function that runs it once and says how long it took.

Timing is done where the work is, so that programs which report their own times can take part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

Timed = Callable[[], float]  # runs once, returns seconds


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        amount, unit: what one run does, for rates.
        rounds: most rounds that are worth their time.
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


class Contender(Protocol):
    """Something that can be timed."""

    name: str

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
