"""Beginnings of prompts that were computed before: keys and values, and the states behind their last token.

On this hybrid the keys and values of a beginning are not enough: a linear-attention layer remembers one place only. So
a beginning can be taken up again only where its states were kept, and that is done where prompts really branch (after
the system prompt, after pictures, where an answer begins), not at every block.

A beginning is known by a hash of everything that decides it: its tokens, the content of its pictures, and a salt for
what is not in the prompt. Blocks of keys and values that two beginnings have in common are kept once.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pocketvlm.config import TextConfig
from pocketvlm.engine.block_pool import BLOCK, BlockPool
from pocketvlm.engine.request import Request
from pocketvlm.model.cache import Cache, State, state_bytes

Digest = bytes
_PICTURE = b"\xff" * 8  # no token has this id, so a picture's key cannot be taken for tokens


@dataclass(eq=False)
class Prefix:
    """A beginning that is kept: its tokens, blocks, and the states behind them."""

    digest: Digest
    length: int
    blocks: list[int]
    state: State


def prefix_digests(request: Request, points: Sequence[int]) -> list[Digest]:
    """A hash of the first n tokens, for each n of `points` (rising): of the tokens, and of each picture that begins
    among them. A point inside a picture's tokens covers all of it."""
    digest = hashlib.blake2b(len(request.salt).to_bytes(8, "little") + request.salt, digest_size=32)
    ids = request.input_ids
    starts = view_starts(request)
    found, done, view = [], 0, 0
    for point in points:
        while done < point:
            ends = starts[view] if view < len(starts) and starts[view] < point else point
            digest.update(ids[done:ends].numpy().tobytes())
            done = ends
            if view < len(starts) and starts[view] == done and done < point:
                digest.update(_PICTURE + request.view_keys[view])
                view += 1
                # Its own tokens follow with the rest: up to the next picture, or to the point.
                ends = min(starts[view] if view < len(starts) else point, point)
                digest.update(ids[done:ends].numpy().tobytes())
                done = ends
        found.append(digest.copy().digest())
    return found


def view_starts(request: Request) -> list[int]:
    """Where each view's run of placeholders begins."""
    if not request.views:
        return []
    places = torch.isin(request.input_ids, torch.tensor(request.placeholder_ids)).nonzero()[:, 0].tolist()
    starts, at = [], 0
    for view in request.views:
        starts.append(places[at])
        at += view.visual_tokens
    return starts


class PrefixCache:
    """Beginnings within `budget` bytes; the one that was not used for longest goes first.

    Args:
        config: shapes of the decoder.
        budget: bytes of all blocks and states together; 0 keeps nothing.
    """

    def __init__(
        self, config: TextConfig, budget: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self.block_bytes = BlockPool.block_bytes(config, dtype)
        self.state_bytes = state_bytes(config, dtype)
        self.budget = budget
        self.blocks = BlockPool(config, budget // self.block_bytes, dtype=dtype, device=device)
        self.prefixes: OrderedDict[Digest, Prefix] = OrderedDict()

    @property
    def used_bytes(self) -> int:
        return self.blocks.used * self.block_bytes + len(self.prefixes) * self.state_bytes

    def find(self, digests: Sequence[Digest]) -> Prefix | None:
        """The longest beginning that is kept; `digests` from the shortest to the longest."""
        for digest in reversed(digests):
            if (prefix := self.prefixes.get(digest)) is not None:
                self.prefixes.move_to_end(digest)
                return prefix
        return None

    def restore(self, prefix: Prefix, cache: Cache, row: int) -> None:
        """Make a row continue behind a beginning. The row must have room for it."""
        self.blocks.read(prefix.blocks, cache, row, prefix.length)
        cache.restore_state(row, prefix.state, prefix.length)

    def store(self, digest: Digest, cache: Cache, row: int, parent: Prefix | None = None) -> Prefix | None:
        """Keep what a row holds now; None when the budget is too small for it.

        Args:
            parent: a beginning of this one that is kept; whole blocks are shared with it.
        """
        length = cache.lengths[row]
        if (known := self.prefixes.get(digest)) is not None:
            self.prefixes.move_to_end(digest)
            return known
        shared: list[int] = []
        if parent is not None and parent.digest in self.prefixes:
            self.prefixes.move_to_end(parent.digest)
            shared = parent.blocks[: parent.length // BLOCK]
        count = -(-length // BLOCK) - len(shared)
        if (len(shared) + count) * self.block_bytes + self.state_bytes > self.budget:
            return None
        self.blocks.retain(shared)  # before room is made: the parent may go
        while self.prefixes and self.used_bytes + count * self.block_bytes + self.state_bytes > self.budget:
            self._evict()
        fresh = self.blocks.allocate(count)
        if fresh is None or self.used_bytes + self.state_bytes > self.budget:
            self.blocks.release([*shared, *(fresh or [])])
            return None
        self.blocks.write(fresh, cache, row, len(shared) * BLOCK, length)
        prefix = Prefix(digest, length, [*shared, *fresh], cache.save_state(row))
        self.prefixes[digest] = prefix
        return prefix

    def clear(self) -> None:
        while self.prefixes:
            self._evict()

    def _evict(self) -> None:
        _, prefix = self.prefixes.popitem(last=False)
        self.blocks.release(prefix.blocks)

    def check_integrity(self) -> None:
        """Each block is referenced by as many beginnings as hold it, and the budget is kept."""
        self.blocks.check_integrity()
        counts = [0] * len(self.blocks.references)
        for prefix in self.prefixes.values():
            for block in prefix.blocks:
                counts[block] += 1
        assert counts == self.blocks.references, "references do not match the beginnings that are kept"
        assert self.used_bytes <= max(self.budget, 0), "over the budget"
