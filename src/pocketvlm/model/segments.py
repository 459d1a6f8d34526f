"""What one forward of the decoder is about: runs of new tokens of several sequences, one after the other.

`packing.PackedBatch` adds the indices that PyTorch's layers need. Shapes: T tokens of all sequences · B sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketvlm.model.adapters.placed import PlacedAdapter


@dataclass(frozen=True)
class Segment:
    """A run of new tokens of one sequence: `length` tokens behind the `start` that its cache slot already holds.

    Attributes:
        adapter: the one that they follow; None for the model as it is.
    """

    length: int
    start: int = 0
    slot: int = 0
    adapter: PlacedAdapter | None = None


@dataclass(frozen=True)
class Batch:
    """Segments of different sequences, in packed order."""

    segments: tuple[Segment, ...]

    @cached_property
    def lengths(self) -> list[int]:
        return [s.length for s in self.segments]

    @cached_property
    def firsts(self) -> list[int]:
        """Packed row of each segment's first token."""
        firsts = [0]
        for s in self.segments:
            firsts.append(firsts[-1] + s.length)
        return firsts[:-1]

    @cached_property
    def lasts(self) -> list[int]:
        """Packed row of each segment's last token."""
        return [first + s.length - 1 for first, s in zip(self.firsts, self.segments, strict=True)]

    @cached_property
    def tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def is_decode(self) -> bool:
        """One new token for each sequence."""
        return all(s.length == 1 for s in self.segments)

    @cached_property
    def is_fresh(self) -> bool:
        """No sequence has anything cached."""
        return all(s.start == 0 for s in self.segments)

    @cached_property
    def slot_range(self) -> slice | None:
        """The segments' cache slots where they are consecutive: a slice is a view, no copy."""
        slots = [s.slot for s in self.segments]
        return slice(slots[0], slots[0] + len(slots)) if _are_consecutive(slots) else None


def _are_consecutive(numbers: Sequence[int]) -> bool:
    return list(numbers) == list(range(numbers[0], numbers[0] + len(numbers)))
