"""Pieces of a product's weights: matrices that lie one below the other, of which some rows at a time are in memory.

Shapes:  N outputs · K inputs · H heads of E
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pocketvlm.machine import usable_cores
from pocketvlm.model.weights import Weights

VALUES = 2**18  # at once in each thread: what is made of them stays in the caches of its core

Array = NDArray[np.float32]


class Piece(Protocol):
    """Rows of a matrix [N, K], or values [N] of a vector; several threads may ask for them at once."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def rows(self, start: int, stop: int) -> Array:
        """fp32, not to be changed."""


@dataclass(frozen=True)
class Parameter:
    """A parameter as it is."""

    weights: Weights
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weights.shape(self.name)

    def rows(self, start: int, stop: int) -> Array:
        return self.weights.rows(self.name, start, stop)


@dataclass(frozen=True)
class Half:
    """Queries (`part` 0) or gates (1) of a projection [H * 2 * E, K] in which they stand side by side in each head."""

    weights: Weights
    name: str
    head_dim: int
    part: int

    @property
    def shape(self) -> tuple[int, ...]:
        both, *inputs = self.weights.shape(self.name)
        return both // 2, *inputs

    def rows(self, start: int, stop: int) -> Array:
        dim, found = self.head_dim, list[Array]()
        while start < stop:
            head, row = divmod(start, dim)
            first, count = (2 * head + self.part) * dim + row, min(stop - start, dim - row)
            found.append(self.weights.rows(self.name, first, first + count))
            start += count
        return found[0] if len(found) == 1 else np.concatenate(found)


@dataclass(frozen=True)
class Given:
    """Values that are there already."""

    values: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def rows(self, start: int, stop: int) -> Array:
        return self.values[start:stop]


class Scratch:
    """Memory of one thread that is used again for every part of the rows: to ask the system for it takes as long as
    to compute with it."""

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[Any]] = {}

    def __call__(self, name: str, shape: Sequence[int], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """An array of this shape that holds anything, until the next one of this name."""
        size = math.prod(shape)
        if name not in self._kept or self._kept[name].size < size:
            self._kept[name] = np.empty(size, dtype)
        return self._kept[name][:size].reshape(shape)


def size_of(pieces: Sequence[Piece]) -> tuple[int, int]:
    """(N, K) of all pieces together."""
    return sum(piece.shape[0] for piece in pieces), math.prod(pieces[0].shape[1:])


def each_part(pieces: Sequence[Piece], work: Callable[[slice, Array, Scratch], None]) -> None:
    """Call `work` with (place among the N rows of all pieces, these rows in fp32, memory of the thread), in a thread on
    each core and in no certain order; an error of it ends them all."""
    count = max(1, VALUES // max(size_of(pieces)[1], 1))
    left, above = deque[tuple[int, Piece, int, int]](), 0
    for piece in pieces:
        rows = piece.shape[0]
        left += [(above, piece, start, min(start + count, rows)) for start in range(0, rows, count)]
        above += rows

    def run() -> None:
        scratch = Scratch()
        try:
            while left:
                try:
                    first, piece, start, stop = left.popleft()
                except IndexError:  # another thread was faster
                    return
                work(slice(first + start, first + stop), piece.rows(start, stop), scratch)
        finally:
            left.clear()  # after an error the other threads need not go on

    threads = min(usable_cores(), len(left))
    if threads < 2:
        run()
        return
    with ThreadPoolExecutor(threads, "pocketvlm-export") as pool:
        try:
            for one in [pool.submit(run) for _ in range(threads)]:
                one.result()
        finally:
            left.clear()  # nor after an interrupt


def as_fp32(pieces: Sequence[Piece]) -> Array:
    """[N, K], or [N] of vectors."""
    out = np.empty((size_of(pieces)[0], *pieces[0].shape[1:]), np.float32)

    def work(place: slice, rows: Array, _: Scratch) -> None:
        out[place] = rows

    each_part(pieces, work)
    return out
