"""The samples of each step, encoded, in an order that is a function of the seed alone: a run that goes on sees the
ones that it would have seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pocketvlm.training.data.sample import Sample, SampleError
from pocketvlm.training.examples import Example, ExampleEncoder

Found = tuple[Example, ...] | SampleError  # an example, a pair of them (preferences), or what is wrong


class Feed:
    """Args:
    samples: `samples[i]` is a `Sample`, or raises `SampleError`.
    pairs: encode preferences.
    seed: of the order.
    workers: processes that encode ahead; 0 encodes here.
    """

    def __init__(
        self, samples: Sequence[Sample], encoder: ExampleEncoder, *, pairs: bool, seed: int, workers: int = 0
    ) -> None:
        self.samples, self.seed, self.workers = samples, seed, workers
        self._encoded = _Encoded(samples, encoder, pairs)

    def index(self, position: int) -> int:
        """The sample at a position of the endless order: every epoch is a permutation of its own."""
        epoch, place = divmod(position, len(self.samples))
        return int(self._permutation(epoch)[place])

    def _permutation(self, epoch: int) -> torch.Tensor:
        if getattr(self, "_epoch", None) != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.samples), generator=generator)
        return self._order

    def steps(self, first: int, count: int, batch_size: int, rank: int, world: int) -> Iterator[list[Found]]:
        """What this process works on in each step from `first` on, without end where `count` is 0."""
        numbers = range(first, first + count) if count else _without_end(first)
        places = (
            [self.index(position) for position in range(step * batch_size, (step + 1) * batch_size)][rank::world]
            for step in numbers
        )
        loader: DataLoader[Any] = DataLoader(
            self._encoded,
            batch_sampler=places,
            num_workers=self.workers,
            collate_fn=list,
            worker_init_fn=_one_thread if self.workers else None,
            prefetch_factor=2 if self.workers else None,
        )
        yield from loader

    def all(self) -> Iterator[Found]:
        """Every sample once, in the order of its file."""
        for i in range(len(self.samples)):
            yield self._encoded[i]


class _Encoded(Dataset[Found]):
    def __init__(self, samples: Sequence[Sample], encoder: ExampleEncoder, pairs: bool) -> None:
        self.samples, self.encoder, self.pairs = samples, encoder, pairs

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Found:
        try:
            sample = self.samples[index]
            return self.encoder.pair(sample) if self.pairs else (self.encoder(sample),)
        except SampleError as error:
            return error


def _without_end(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)
