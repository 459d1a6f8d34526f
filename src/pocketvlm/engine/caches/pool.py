"""Rows of one cache for the sequences that run, within a budget of memory.

A row holds the keys, values and states of one sequence. Rows of sequences that decode come first and without gaps;
sequences whose prompt is still being read stand behind them. `CachePool` is what both layouts have in common:

- `ContiguousPool`: a row is a part of one buffer, which a step reads and writes in place. All rows have room for the
  longest, so `rows x capacity` tokens are what the budget counts: nothing is promised that is not there.
- `PagedPool`: a row is a table of blocks (`model.paged_cache`), which rows and kept beginnings of prompts share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Series

from pocketvlm.engine.config import Sizes
from pocketvlm.engine.request import Sequence
from pocketvlm.engine.runners.base import Runner
from pocketvlm.errors import PromptError
from pocketvlm.model.cache.base import state_bytes, token_bytes
from pocketvlm.model.cache.block_pool import BLOCK, BlockPool, blocks_for
from pocketvlm.model.cache.contiguous import Cache
from pocketvlm.model.cache.paged import PagedCache

GRAIN = 64  # capacities are multiples of it
FIRST = 256  # tokens of a row at first


class CachePool(ABC):
    """Args:
    runner: whose cache it is.
    sizes: most sequences at the same time, and most tokens of all of them together.

    Attributes:
        rows: the sequences; the first `decoding` of them decode.
        shares_blocks: whether a row may hold blocks of another.
    """

    cache: Cache
    shares_blocks = False

    def __init__(self, runner: Runner, sizes: Sizes) -> None:
        self.runner, self.sizes = runner, sizes
        self.max_rows = sizes.max_num_seqs
        self.context = runner.config.text.max_position_embeddings
        self.rows: list[Sequence] = []
        self.decoding = 0

    @property
    @abstractmethod
    def usage(self) -> float:
        """Share of the budget that rows in use hold."""

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Of everything that is allocated now."""

    @abstractmethod
    def room(self, width: int = 1) -> int:
        """Tokens that each of `width` sequences can have when nothing else runs."""

    @abstractmethod
    def fits(self, more: Series[int] = ()) -> bool:
        """Whether the budget holds all rows with all their tokens, and `more` rows of so many."""

    @abstractmethod
    def reserve(self, more: Series[int] = ()) -> None:
        """Make that room, which must fit."""

    @abstractmethod
    def lengthen(self, tokens: int) -> None:
        """Make room for so many tokens of the only row."""

    @abstractmethod
    def shrink(self) -> None:
        """Give back what is far more than is needed; called when nothing runs."""

    @abstractmethod
    def clear(self) -> None:
        """After a failure: no row, and nothing left of what was in them."""

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

    def forked(self, source: Sequence, tokens: int) -> int:
        """Tokens to count for a row of `tokens` that begins with what the row of `source` holds."""
        return tokens - source.computed // BLOCK * BLOCK if self.shares_blocks else tokens

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
        self.cache.release_slot(len(self.rows))
        sequence.row, sequence.computed = None, 0

    def _move(self, source: int, target: int) -> None:
        """Over a row that nobody needs."""
        if source == target:
            return
        self.cache.move_slot(source, target)
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
        if tokens + 1 > (room := self.room(width)):
            raise PromptError(
                f"the prompt has {tokens} tokens{f' for each of {width} beams' if width > 1 else ''}, "
                f"the engine's cache has room for {room}{' for each' if width > 1 else ''}",
                hint=f"Give the engine a larger cache_memory, or: {shorter[0].lower()}{shorter[1:]}",
            )

    def check_integrity(self) -> None:
        """Every row has one sequence that knows its row, and the cache holds as many tokens as it says."""
        assert len(self.rows) <= self.cache.slots <= max(self.max_rows, 1), "more rows than there is room for"
        assert 0 <= self.decoding <= len(self.rows), "more sequences decode than run"
        for row, sequence in enumerate(self.rows):
            assert sequence.row == row, f"the sequence in row {row} believes in row {sequence.row}"
            assert sequence.computed == self.cache.lengths[row], (
                f"row {row} holds {self.cache.lengths[row]} tokens, not {sequence.computed}"
            )
            assert sequence.finish_reason is None, f"row {row} is held by a finished sequence"


