"""Prefixes of prompts that were computed before: keys and values, and the states behind their last token.

On this hybrid the keys and values of a prefix are not enough: a linear-attention layer remembers one place only. So a
prefix can be taken up again only where its states were kept, and that is done where prompts really branch (after the
system prompt, after pictures, where an answer begins), not at every block.

A prefix is known by its digest (`prompt_layout`). Blocks of keys and values that two have in common are kept once.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from pocketvlm.engine.prompt_layout import Digest
from pocketvlm.model.cache.base import Cache, State, state_bytes
from pocketvlm.model.cache.block_pool import BLOCK, BlockPool, Holding, blocks_for


@dataclass(eq=False)
class Prefix:
    """A prefix that is kept: its tokens, blocks, and the states behind them."""

    digest: Digest
    length: int
    blocks: list[int]
    state: State


class PrefixCache:
    """Keeps prefixes within `budget` bytes; the one that was not used for longest goes first.

    Args:
        cache: of the sequences that run. It knows how to keep a prefix of one and how to take it up again.
        budget: bytes of all blocks and states together; 0 keeps nothing.

    Attributes:
        holding: how many prefixes have each block.
    """

    def __init__(self, cache: Cache, budget: int) -> None:
        self.cache, self.budget = cache, budget
        self.block_bytes = BlockPool.block_bytes(cache.config, cache.memory)
        self.state_bytes = state_bytes(cache.config, cache.memory)
        self.prefixes: OrderedDict[Digest, Prefix] = OrderedDict()
        self.holding = Holding(cache.blocks)

    @property
    def used_bytes(self) -> int:
        return self._bytes(len(self.holding), len(self.prefixes))

    def _bytes(self, blocks: int, prefixes: int) -> int:
        return blocks * self.block_bytes + prefixes * self.state_bytes

    def find(self, digests: Sequence[Digest]) -> Prefix | None:
        """Return the longest prefix that is kept; `digests` go from the shortest to the longest."""
        for digest in reversed(digests):
            if (prefix := self.prefixes.get(digest)) is not None:
                self.prefixes.move_to_end(digest)
                return prefix
        return None

    def restore(self, prefix: Prefix, slot: int) -> None:
        """Make a slot continue behind a prefix. The slot must have room for it."""
        self.cache.restore_prefix(slot, prefix.blocks, prefix.state, prefix.length)

    def store(self, digest: Digest, slot: int, parent: Prefix | None = None) -> Prefix | None:
        """Keep what a slot holds now and return it; None when the budget is too small for it.

        Args:
            parent: a prefix of this one; whole blocks are shared with it while it is kept.
        """
        if (known := self.prefixes.get(digest)) is not None:
            self.prefixes.move_to_end(digest)
            return known
        shared: list[int] = []
        # Another with its digest is none that shares: the blocks of one that was evicted are somebody else's by now.
        if parent is not None and self.prefixes.get(parent.digest) is parent:
            self.prefixes.move_to_end(parent.digest)
            shared = parent.blocks[: parent.length // BLOCK]
        length = self.cache.lengths[slot]
        if self._bytes(blocks_for(length), 1) > self.budget:
            return None
        blocks = self.cache.save_prefix(slot, self.holding, shared, self._make_room)
        if blocks is None:
            return None
        prefix = Prefix(digest, length, blocks, self.cache.save_state(slot))
        self.prefixes[digest] = prefix
        return prefix

    def _make_room(self, blocks: int) -> bool:
        """Evict others until one more prefix fits, with so many blocks that none holds yet; say whether it does."""
        while self.prefixes and not self._fits(blocks):
            self._evict()
        return self._fits(blocks)

    def _fits(self, blocks: int) -> bool:
        return self._bytes(len(self.holding) + blocks, len(self.prefixes) + 1) <= self.budget

    def clear(self) -> None:
        while self.prefixes:
            self._evict()

    def forget(self) -> None:
        """Hold nothing any more, whatever was held: after a failure, together with `Cache.clear`."""
        self.prefixes.clear()
        self.holding.counts.clear()

    def _evict(self) -> None:
        _, prefix = self.prefixes.popitem(last=False)
        self.holding.release(prefix.blocks)

    def check_integrity(self) -> None:
        """Check that each block is counted as often as prefixes and slots hold it, and that the budget is kept."""
        counts = Counter(block for prefix in self.prefixes.values() for block in prefix.blocks)
        assert counts == self.holding.counts, "blocks of prefixes are not counted right"
        references = {block: count for block, count in enumerate(self.cache.blocks.references) if count}
        assert references == counts + Counter(self.cache.block_references()), "references do not match who holds"
        assert self.used_bytes <= max(self.budget, 0), "over the budget"
