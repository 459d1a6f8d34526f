"""A cache whose keys and values are in blocks that sequences share: memory for the tokens there are, none for others'.

A slot is a name. Everything of its sequence is in one *row*, of the table of blocks and of the states, which stays the
same when sequences change slots, so that swapping two moves nothing on the device. A block that several hold is copied
before one of them writes to it.

Shapes:  slots · M blocks in a row of the table · N blocks of BLOCK tokens · Hk KV heads · E head dim
         keys/values [N, Hk, BLOCK, E] a full-attention layer · conv, recurrent as in `base`, by row
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pocketvlm.config import TextConfig
from pocketvlm.model.cache.base import Cache, RecordableCache, State
from pocketvlm.model.cache.block_pool import BLOCK, BlockPool, Holding, blocks_for
from pocketvlm.model.cache.block_tables import BlockTables
from pocketvlm.model.cache.paged_step import PagedStep
from pocketvlm.model.cache.torch_memory import TorchMemory
from pocketvlm.model.packing import PackedBatch

FIRST_WIDTH = 8  # columns of the table at first


class PagedCache(Cache):
    """Holds up to `slots` sequences, whose tokens together take `blocks` blocks at most.

    Args:
        config: shapes of the decoder.
        slots: sequences held at the same time; `resize` adds more.
        blocks: of keys and values, for the slots.
        max_slots: as of `Cache`; by default the slots there are.
        max_prefix_blocks: further blocks, for prefixes, so that neither runs out by the other.
        preallocate: take all memory now and never move it, as CUDA graphs need it; else as it is needed.
        memory: where it is; fp32 on the CPU when None.

    Attributes:
        tables: blocks of each row.
        rows: the row of each slot.
    """

    def __init__(
        self,
        config: TextConfig,
        slots: int,
        blocks: int,
        *,
        max_slots: int | None = None,
        max_prefix_blocks: int = 0,
        preallocate: bool = False,
        memory: TorchMemory | None = None,
    ) -> None:
        pool = BlockPool(config, blocks + max_prefix_blocks, memory or TorchMemory())
        super().__init__(config, slots, slots if max_slots is None else max_slots, blocks * BLOCK, pool)
        self.capacity = self.max_capacity  # of any one slot
        self.keys, self.values = pool.keys, pool.values
        width = min(blocks_for(self.max_capacity), pool.limit) if preallocate else FIRST_WIDTH
        self.tables = BlockTables(pool, slots, width)
        self.rows = list(range(slots))
        if preallocate:
            pool.grow(pool.limit)

    @property
    def held(self) -> int:
        """How many blocks slots have, each counted once."""
        return len(self.tables.holding)

    @property
    def max_blocks(self) -> int:
        """How many blocks all slots together may have."""
        return self.max_tokens // BLOCK

    def table(self, slot: int) -> list[int]:
        """Return the blocks of a slot, in order."""
        return self.tables.rows[self.rows[slot]]

    @property
    def recordable(self) -> RecordableCache:
        return self

    @property
    def allocated(self) -> tuple[int, ...]:
        return len(self.blocks.references), self.slots, self.tables.on_device.shape[1]

    def resize(self, slots: int, capacity: int, kept: int) -> None:
        """Make room for more slots. Any of them may have `capacity` tokens already."""
        assert slots >= self.slots, (slots, self.slots)
        assert capacity <= self.capacity, (capacity, self.capacity)
        for slot in range(kept, self.slots):
            self.release_slot(slot)
        if slots == self.slots:
            return
        # What is missing is counted anew for each: an interrupt may have left some behind.
        for store in (self.conv, self.recurrent):
            for layer, old in store.items():
                store[layer] = torch.cat([old, old.new_zeros(max(slots - len(old), 0), *old.shape[1:])])
        self.tables.grow(slots)
        self.rows += range(len(self.rows), slots)
        self.lengths += [0] * (slots - len(self.lengths))
        self.slots = slots

    def max_length(self, slots: int = 1) -> int:
        return min(self.max_capacity, self.max_blocks // slots * BLOCK)

    def fits(self, tokens: Sequence[int]) -> bool:
        if len(tokens) > self.max_slots or max(tokens, default=0) > self.max_capacity:
            return False
        held = self.held_with(dict(enumerate(tokens[: self.slots])))
        return held + sum(map(blocks_for, tokens[self.slots :])) <= self.max_blocks

    def held_with(self, tokens: Mapping[int, int]) -> int:
        """Return how many blocks slots will have once these hold so many tokens, copies before writing counted."""
        return self.tables.held_with({self.rows[slot]: (self.lengths[slot], count) for slot, count in tokens.items()})

    def make_room(self, tokens: Sequence[int]) -> None:
        """Make room for slots only: blocks come with their tokens."""
        if len(tokens) > self.slots:
            self.resize(min(max(len(tokens), 2 * self.slots), self.max_slots), 0, self.slots)

    def shrink(self) -> None:
        """Do nothing: blocks that nobody holds are anybody's."""

    def clear(self) -> None:
        """Free all blocks; memory stays, and states until their slot is reset."""
        self.blocks.reset()
        self.tables.clear()
        self.slots = len(self.tables.rows)
        self.lengths, self.rows = [0] * self.slots, list(range(self.slots))

    def usage(self, slots: int) -> float:
        del slots
        return self.held / self.max_blocks

    def reset(self, slot: int) -> None:
        self.release_slot(slot)
        for tensor in self._own_states(slot):
            tensor.zero_()

    def erase(self, slot: int) -> None:
        """Do as `reset` does: what a freed block holds is read by nobody before it is written again."""
        self.reset(slot)

    def release_slot(self, slot: int) -> None:
        self.tables.truncate(self.rows[slot], 0)
        self.lengths[slot] = 0

    def move_slot(self, source: int, target: int) -> None:
        self.swap_slots(source, target)

    def swap_slots(self, one: int, other: int) -> None:
        """Exchange their names only."""
        for by_slot in (self.rows, self.lengths):
            by_slot[one], by_slot[other] = by_slot[other], by_slot[one]

    def copy_slot(self, source: int, target: int, start: int = 0) -> None:
        """Share all blocks; whoever writes to the last one, partly filled, copies it first."""
        assert start <= self.lengths[source], (start, self.lengths[source])
        self.tables.set_row(self.rows[target], self.table(source))
        for own, other in zip(self._own_states(target), self._own_states(source), strict=True):
            own.copy_(other)
        self.lengths[target] = self.lengths[source]

    def tokens_of_copy(self, source: int, tokens: int) -> int:
        return tokens - self.lengths[source] // BLOCK * BLOCK

    def _own_states(self, slot: int) -> list[Tensor]:
        row = self.rows[slot]
        return [tensor[row] for store in (self.conv, self.recurrent) for tensor in store.values()]

    def restore_state(self, slot: int, state: State, length: int) -> None:
        self.tables.truncate(self.rows[slot], length)
        super().restore_state(slot, state, length)

    def save_prefix(
        self, slot: int, holding: Holding, shared: Sequence[int], make_room: Callable[[int], bool]
    ) -> list[int] | None:
        """Hold the slot's blocks once more. Its next token goes to a copy of the last one, if that is part empty."""
        del shared  # they are among the slot's own
        blocks = list(self.table(slot))
        holding.retain(blocks)
        if not make_room(0):
            holding.release(blocks)
            return None
        return blocks

    def restore_prefix(self, slot: int, blocks: Sequence[int], state: State, length: int) -> None:
        self.tables.set_row(self.rows[slot], blocks)
        self.restore_state(slot, state, length)

    def block_references(self) -> Mapping[int, int]:
        return self.tables.holding.counts

    def at(self, batch: PackedBatch) -> PagedStep:
        """Allocate blocks for all new tokens and put the indices on the device; nothing waits for the device."""
        self.extend(batch)
        if batch.is_decode:
            return self.decode_step(batch, self.decode_indices(batch).to(self.device, non_blocking=True))
        rows_B = torch.tensor([self.rows[s.slot] for s in batch.segments], dtype=torch.int32)
        rows_B = rows_B.to(self.device, non_blocking=True)
        mappings = [self.tables.mapping(self.rows[s.slot], s.start, s.length) for s in batch.segments]
        mapping_T = torch.cat(mappings).to(self.device, non_blocking=True)
        return PagedStep(self, batch, rows_B, self.tables.on_device.index_select(0, rows_B), mapping_T)

    def decode_step(self, batch: PackedBatch, indices: Tensor) -> PagedStep:
        rows_B, lengths_B, mapping_T, _ = indices
        tables_BM = self.tables.on_device.index_select(0, rows_B.clamp_min(0))
        return PagedStep(self, batch, rows_B, tables_BM, mapping_T, lengths_B)

    def extend(self, batch: PackedBatch) -> None:
        """Give every segment blocks of its own for its new tokens, and write them to the device's table."""
        copies: list[tuple[int, int]] = []
        for s in batch.segments:
            copies += self.tables.extend(self.rows[s.slot], s.start, s.start + s.length)
        self.blocks.copy(copies)
        self.tables.sync([self.rows[s.slot] for s in batch.segments])

    def decode_indices(self, batch: PackedBatch, size: int = 0) -> Tensor:
        """Return int32 [4, max(B, size)] on the host: rows, lengths, where the token is written, positions; padding
        stands behind those of the batch's sequences. `extend` goes first."""
        padding = [(-1, 0, -1, 0)] * (size - len(batch.segments))
        columns = [
            (self.rows[s.slot], s.start + 1, self.table(s.slot)[-1] * BLOCK + s.start % BLOCK, s.start)
            for s in batch.segments
        ]
        return torch.tensor(columns + padding, dtype=torch.int32).T.contiguous()

    def check_integrity(self) -> None:
        super().check_integrity()
        assert sorted(self.rows) == list(range(self.slots)), "a row has two slots or none"
        by_row = sorted(zip(self.rows, self.lengths, strict=True))
        self.tables.check_integrity([length for _, length in by_row])
        assert self.held <= self.max_blocks, "more blocks than the limit allows"