class ContiguousPool(CachePool):
    """Rows of one buffer, which grows to what is needed."""

    def __init__(self, runner: Runner, sizes: Sizes) -> None:
        super().__init__(runner, sizes)
        self.max_tokens = sizes.cache_tokens
        self.clear()

    @property
    def usage(self) -> float:
        return len(self.rows) * self.cache.capacity / self.max_tokens

    @property
    def bytes(self) -> int:
        text, dtype = self.runner.config.text, self.sizes.dtype
        return self.cache.slots * (self.cache.capacity * token_bytes(text, dtype) + state_bytes(text, dtype))

    def room(self, width: int = 1) -> int:
        return min(self.context, self.max_tokens // width)

    def fits(self, more: Series[int] = ()) -> bool:
        rows, longest = self._demand(more)
        return rows <= self.max_rows and longest <= self.context and rows * longest <= self.max_tokens

    def _demand(self, more: Series[int]) -> tuple[int, int]:
        """Rows, and tokens of the longest."""
        longest = max([*more, *(sequence.tokens for sequence in self.rows)], default=0)
        return len(self.rows) + len(more), longest

    def reserve(self, more: Series[int] = ()) -> None:
        self._grow(*self._demand(more))

    def lengthen(self, tokens: int) -> None:
        self._grow(1, tokens)

    def _grow(self, rows: int, longest: int) -> None:
        assert rows * longest <= self.max_tokens, (rows, longest)
        cache = self.cache
        if rows <= cache.slots and longest <= cache.capacity:
            return
        slots = cache.slots if rows <= cache.slots else min(max(rows, 2 * cache.slots), self.max_rows)
        # Twice as much as there was, so that growing stays rare; but no more than the budget has for all rows.
        wanted = cache.capacity if longest <= cache.capacity else max(longest, 2 * cache.capacity)
        if slots * wanted > self.max_tokens:
            slots = rows
        capacity = min(-(-wanted // GRAIN) * GRAIN, self.room(slots))
        assert capacity >= longest, (rows, longest, slots, capacity)
        cache.resize(slots, capacity, len(self.rows))

    def shrink(self) -> None:
        if not self.rows and self.cache.slots * self.cache.capacity * 2 > self.max_tokens:
            self.cache.resize(1, min(FIRST, self.room()), 0)

    def clear(self) -> None:
        self.cache = self.runner.make_cache(1, min(FIRST, self.room()))

    def check_integrity(self) -> None:
        super().check_integrity()
        assert self.cache.slots * self.cache.capacity <= max(self.max_tokens, self.cache.capacity), "over the budget"


class PagedPool(CachePool):
    """Rows of blocks. What the prefix cache holds has a budget of its own, so that neither runs out by the other."""

    cache: PagedCache
    shares_blocks = True

    def __init__(self, runner: Runner, sizes: Sizes) -> None:
        super().__init__(runner, sizes)
        text, on_gpu = runner.config.text, runner.device.type == "cuda"
        self.max_blocks = sizes.cache_tokens // BLOCK
        kept = sizes.prefix_bytes // BlockPool.block_bytes(text, sizes.dtype)
        self.cache = PagedCache(
            text,
            self.max_rows if on_gpu else 1,
            self.max_blocks + kept,
            preallocate=on_gpu,
            dtype=sizes.dtype,
            device=runner.device,
        )

    @property
    def usage(self) -> float:
        return self.cache.held / self.max_blocks

    @property
    def bytes(self) -> int:
        text, dtype = self.runner.config.text, self.sizes.dtype
        blocks = len(self.cache.blocks.references) * BlockPool.block_bytes(text, dtype)
        return blocks + self.cache.slots * state_bytes(text, dtype)

    def room(self, width: int = 1) -> int:
        return min(self.context, self.max_blocks // width * BLOCK)

    def fits(self, more: Series[int] = ()) -> bool:
        if len(self.rows) + len(more) > self.max_rows or max(more, default=0) > self.context:
            return False
        held = self.cache.held_with({row: sequence.tokens for row, sequence in enumerate(self.rows)})
        return held + sum(map(blocks_for, more)) <= self.max_blocks

    def reserve(self, more: Series[int] = ()) -> None:
        rows = len(self.rows) + len(more)
        if rows > self.cache.slots:
            self.cache.resize(min(max(rows, 2 * self.cache.slots), self.max_rows), 0, len(self.rows))

    def lengthen(self, tokens: int) -> None:
        assert tokens <= self.room(), (tokens, self.room())  # its blocks come with its tokens

    def shrink(self) -> None:
        pass  # blocks that nobody holds are anybody's

    def clear(self) -> None:
        self.cache.clear()

    def check_integrity(self) -> None:
        super().check_integrity()
        self.cache.check_integrity()
        assert self.cache.held <= self.max_blocks, "over the budget"


def make_pool(runner: Runner, sizes: Sizes) -> CachePool:
    """The pool of the layout that `sizes` chose."""
    return PagedPool(runner, sizes) if sizes.layout == "paged" else ContiguousPool(runner, sizes)
