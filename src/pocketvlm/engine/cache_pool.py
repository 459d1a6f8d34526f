"""Rows of one cache for the sequences that run, within a budget of memory.

A row holds the keys, values and states of one sequence. Rows of sequences that decode come first and without gaps, so
that a step reads and writes them in place; sequences whose prompt is still being read stand behind them. All rows have
room for the longest, so `rows x capacity` tokens are what the budget counts: nothing is promised that is not there.
"""

from __future__ import annotations

from pocketvlm.engine.request import Sequence
from pocketvlm.engine.runner import Runner
from pocketvlm.errors import PromptError
from pocketvlm.model.cache import state_bytes, token_bytes

GRAIN = 64  # capacities are multiples of it
FIRST = 256  # tokens of a row at first


class CachePool:
    """Args:
    runner: whose cache it is.
    max_rows: most sequences at the same time.
    max_tokens: most tokens of all rows together, unused ones counted.
    """

    def __init__(self, runner: Runner, max_rows: int, max_tokens: int) -> None:
        self.max_rows, self.max_tokens = max_rows, max_tokens
        self.context = runner.config.text.max_position_embeddings
        self.runner = runner
        self.cache = runner.make_cache(1, min(FIRST, self.longest))
        self.rows: list[Sequence] = []
        self.decoding = 0

    @property
    def longest(self) -> int:
        """Tokens that one sequence can have, when it is alone."""
        return min(self.context, self.max_tokens)

    @property
    def is_exhausted(self) -> bool:
        return len(self.rows) >= self.max_rows

    @property
    def usage(self) -> float:
        """Share of the budget that rows in use hold."""
        return len(self.rows) * self.cache.capacity / self.max_tokens

    def fits(self, rows: int, longest: int) -> bool:
        """Whether so many rows of so many tokens are within the budget."""
        return rows <= self.max_rows and longest <= self.context and rows * longest <= self.max_tokens

    def reserve(self, rows: int, longest: int) -> None:
        """Make room for so many rows of so many tokens, which must fit."""
        assert self.fits(rows, longest), (rows, longest)
        cache = self.cache
        if rows <= cache.slots and longest <= cache.capacity:
            return
        slots = cache.slots if rows <= cache.slots else min(max(rows, 2 * cache.slots), self.max_rows)
        # Twice as much as there was, so that growing stays rare; but no more than the budget has for all rows.
        wanted = cache.capacity if longest <= cache.capacity else max(longest, 2 * cache.capacity)
        if slots * wanted > self.max_tokens:
            slots = rows
        capacity = min(-(-wanted // GRAIN) * GRAIN, self.longest, self.max_tokens // slots)
        assert capacity >= longest, (rows, longest, slots, capacity)
        cache.resize(slots, capacity, len(self.rows))

    def shrink(self) -> None:
        """Give back what one long sequence needed; called when nothing runs."""
        if not self.rows and self.cache.slots * self.cache.capacity * 2 > self.max_tokens:
            self.cache.resize(1, min(FIRST, self.longest), 0)

    def admit(self, sequence: Sequence) -> None:
        """Give a sequence the next row, empty."""
        row = len(self.rows)
        assert row < self.cache.slots, "no row was reserved"
        self.cache.reset(row)
        sequence.row, sequence.computed = row, 0
        self.rows.append(sequence)

    def promote(self, sequence: Sequence) -> None:
        """A sequence whose prompt has been read takes its place among those that decode."""
        assert sequence.row is not None
        assert sequence.row >= self.decoding
        self._swap(sequence.row, self.decoding)
        self.decoding += 1

    def fork(self, source: Sequence, target: Sequence) -> None:
        """A new row, among those that decode, for a sequence that goes on from where `source` is."""
        self.admit(target)
        assert source.row is not None
        assert target.row is not None
        self.cache.copy_slot(source.row, target.row)
        target.computed = source.computed
        self.promote(target)

    def copy(self, source: int, target: int, start: int = 0) -> None:
        """One row over another (`Cache.copy_slot`)."""
        self.cache.copy_slot(source, target, start)

    def remove(self, sequence: Sequence, *, erase: bool = False) -> None:
        """Free a row; the last ones move into the gaps.

        Args:
            erase: also its keys and values, where they may not be numbers.
        """
        row = sequence.row
        assert row is not None
        assert self.rows[row] is sequence
        if erase:
            self.cache.erase(row)
        if row < self.decoding:
            self.decoding -= 1
            self._move(self.decoding, row)
            row = self.decoding
        self._move(len(self.rows) - 1, row)
        self.rows.pop()
        sequence.row, sequence.computed = None, 0

    def _move(self, source: int, target: int) -> None:
        """Over a row that nobody needs."""
        if source == target:
            return
        self.cache.copy_slot(source, target)
        self.rows[target] = self.rows[source]
        self.rows[target].row = target

    def _swap(self, one: int, other: int) -> None:
        if one == other:
            return
        self.cache.swap_slots(one, other)
        self.rows[one], self.rows[other] = self.rows[other], self.rows[one]
        self.rows[one].row, self.rows[other].row = one, other

    def check_fits(self, tokens: int, width: int) -> None:
        """`PromptError` when a prompt of so many tokens, in so many rows, can never be answered."""
        if not tokens:
            raise PromptError("the prompt is empty")
        shorter = "Use a smaller picture, a lower max_slice_nums, downsample_mode='16x' or a shorter text."
        if tokens >= self.context:
            raise PromptError(f"the prompt has {tokens} tokens, the model's context is {self.context}", hint=shorter)
        if tokens * width + width > self.max_tokens:
            raise PromptError(
                f"the prompt has {tokens} tokens{f' for each of {width} beams' if width > 1 else ''}, "
                f"the engine's cache has room for {self.max_tokens}",
                hint=f"Give the engine a larger cache_memory, or: {shorter[0].lower()}{shorter[1:]}",
            )

    @property
    def bytes(self) -> int:
        """Of everything that is allocated now."""
        text, dtype = self.runner.config.text, next(iter((*self.cache.keys.values(), *self.cache.conv.values()))).dtype
        return self.cache.slots * (self.cache.capacity * token_bytes(text, dtype) + state_bytes(text, dtype))

    def check_integrity(self) -> None:
        """Every row has one sequence that knows its row, and the cache holds as many tokens as it says."""
        assert len(self.rows) <= self.cache.slots <= max(self.max_rows, 1), "more rows than there is room for"
        assert 0 <= self.decoding <= len(self.rows), "more sequences decode than run"
        assert self.cache.slots * self.cache.capacity <= max(self.max_tokens, self.cache.capacity), "over the budget"
        for row, sequence in enumerate(self.rows):
            assert sequence.row == row, f"the sequence in row {row} believes in row {sequence.row}"
            assert sequence.computed == self.cache.lengths[row], (
                f"row {row} holds {self.cache.lengths[row]} tokens, not {sequence.computed}"
            )
            assert sequence.finish_reason is None, f"row {row} is held by a finished sequence"
