"""Batches made ahead of the trainer by worker processes, the same ones whatever the number of workers.

A step's samples depend on its number and its stage only. Workers draw some steps ahead, so a change of stage takes
effect `LAG` steps after the loss has asked for it: late enough that no worker can have begun that step, and the same
with no workers at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from recipes.nano.curriculum import Stage
from recipes.nano.data import Collator, TrainingBatch

LAG = 48
PREFETCH = 2  # batches a worker holds ready


class Steps(Dataset[TrainingBatch]):
    """(step, stage) → batch."""

    def __init__(self, collate: Collator, stages: Sequence[Stage], seed: int, rank: int) -> None:
        self.collate, self.stages, self.seed, self.rank = collate, stages, seed, rank

    def __getitem__(self, place: tuple[int, int]) -> TrainingBatch:
        step, stage = place
        return self.collate(self.stages[stage], (self.seed, step, self.rank), step=step)


class Schedule:
    """Which of `stages` each step belongs to; iterating gives (step, stage) from `step` on, without end."""

    def __init__(self, stages: int) -> None:
        self.stages = stages
        self.step, self.stage, self.began = 0, 0, 0
        self.next: tuple[int, int] | None = None  # (step, stage) of a change that is due

    def ask(self, step: int) -> None:
        """The next stage shall begin, `LAG` steps after `step`."""
        if self.next is None and self.stage_at(step) + 1 < self.stages:
            self.next = (step + LAG, self.stage_at(step) + 1)

    def stage_at(self, step: int) -> int:
        return self.next[1] if self.next and step >= self.next[0] else self.stage

    def arrive(self, step: int) -> bool:
        """Take note that `step` begins; whether it is the first of its stage."""
        if self.next and step >= self.next[0]:
            self.began, self.stage = self.next
            self.next = None
            return True
        return False

    def __iter__(self) -> Iterator[tuple[int, int]]:
        step = self.step
        while True:
            yield step, self.stage_at(step)
            step += 1

    def state(self) -> tuple[Any, ...]:
        return self.stage, self.began, self.next

    def restore(self, step: int, state: tuple[Any, ...]) -> None:
        self.step = step
        self.stage, self.began, self.next = state


def batches(steps: Steps, schedule: Schedule, workers: int) -> Iterator[TrainingBatch]:
    """The batches of `schedule`, one a step."""
    if not workers:
        return (steps[place] for place in schedule)
    if workers * PREFETCH >= LAG:
        raise ValueError(f"{workers} workers draw {workers * PREFETCH} steps ahead, under {LAG} are possible")
    loader: DataLoader[TrainingBatch] = DataLoader(
        steps,
        batch_size=None,
        sampler=schedule,  # type: ignore[arg-type]  # any iterable will do
        num_workers=workers,
        prefetch_factor=PREFETCH,
        worker_init_fn=_one_thread,
    )
    return iter(loader)


def _one_thread(worker: int) -> None:
    del worker
    torch.set_num_threads(1)
