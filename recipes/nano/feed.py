"""The samples of each step, drawn by worker processes ahead of the trainer, the same ones whatever their number: they
depend on the seed, the step, its stage and the process that trains."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch.utils.data import DataLoader, Dataset

from pocketvlm.training.feed import prepare_worker
from recipes.nano import course
from recipes.nano.course import Course
from recipes.nano.curriculum import Stage
from recipes.nano.data import Collator, TrainingBatch

PREFETCH = 2  # batches a worker holds ready


class GeneratedFeed:
    """What the trainer asks of a feed; an item is the packed batch of a whole step.

    Args:
        workers: processes that draw ahead; 0 draws here.
        begin: called with the stage and its first step before that is taken.
    """

    samples: Sequence[object] = ()  # there are as many as are wanted

    def __init__(
        self, collate: Collator, course: Course, seed: int, workers: int, begin: Callable[[Stage, int], None]
    ) -> None:
        self.collate, self.course, self.seed, self.workers, self.begin = collate, course, seed, workers, begin

    def steps(
        self, first: int, count: int, batch_size: int, rank: int, world: int
    ) -> Iterator[list[tuple[TrainingBatch]]]:
        """The batches of this process from step `first` on, without end where `count` is 0. The other arguments change
        nothing: each process draws for itself, as much as the stage says."""
        del batch_size, world
        for step, batch in enumerate(self._batches(first, count, rank), first):
            if self.course.arrive(step):
                self.begin(self.course.stages[self.course.stage], step)
            yield [(batch,)]

    def all(self) -> Iterator[tuple[TrainingBatch]]:
        """None: samples for validation are those of the evaluation's tasks."""
        return iter(())

    def _batches(self, first: int, count: int, rank: int) -> Iterator[TrainingBatch]:
        drawn = _Drawn(self.collate, self.course.stages, self.seed, rank)
        places = itertools.islice(self.course.numbers(first), count or None)
        if not self.workers:
            return (drawn[place] for place in places)
        if self.workers * PREFETCH >= course.LAG:
            raise ValueError(
                f"{self.workers} workers draw {self.workers * PREFETCH} steps ahead, under {course.LAG} are possible"
            )
        loader: DataLoader[TrainingBatch] = DataLoader(
            drawn,
            batch_size=None,
            sampler=places,  # type: ignore[arg-type]  # any iterable will do
            num_workers=self.workers,
            prefetch_factor=PREFETCH,
            worker_init_fn=prepare_worker,
        )
        return iter(loader)


class _Drawn(Dataset[TrainingBatch]):
    """(step, stage, mix) → batch."""

    def __init__(self, collate: Collator, stages: Sequence[Stage], seed: int, rank: int) -> None:
        self.collate, self.stages, self.seed, self.rank = collate, stages, seed, rank

    def __getitem__(self, place: tuple[int, int, Mapping[str, float]]) -> TrainingBatch:
        step, stage, mix = place
        return self.collate(self.stages[stage], (self.seed, step, self.rank), step=step, mix=mix)
