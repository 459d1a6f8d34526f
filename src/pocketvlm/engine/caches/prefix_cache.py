"""Beginnings of prompts that were computed before: keys and values, and the states behind their last token.

On this hybrid the keys and values of a beginning are not enough: a linear-attention layer remembers one place only. So
a beginning can be taken up again only where its states were kept, and that is done where prompts really branch (after
the system prompt, after pictures, where an answer begins), not at every block.

A beginning is known by its digest (`prefix_digests`). Blocks of keys and values that two have in common are kept once.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from pocketvlm.config import TextConfig
from pocketvlm.engine.config import Sizes
from pocketvlm.model.cache.base import State, state_bytes
from pocketvlm.model.cache.block_pool import BLOCK, BlockPool, Holding, blocks_for
from pocketvlm.model.cache.contiguous import Cache
from pocketvlm.model.cache.paged import PagedCache

Digest = bytes


@dataclass(eq=False)
class Prefix:
    """A beginning that is kept: its tokens, blocks, and the states behind them."""

    digest: Digest
    length: int
    blocks: list[int]
    state: State


class PrefixCache:
    """Beginnings within `budget` bytes; the one that was not used for longest goes first.

    In a paged cache a beginning is a further holder of its blocks; from a contiguous one it is copied into blocks.

    Args:
        config: shapes of the decoder.
        sizes: `prefix_bytes` of all blocks and states together; 0 keeps nothing.
        cache: of the sequences that run.

    Attributes:
        holding: how many beginnings have each block.
    """

    def __init__(self, config: TextConfig, sizes: Sizes, cache: Cache) -> None:
        self.block_bytes = BlockPool.block_bytes(config, sizes.dtype)
        self.state_bytes = state_bytes(config, sizes.dtype)
        self.budget = sizes.prefix_bytes
        self.is_shared = isinstance(cache, PagedCache)
        if isinstance(cache, PagedCache):
            self.blocks = cache.blocks
        else:
            limit = self.budget // self.block_bytes
            self.blocks = BlockPool(config, limit, dtype=sizes.dtype, device=cache.device)
        self.prefixes: OrderedDict[Digest, Prefix] = OrderedDict()
        self.holding = Holding(self.blocks)

    @property
    def used_bytes(self) -> int:
        return self._bytes(len(self.holding), len(self.prefixes))

    def _bytes(self, blocks: int, prefixes: int) -> int:
        return blocks * self.block_bytes + prefixes * self.state_bytes

    def find(self, digests: Sequence[Digest]) -> Prefix | None:
        """The longest beginning that is kept; `digests` from the shortest to the longest."""
        for digest in reversed(digests):
            if (prefix := self.prefixes.get(digest)) is not None:
                self.prefixes.move_to_end(digest)
                return prefix
        return None

    def restore(self, prefix: Prefix, cache: Cache, row: int) -> None:
        """Make a row continue behind a beginning. The row must have room for it."""
        if isinstance(cache, PagedCache):
            cache.adopt(row, prefix.blocks, prefix.state, prefix.length)
        else:
            self.blocks.read(prefix.blocks, cache, row, prefix.length)
            cache.restore_state(row, prefix.state, prefix.length)

    def store(self, digest: Digest, cache: Cache, row: int, parent: Prefix | None = None) -> Prefix | None:
        """Keep what a row holds now; None when the budget is too small for it.

        Args:
            parent: a beginning of this one that is kept; whole blocks are shared with it.
        """
        if (known := self.prefixes.get(digest)) is not None:
            self.prefixes.move_to_end(digest)
            return known
        if parent is not None and parent.digest in self.prefixes:
            self.prefixes.move_to_end(parent.digest)
        length = cache.lengths[row]
        if self._bytes(blocks_for(length), 1) > self.budget:
            return None
        blocks = self._share(cache, row) if isinstance(cache, PagedCache) else self._copy(cache, row, parent)
        if blocks is None:
            return None
        prefix = Prefix(digest, length, blocks, cache.save_state(row))
        self.prefixes[digest] = prefix
        return prefix

    def _share(self, cache: PagedCache, row: int) -> list[int]:
        """The blocks of a row, held once more. Its next token goes to a copy of the last one, if that is part empty."""
        blocks = list(cache.tables[row])
        while self._bytes(len(self.holding.counts.keys() | set(blocks)), len(self.prefixes) + 1) > self.budget:
            self._evict()
        self.holding.retain(blocks)
        return blocks

    def _copy(self, cache: Cache, row: int, parent: Prefix | None) -> list[int] | None:
        """Blocks with what a row holds; whole ones of the parent, and new ones."""
        length = cache.lengths[row]
        shared: list[int] = []
        if parent is not None and parent.digest in self.prefixes:
            shared = parent.blocks[: parent.length // BLOCK]
        count = blocks_for(length) - len(shared)
        self.holding.retain(shared)  # before room is made: the parent may go
        while self.prefixes and self._bytes(len(self.holding) + count, len(self.prefixes) + 1) > self.budget:
            self._evict()
        fits = self._bytes(len(self.holding) + count, len(self.prefixes) + 1) <= self.budget
        fresh = self.holding.allocate(count) if fits else None
        if fresh is None:
            self.holding.release(shared)
            return None
        self.blocks.write(fresh, cache, row, len(shared) * BLOCK, length)
        return [*shared, *fresh]

    def clear(self) -> None:
        while self.prefixes:
            self._evict()

    def forget(self) -> None:
        """After a failure: whatever is held, nothing is."""
        self.prefixes.clear()
        self.holding.counts.clear()
        if not self.is_shared:  # else they are the cache's, which does so itself
            self.blocks.reset()

    def _evict(self) -> None:
        _, prefix = self.prefixes.popitem(last=False)
        self.holding.release(prefix.blocks)

    def check_integrity(self, cache: Cache) -> None:
        """Each block is counted as often as it is held, by beginnings and the rows of `cache`; the budget is kept."""
        counts = Counter(block for prefix in self.prefixes.values() for block in prefix.blocks)
        assert counts == self.holding.counts, "beginnings are not counted right"
        self.blocks.check_integrity()
        rows = cache.holding.counts if isinstance(cache, PagedCache) else Counter[int]()
        references = {block: count for block, count in enumerate(self.blocks.references) if count}
        assert references == counts + rows, "references do not match who holds"
        assert self.used_bytes <= max(self.budget, 0), "over the budget"
