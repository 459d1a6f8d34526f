"""Blocks of keys and values with reference counts, which sequences and kept prefixes share.

Shapes:  N blocks of BLOCK tokens · Hk KV heads · E head dim · n tokens
         keys, values [N, Hk, BLOCK, E] of each full-attention layer
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pocketvlm.config import TextConfig
from pocketvlm.model.cache.memory import Array, Memory

BLOCK = 32
FIRST_BLOCKS = 16  # made at once; then as many again, up to the limit


def blocks_for(tokens: int) -> int:
    """Return how many blocks hold so many tokens."""
    return -(-tokens // BLOCK)


class BlockPool:
    """Has up to `limit` blocks; memory is taken as they are needed.

    Args:
        config: shapes of the decoder.
        limit: blocks at most.
        memory: where they are.

    Attributes:
        keys, values: by full-attention layer; empty until the first block is taken.
        references: of each block, by those that hold it.
    """

    def __init__(self, config: TextConfig, limit: int, memory: Memory) -> None:
        self.config, self.limit, self.memory = config, limit, memory
        self.layers = [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
        self.references: list[int] = []
        self.free: list[int] = []
        self.keys: dict[int, Array] = {}
        self.values: dict[int, Array] = {}

    @property
    def used(self) -> int:
        return len(self.references) - len(self.free)

    @staticmethod
    def block_bytes(config: TextConfig, memory: Memory) -> int:
        """Return the bytes of one block in all layers."""
        layers = sum(kind == "full_attention" for kind in config.layer_types)
        return 2 * layers * config.num_key_value_heads * BLOCK * config.head_dim * memory.itemsize

    def allocate(self, count: int) -> list[int] | None:
        """Return `count` blocks with one reference each; None where there are not as many."""
        if count > self.limit - self.used:
            return None
        while len(self.free) < count:
            self.grow()
        blocks = [self.free.pop() for _ in range(count)]
        for block in blocks:
            self.references[block] = 1
        return blocks

    def retain(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            assert self.references[block] > 0, f"block {block} is free"
            self.references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            assert self.references[block] > 0, f"block {block} is free"
            self.references[block] -= 1
            if not self.references[block]:
                self.free.append(block)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the first block of each pair over the second; all are read before any is written."""
        if not pairs:
            return
        source, target = self.memory.index([*zip(*pairs, strict=True)])
        for own in (self.keys, self.values):
            for store in own.values():
                store[target] = store[source]

    def check_integrity(self) -> None:
        """Check that every block is free once, or referenced."""
        assert len(set(self.free)) == len(self.free), "a block is free twice"
        assert all(self.references[block] == 0 for block in self.free), "a free block is referenced"
        assert sum(count > 0 for count in self.references) == self.used, "a block is neither free nor used"

    def reset(self) -> None:
        """Free all blocks: after a failure, when nobody knows what is held."""
        self.references = [0] * len(self.references)
        self.free = list(range(len(self.references) - 1, -1, -1))

    def grow(self, wanted: int | None = None) -> None:
        """Take memory for more blocks: twice as many, or `wanted` in all."""
        old = len(self.references)
        new = min(max(2 * old, FIRST_BLOCKS) if wanted is None else wanted, self.limit)
        shape = (new, self.config.num_key_value_heads, BLOCK, self.config.head_dim)
        for own in (self.keys, self.values):
            for layer in self.layers:
                store = self.memory.empty(shape)
                if old:
                    store[:old] = own[layer][:old]
                own[layer] = store
        self.free += range(new - 1, old - 1, -1)
        self.references += [0] * (new - old)


class Holding:
    """Counts what one party holds of a pool.

    Attributes:
        counts: how often it holds each block; a block that it does not hold is not in it.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.counts: Counter[int] = Counter()

    def __len__(self) -> int:
        """Return how many blocks it holds, each counted once."""
        return len(self.counts)

    def allocate(self, count: int) -> list[int] | None:
        """Do what `BlockPool.allocate` does."""
        blocks = self.pool.allocate(count)
        if blocks is not None:
            self.counts.update(blocks)
        return blocks

    def retain(self, blocks: Sequence[int]) -> None:
        self.pool.retain(blocks)
        self.counts.update(blocks)

    def release(self, blocks: Sequence[int]) -> None:
        self.pool.release(blocks)
        for block in blocks:
            self.counts[block] -= 1
            if not self.counts[block]:
                del self.counts[block]
