"""The order in which samples are learnt: a function of seed and epoch alone, so that a run goes on at any position.

Each set is an endless stream of its samples, shuffled anew in every pass. An epoch takes from the stream of each set as
many as its weight times its size, and shuffles what it took. With weight 0.5 two epochs see each sample once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import floor

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import ConfigError
from pocketvlm.training.data.dataset import seeds
from pocketvlm.training.data.sample import Sample

_SHUFFLE = 2**32 - 1  # the number of the generator that shuffles an epoch: no set has it


def epoch_length(dataset: Sequence[Sample], epoch: int) -> int:
    """Number of samples of an epoch; where weights are no whole numbers, epochs may differ by one for each set."""
    return _begin(dataset, epoch + 1) - _begin(dataset, epoch)


def order(dataset: Sequence[Sample], seed: int, epoch: int) -> NDArray[np.int64]:
    """Numbers of the samples of an epoch, in the order in which they are learnt: int64 [epoch_length]."""
    taken, begin = [], 0
    for number, (size, weight) in enumerate(_sets(dataset)):
        first, last = _taken(size, weight, epoch), _taken(size, weight, epoch + 1)
        for turn in range(first // size, -(-last // size)):
            shuffled = np.random.RandomState(seeds(seed, number, turn)).permutation(size).astype(np.int64)
            taken.append(begin + shuffled[max(0, first - turn * size) : last - turn * size])
        begin += size
    if not taken:
        return np.zeros(0, np.int64)
    return np.random.RandomState(seeds(seed, _SHUFFLE, epoch)).permutation(np.concatenate(taken))


def endless_order(dataset: Sequence[Sample], seed: int, start: int = 0) -> Iterator[int]:
    """One epoch after the other from any position on: what `start` samples of the same order leave."""
    if not len(dataset):
        raise ConfigError("There are no samples to order")
    low, high = 0, 1
    while _begin(dataset, high) <= start:
        high *= 2
    while high - low > 1:  # the last epoch that begins at `start` or before
        middle = (low + high) // 2
        low, high = (middle, high) if _begin(dataset, middle) <= start else (low, middle)
    skipped = start - _begin(dataset, low)
    while True:
        yield from order(dataset, seed, low)[skipped:].tolist()
        low, skipped = low + 1, 0


def _begin(dataset: Sequence[Sample], epoch: int) -> int:
    """How many samples all epochs before this one have."""
    return sum(_taken(size, weight, epoch) for size, weight in _sets(dataset))


def _sets(dataset: Sequence[Sample]) -> list[tuple[int, float]]:
    """Size and weight of each set; a plain sequence is one."""
    sources = getattr(dataset, "sources", None)
    return [(len(dataset), 1.0)] if sources is None else [(len(source), source.weight) for source in sources]


def _taken(size: int, weight: float, epoch: int) -> int:
    return floor(Fraction(weight).limit_denominator(10**6) * size * epoch)
