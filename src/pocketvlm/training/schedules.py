"""How long a run lasts, and how fast it learns on its way."""

from __future__ import annotations

import math
from typing import Protocol

from pocketvlm.training.checkpoints import Progress
from pocketvlm.training.settings import factor

_BEGUN = 1e-3  # share of a run of some minutes that its first step counts as, or its rate would be zero


class Schedule(Protocol):
    """What the trainer asks between two steps. Answers depend on the progress alone, so that processes agree."""

    @property
    def steps(self) -> int:
        """How many there will be; 0 where this is not known."""

    def share(self, done: Progress) -> float:
        """How much of the run is done, from 0 to 1, where it ends; 0 all the time where it has no end."""

    def factor(self, done: Progress) -> float:
        """Of the highest learning rate, in the next step, from 0 to 1."""


class HalfCosine:
    """The rate rises in a line, and falls as half a cosine to zero.

    Args:
        steps: the run ends after so many; 0 where only the time ends it.
        minutes: the run ends after this time, if it is not at its end before; None is no limit.
        warmup: share of the run in which the rate rises.
    """

    def __init__(self, steps: int, minutes: float | None, warmup: float) -> None:
        self.steps, self.minutes, self.warmup = steps, minutes, warmup

    def share(self, done: Progress) -> float:
        by_time = done.seconds / (60 * self.minutes) if self.minutes else 0.0
        by_steps = done.step / self.steps if self.steps else 0.0
        return min(1.0, max(by_time, by_steps))

    def factor(self, done: Progress) -> float:
        if not self.minutes:
            return factor(done.step, self.steps, self.warmup)
        share, warmup = self.share(done), self.warmup
        return min(1.0, (share + _BEGUN) / warmup if warmup else 1.0, 0.5 * (1 + math.cos(math.pi * share)))
