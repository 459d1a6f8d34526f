"""Blocks of keys and values with reference counts: where beginnings of prompts are kept that several requests share.

Shapes:  N blocks of BLOCK tokens · Hk KV heads · E head dim · n tokens
         keys, values [N, Hk, BLOCK, E] of each full-attention layer
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pocketvlm.config import TextConfig
from pocketvlm.model.cache import Cache

BLOCK = 32
FIRST_BLOCKS = 16  # made at once; then as many again, up to the limit


class BlockPool:
    """Up to `limit` blocks; memory is taken as they are needed.

    Args:
        config: shapes of the decoder.
        limit: most blocks.
    """

    def __init__(
        self, config: TextConfig, limit: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.limit, self.dtype, self.device = config, limit, dtype, torch.device(device)
        self.layers = [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
        self.references: list[int] = []
        self.free: list[int] = []
        self.stores: dict[tuple[str, int], Tensor] = {}

    @property
    def used(self) -> int:
        return len(self.references) - len(self.free)

    @staticmethod
    def block_bytes(config: TextConfig, dtype: torch.dtype) -> int:
        """Of one block in all layers."""
        layers = sum(kind == "full_attention" for kind in config.layer_types)
        return 2 * layers * config.num_key_value_heads * BLOCK * config.head_dim * dtype.itemsize

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with one reference each; None where there are not as many."""
        if count > self.limit - self.used:
            return None
        while len(self.free) < count:
            self._grow()
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

    def write(self, blocks: Sequence[int], cache: Cache, row: int, start: int, end: int) -> None:
        """Keep tokens `start` (a multiple of BLOCK) to `end` of a row; the last block may stay part empty."""
        if start == end:
            return
        index = torch.tensor(blocks, device=self.device)
        for (kind, layer), store in self.stores.items():
            source = (cache.keys if kind == "key" else cache.values)[layer][row, :, start:end]
            missing = len(blocks) * BLOCK - (end - start)
            if missing:
                source = torch.nn.functional.pad(source, (0, 0, 0, missing))
            store[index] = source.unflatten(1, (-1, BLOCK)).transpose(0, 1)

    def read(self, blocks: Sequence[int], cache: Cache, row: int, length: int) -> None:
        """The first `length` tokens of these blocks, into a row."""
        if not length:
            return
        index = torch.tensor(blocks, device=self.device)
        for (kind, layer), store in self.stores.items():
            found = store[index].transpose(0, 1).flatten(1, 2)[:, :length]
            (cache.keys if kind == "key" else cache.values)[layer][row, :, :length] = found

    def check_integrity(self) -> None:
        """Every block is free once, or referenced."""
        assert len(set(self.free)) == len(self.free), "a block is free twice"
        assert all(self.references[block] == 0 for block in self.free), "a free block is referenced"
        assert sum(count > 0 for count in self.references) == self.used, "a block is neither free nor used"

    def _grow(self) -> None:
        old = len(self.references)
        new = min(max(2 * old, FIRST_BLOCKS), self.limit)
        shape = (new, self.config.num_key_value_heads, BLOCK, self.config.head_dim)
        for layer in self.layers:
            for kind in ("key", "value"):
                store = torch.empty(shape, dtype=self.dtype, device=self.device)
                if old:
                    store[:old] = self.stores[kind, layer]
                self.stores[kind, layer] = store
        self.free += range(new - 1, old - 1, -1)
        self.references += [0] * (new - old)
