"""A cache whose keys and values are in blocks that sequences share: memory for the tokens there are, none for others'.

A slot is a name. Its keys are where its table of blocks says, its states in a *place* that stays where it is when
sequences change slots, so that swapping two moves nothing on the device. A block that several hold is copied before one
of them writes to it.

Shapes:  slots · M blocks in a row of the table · N blocks of BLOCK tokens · Hk KV heads · E head dim
         keys/values [N, Hk, BLOCK, E] a full-attention layer · block_tables int32 [slots, M], by place
         conv, recurrent as in `cache`, by place
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pocketvlm.config import TextConfig
from pocketvlm.errors import ConfigError
from pocketvlm.model.cache.base import State
from pocketvlm.model.cache.block_pool import BLOCK, BlockPool, Holding, blocks_for
from pocketvlm.model.cache.contiguous import Cache
from pocketvlm.model.cache.paged_step import PagedStep
from pocketvlm.model.packing import PackedBatch, Segment

FIRST_WIDTH = 8  # columns of the table at first


class PagedCache(Cache):
    """State of up to `slots` sequences, whose tokens together take `blocks` blocks at most.

    Args:
        config: shapes of the decoder.
        slots: sequences held at the same time; `resize` adds more.
        blocks: of keys and values, those that others hold (kept beginnings of prompts) among them.
        preallocate: take all memory now and never move it, as CUDA graphs need it; else as it is needed.

    Attributes:
        tables: blocks of each slot, in order.
        holding: how many tables have each block.
        held: blocks that any table has.
    """

    def __init__(
        self,
        config: TextConfig,
        slots: int,
        blocks: int,
        *,
        preallocate: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(config, slots, 0, dtype=dtype, device=device)
        self.capacity = self.max_capacity  # of any one slot
        self.blocks = BlockPool(config, blocks, dtype=dtype, device=device)
        self.keys, self.values = self.blocks.keys, self.blocks.values
        self.tables: list[list[int]] = [[] for _ in range(slots)]
        self.holding = Holding(self.blocks)
        self.places = list(range(slots))
        width = min(blocks_for(self.max_capacity), blocks) if preallocate else FIRST_WIDTH
        self.block_tables = torch.zeros(slots, width, dtype=torch.int32, device=device)
        self._told = [0] * slots  # by place: leading columns of `block_tables` that are as in `tables`
        if preallocate:
            self.blocks.grow(blocks)

    @property
    def held(self) -> int:
        return len(self.holding)

    @property
    def device(self) -> torch.device:
        return self.block_tables.device

    @property
    def allocated(self) -> tuple[int, int, int]:
        """Changes whenever a tensor of the cache was replaced by a larger one."""
        return len(self.blocks.references), self.slots, self.block_tables.shape[1]

    def resize(self, slots: int, capacity: int, kept: int) -> None:
        """Room for more slots; the first `kept` stay. Any of them may have `capacity` tokens already."""
        assert slots >= self.slots, (slots, self.slots)
        assert capacity <= self.capacity, (capacity, self.capacity)
        for slot in range(kept, self.slots):
            self.release_slot(slot)
        if slots == self.slots:
            return
        more = slots - self.slots
        for store in (self.conv, self.recurrent):
            for layer, old in store.items():
                store[layer] = torch.cat([old, old.new_zeros(more, *old.shape[1:])])
        self.block_tables = torch.nn.functional.pad(self.block_tables, (0, 0, 0, more))
        self.places += range(self.slots, slots)
        self.tables += [[] for _ in range(more)]
        self._told += [0] * more
        self.lengths += [0] * more
        self.slots = slots

    def reset(self, slot: int) -> None:
        self.release_slot(slot)
        for store in (self.conv, self.recurrent):
            for tensor in store.values():
                tensor[self.places[slot]].zero_()

    def erase(self, slot: int) -> None:
        """As `reset`: what a freed block holds is read by nobody before it is written again."""
        self.reset(slot)

    def release_slot(self, slot: int) -> None:
        self._truncate(slot, 0)
        self.lengths[slot] = 0

    def clear(self) -> None:
        """Nobody holds anything any more, whatever was held; memory stays, and states until their slot is reset."""
        self.blocks.reset()
        self.holding.counts.clear()
        self.tables = [[] for _ in range(self.slots)]
        self.lengths, self.places, self._told = [0] * self.slots, list(range(self.slots)), [0] * self.slots

    def held_with(self, tokens: Mapping[int, int]) -> int:
        """Blocks that tables will have once each of these slots holds so many tokens, copies before writing counted."""
        held, writers = self.held, Counter[int]()
        for slot, count in tokens.items():
            table, length = self.tables[slot], self.lengths[slot]
            held += max(0, blocks_for(count) - len(table))
            if count > length and length % BLOCK and self.holding.counts[table[-1]] > 1:
                writers[table[-1]] += 1
        # Of those that share a block and all write to it, the last finds it its own.
        return held + sum(count - (count == self.holding.counts[block]) for block, count in writers.items())

    def move_slot(self, source: int, target: int) -> None:
        self.swap_slots(source, target)

    def swap_slots(self, one: int, other: int) -> None:
        """Exchange two sequences: their names only."""
        for by_slot in (self.places, self.lengths):
            by_slot[one], by_slot[other] = by_slot[other], by_slot[one]
        self.tables[one], self.tables[other] = self.tables[other], self.tables[one]

    def copy_slot(self, source: int, target: int, start: int = 0) -> None:
        """Make `target` continue from where `source` is. All blocks are shared; whoever writes to the last one, partly
        filled, copies it first."""
        assert start <= self.lengths[source], (start, self.lengths[source])
        self._set_table(target, self.tables[source])
        one, other = self.places[source], self.places[target]
        for store in (self.conv, self.recurrent):
            for tensor in store.values():
                tensor[other] = tensor[one]
        self.lengths[target] = self.lengths[source]

    def save_state(self, slot: int) -> State:
        return super().save_state(self.places[slot])

    def restore_state(self, slot: int, state: State, length: int) -> None:
        self._truncate(slot, length)
        for tensor, saved in zip(self._own_states(slot), state, strict=True):
            tensor.copy_(saved)
        self.lengths[slot] = length

    def adopt(self, slot: int, blocks: Sequence[int], state: State, length: int) -> None:
        """Make `slot` continue behind the first `length` tokens that others' `blocks` hold, from `state`."""
        self._set_table(slot, blocks)
        self.restore_state(slot, state, length)

    def _own_states(self, slot: int) -> list[Tensor]:
        return [tensor[self.places[slot]] for store in (self.conv, self.recurrent) for tensor in store.values()]

    def _set_table(self, slot: int, blocks: Sequence[int]) -> None:
        old, new = self.tables[slot], list(blocks)
        equal = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        self.holding.retain(new)  # before the old ones go: they may be the same
        self.holding.release(old)
        self.tables[slot] = new
        self._untell(slot, equal)

    def _truncate(self, slot: int, tokens: int) -> None:
        """Let go of the blocks behind so many tokens."""
        table, kept = self.tables[slot], blocks_for(tokens)
        if kept < len(table):
            self.holding.release(table[kept:])
            del table[kept:]
            self._untell(slot, kept)

    def _untell(self, slot: int, columns: int) -> None:
        place = self.places[slot]
        self._told[place] = min(self._told[place], columns)

    def at(self, batch: PackedBatch) -> PagedStep:
        """Blocks for all new tokens, and the indices of this forward on the device; nothing waits for the device."""
        self.extend(batch)
        if batch.is_decode:
            return self.decode_step(batch, self.decode_indices(batch).to(self.device, non_blocking=True))
        places = torch.tensor([self.places[s.slot] for s in batch.segments], dtype=torch.int32)
        slots = places.to(self.device, non_blocking=True)
        mapping = torch.cat([self._mapping(s) for s in batch.segments]).to(self.device, non_blocking=True)
        return PagedStep(self, batch, slots, self.block_tables.index_select(0, slots), mapping)

    def decode_step(self, batch: PackedBatch, indices: Tensor) -> PagedStep:
        """The forward of a decode batch from its `decode_indices`, on the device: work of the device alone."""
        slots, lengths, mapping, _ = indices
        tables = self.block_tables.index_select(0, slots.clamp_min(0))
        return PagedStep(self, batch, slots, tables, mapping, lengths)

    def extend(self, batch: PackedBatch) -> None:
        """Give every segment blocks of its own for its new tokens, and tell the device of them."""
        copies: list[tuple[int, int]] = []
        for s in batch.segments:
            self._extend(s, copies)
        self.blocks.copy(copies)
        self._tell(batch)

    def _extend(self, s: Segment, copies: list[tuple[int, int]]) -> None:
        self._truncate(s.slot, s.start)
        table = self.tables[s.slot]
        assert len(table) == blocks_for(s.start), f"slot {s.slot} holds fewer than {s.start} tokens"
        if s.start % BLOCK and self.blocks.references[table[-1]] > 1:
            (own,) = self._allocate(1)
            copies.append((table[-1], own))
            self.holding.release(table[-1:])
            table[-1] = own
            self._untell(s.slot, len(table) - 1)
        table += self._allocate(blocks_for(s.start + s.length) - len(table))

    def _allocate(self, count: int) -> list[int]:
        blocks = self.holding.allocate(count)
        if blocks is None:
            raise ConfigError(
                f"the cache has {self.blocks.limit} blocks of {BLOCK} tokens, and all are in use",
                hint="Run fewer sequences at a time, or give it more memory.",
            )
        return blocks

    def _tell(self, batch: PackedBatch) -> None:
        """Bring the rows of `block_tables` up to date: what changed, in one copy."""
        longest = max(len(self.tables[s.slot]) for s in batch.segments)
        if longest > (width := self.block_tables.shape[1]):
            more = max(longest, 2 * width) - width
            self.block_tables = torch.nn.functional.pad(self.block_tables, (0, more))
        changes: list[tuple[int, int, int]] = []
        for s in batch.segments:
            place, table = self.places[s.slot], self.tables[s.slot]
            changes += [(place, column, table[column]) for column in range(self._told[place], len(table))]
            self._told[place] = len(table)
        if changes:
            rows, columns, blocks = torch.tensor(changes).T.to(self.device, non_blocking=True)
            self.block_tables[rows, columns] = blocks.int()

    def _mapping(self, s: Segment) -> Tensor:
        """[length] where each new token of a segment is written: block * BLOCK + place in the block."""
        positions = torch.arange(s.start, s.start + s.length)
        first = s.start // BLOCK
        blocks = torch.tensor(self.tables[s.slot][first:])
        return blocks[positions // BLOCK - first] * BLOCK + positions % BLOCK

    def decode_indices(self, batch: PackedBatch, size: int = 0) -> Tensor:
        """int32 [4, max(B, size)] on the host: places, lengths, where the token is written, positions; behind those of
        the batch's sequences stands padding. `extend` goes first."""
        padding = [(-1, 0, -1, 0)] * (size - len(batch.segments))
        rows = [
            (self.places[s.slot], s.start + 1, self.tables[s.slot][-1] * BLOCK + s.start % BLOCK, s.start)
            for s in batch.segments
        ]
        return torch.tensor(rows + padding, dtype=torch.int32).T.contiguous()

    def check_integrity(self) -> None:
        """Tables are as long as what they hold, and the device knows them."""
        self.blocks.check_integrity()
        counts = Counter(block for table in self.tables for block in table)
        assert counts == self.holding.counts, "tables are not counted right"
        for table, length in zip(self.tables, self.lengths, strict=True):
            assert len(table) == blocks_for(length), f"{length} tokens in {len(table)} blocks"
        assert sorted(self.places) == list(range(self.slots)), "a place has two slots or none"
        told = self.block_tables.tolist()
        for slot, place in enumerate(self.places):
            assert self.tables[slot][: self._told[place]] == told[place][: self._told[place]], "the device is misled"
