"""A cache in which each slot is a part of one buffer: a forward reads and writes it where it is.

All slots have room for the longest, so `slots x capacity` tokens are what counts against the limit: nothing is promised
that is not there. The buffer grows to what is needed.

Shapes:  slots (one a sequence) · Hk KV heads · L capacity in tokens · D head_dim
         keys/values [slots, Hk, L, D] a full-attention layer · conv, recurrent as in `base`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pocketvlm.config import TextConfig
from pocketvlm.model.cache.base import Cache, LayerCache, State
from pocketvlm.model.cache.block_pool import BLOCK, BlockPool, Holding, blocks_for
from pocketvlm.model.cache.memory import Array, Memory

if TYPE_CHECKING:
    from pocketvlm.model.packing import PackedBatch

GRAIN = 64  # capacities that `make_room` chooses are multiples of it
FIRST_CAPACITY = 256  # tokens of a slot after `shrink` and `clear`


class ContiguousCache(Cache):
    """Keeps each slot in one buffer; keys and values grow by doubling, the recurrent part never grows.

    Args:
        config: shapes of the decoder.
        slots: sequences held at the same time.
        capacity: tokens a slot can hold before the first growth.
        max_slots, max_tokens: as of `Cache`; by default the slots there are, each up to the model's context.
        max_prefix_blocks: blocks for prefixes, which are copied into them and out of them.
        memory: where it is; PyTorch's fp32 on the CPU when None.
    """

    def __init__(
        self,
        config: TextConfig,
        slots: int = 1,
        capacity: int = 512,
        *,
        max_slots: int | None = None,
        max_tokens: int | None = None,
        max_prefix_blocks: int = 0,
        memory: Memory | None = None,
    ) -> None:
        if memory is None:
            from pocketvlm.model.cache.torch_memory import TorchMemory

            memory = TorchMemory()
        max_slots = slots if max_slots is None else max_slots
        max_tokens = max_slots * config.max_position_embeddings if max_tokens is None else max_tokens
        blocks = BlockPool(config, max_prefix_blocks, memory)
        super().__init__(config, slots, max_slots, max_tokens, blocks)
        self.capacity = min(capacity, self.max_capacity)
        shape = (slots, config.num_key_value_heads, self.capacity, config.head_dim)
        for layer in blocks.layers:
            self.keys[layer] = memory.zeros(shape)
            self.values[layer] = memory.zeros(shape)

    def reserve(self, tokens: int) -> None:
        super().reserve(tokens)
        if tokens > self.capacity:
            self.resize(self.slots, min(max(tokens, 2 * self.capacity), self.max_capacity), self.slots)

    def resize(self, slots: int, capacity: int, kept: int) -> None:
        assert kept <= slots, (kept, slots)
        assert max(self.lengths[:kept], default=0) <= capacity, (self.lengths, capacity)
        for store in (self.keys, self.values):
            for layer, old in store.items():
                new = self.memory.zeros((slots, old.shape[1], capacity, old.shape[3]))
                both = min(capacity, old.shape[2])
                new[:kept, :, :both] = old[:kept, :, :both]
                store[layer] = new
        for store in (self.conv, self.recurrent):
            for layer, old in store.items():
                if len(old) != slots:  # judged layer by layer: an interrupt may have left some of them behind
                    new = self.memory.zeros((slots, *old.shape[1:]), is_fp32=store is self.recurrent)
                    new[:kept] = old[:kept]
                    store[layer] = new
        self.lengths = (self.lengths[:kept] + [0] * slots)[:slots]
        self.slots, self.capacity = slots, capacity

    def max_length(self, slots: int = 1) -> int:
        return min(self.max_capacity, self.max_tokens // slots)

    def fits(self, tokens: Sequence[int]) -> bool:
        longest = max(tokens, default=0)
        return (
            len(tokens) <= self.max_slots and longest <= self.max_capacity and len(tokens) * longest <= self.max_tokens
        )

    def make_room(self, tokens: Sequence[int]) -> None:
        needed, longest = len(tokens), max(tokens, default=0)
        assert needed * longest <= self.max_tokens, (needed, longest)
        if needed <= self.slots and longest <= self.capacity:
            return
        slots = self.slots if needed <= self.slots else min(max(needed, 2 * self.slots), self.max_slots)
        # Twice as much as there was, so that growing stays rare; but no more than the limit has for all slots.
        wanted = self.capacity if longest <= self.capacity else max(longest, 2 * self.capacity)
        if slots * wanted > self.max_tokens:
            slots = needed
        capacity = min(-(-wanted // GRAIN) * GRAIN, self.max_length(slots))
        assert capacity >= longest, (needed, longest, slots, capacity)
        used = next((slot + 1 for slot in reversed(range(self.slots)) if self.lengths[slot]), 0)
        self.resize(slots, capacity, used)

    def shrink(self) -> None:
        if self.slots * self.capacity * 2 > self.max_tokens:
            self.resize(1, min(FIRST_CAPACITY, self.max_length()), 0)

    def clear(self) -> None:
        self.blocks.reset()
        self.resize(1, min(FIRST_CAPACITY, self.max_length()), 0)
        self.reset(0)

    def usage(self, slots: int) -> float:
        return slots * self.capacity / self.max_tokens

    def reset(self, slot: int) -> None:
        self.lengths[slot] = 0
        for array in self._own_states(slot):
            array[...] = 0

    def erase(self, slot: int) -> None:
        """Zero its keys and values too: a NaN behind a mask is a NaN all the same."""
        self.reset(slot)
        for store in (self.keys, self.values):
            for array in store.values():
                array[slot] = 0

    def release_slot(self, slot: int) -> None:
        self.lengths[slot] = 0

    def move_slot(self, source: int, target: int) -> None:
        self.copy_slot(source, target)

    def swap_slots(self, one: int, other: int) -> None:
        longest = max(self.lengths[one], self.lengths[other])
        for store in (self.keys, self.values):
            for array in store.values():
                kept = self.memory.copy(array[one, :, :longest])
                array[one, :, :longest] = array[other, :, :longest]
                array[other, :, :longest] = kept
        for store in (self.conv, self.recurrent):
            for array in store.values():
                array[[one, other]] = array[[other, one]]
        self.lengths[one], self.lengths[other] = self.lengths[other], self.lengths[one]

    def copy_slot(self, source: int, target: int, start: int = 0) -> None:
        length = self.lengths[source]
        for store in (self.keys, self.values):
            for array in store.values():
                array[target, :, start:length] = array[source, :, start:length]
        for store in (self.conv, self.recurrent):
            for array in store.values():
                array[target] = array[source]
        self.lengths[target] = length

    def tokens_of_copy(self, source: int, tokens: int) -> int:
        del source
        return tokens

    def _own_states(self, slot: int) -> list[Array]:
        return [array[slot] for store in (self.conv, self.recurrent) for array in store.values()]

    def save_prefix(
        self, slot: int, holding: Holding, shared: Sequence[int], make_room: Callable[[int], bool]
    ) -> list[int] | None:
        length = self.lengths[slot]
        count = blocks_for(length) - len(shared)
        holding.retain(shared)  # before room is made: whoever had them may go
        fresh = holding.allocate(count) if make_room(count) else None
        if fresh is None:
            holding.release(shared)
            return None
        self._write_blocks(fresh, slot, len(shared) * BLOCK, length)
        return [*shared, *fresh]

    def _write_blocks(self, blocks: Sequence[int], slot: int, start: int, end: int) -> None:
        """Copy tokens `start` (a multiple of BLOCK) to `end` of a slot; the last block may stay part empty."""
        if start == end:
            return
        full, rest = divmod(end - start, BLOCK)
        index = self.memory.index(blocks[:full])
        for own, kept in ((self.keys, self.blocks.keys), (self.values, self.blocks.values)):
            for layer, store in kept.items():
                heads, _, size = (source := own[layer][slot, :, start:end]).shape
                if full:
                    whole = source[:, : full * BLOCK].reshape(heads, full, BLOCK, size)
                    store[index] = whole.swapaxes(0, 1)
                if rest:
                    store[blocks[full], :, :rest] = source[:, full * BLOCK :]

    def restore_prefix(self, slot: int, blocks: Sequence[int], state: State, length: int) -> None:
        index = self.memory.index(blocks)
        for own, kept in ((self.keys, self.blocks.keys), (self.values, self.blocks.values)):
            for layer, store in kept.items():
                _, heads, _, size = store.shape
                whole = store[index].swapaxes(0, 1).reshape(heads, len(blocks) * BLOCK, size)
                own[layer][slot, :, :length] = whole[:, :length]
        self.restore_state(slot, state, length)

    def at(self, batch: PackedBatch) -> LayerCache:
        from pocketvlm.model.cache.contiguous_step import ContiguousStep  # brings PyTorch, whose layers alone ask

        return ContiguousStep(self, batch)

    def check_integrity(self) -> None:
        super().check_integrity()
        assert self.slots <= max(self.max_slots, 1), "more slots than the limit allows"
        assert max(self.lengths) <= self.capacity, "a slot holds more than it has room for"
        assert self.slots * self.capacity <= max(self.max_tokens, self.capacity), "more tokens than the limit allows"
