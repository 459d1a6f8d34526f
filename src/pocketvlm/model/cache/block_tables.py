"""Which blocks each sequence has, in order: on the host, where it is decided, and on the device, which reads it.

Shapes:  M blocks in a row of the table · B sequences
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pocketvlm.errors import ConfigError
from pocketvlm.model.cache.block_pool import BLOCK, BlockPool, Holding, blocks_for


class BlockTables:
    """Has a row for each sequence.

    Args:
        pool: whose blocks they are.
        rows: sequences at first; `grow` adds more.
        width: blocks in a row at first; rows grow by doubling.

    Attributes:
        rows: blocks of each sequence, in order.
        holding: how many rows have each block.
        on_device: int32 [rows, M], as `rows` after `sync`.
    """

    def __init__(self, pool: BlockPool, rows: int, width: int) -> None:
        self.pool, self.holding = pool, Holding(pool)
        self.rows: list[list[int]] = [[] for _ in range(rows)]
        self.on_device = torch.zeros(rows, width, dtype=torch.int32, device=pool.memory.device)
        self._synced = [0] * rows  # leading columns of `on_device` that are as in `rows`

    def grow(self, rows: int) -> None:
        """Have so many rows from now on."""
        self.on_device = torch.nn.functional.pad(self.on_device, (0, 0, 0, rows - len(self.on_device)))
        self.rows += [[] for _ in range(rows - len(self.rows))]
        self._synced += [0] * (rows - len(self._synced))

    def clear(self) -> None:
        """Forget who holds what, whatever it was."""
        self.holding.counts.clear()
        self.rows = [[] for _ in range(len(self.on_device))]
        self._synced = [0] * len(self.rows)

    def set_row(self, row: int, blocks: Sequence[int]) -> None:
        old, new = self.rows[row], list(blocks)
        equal = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        self.holding.retain(new)  # before the old ones go: they may be the same
        self.holding.release(old)
        self.rows[row] = new
        self._unsync(row, equal)

    def truncate(self, row: int, tokens: int) -> None:
        """Let go of the blocks behind so many tokens."""
        blocks, kept = self.rows[row], blocks_for(tokens)
        if kept < len(blocks):
            self.holding.release(blocks[kept:])
            del blocks[kept:]
            self._unsync(row, kept)

    def extend(self, row: int, start: int, end: int) -> list[tuple[int, int]]:
        """Give a sequence of `start` tokens blocks of its own for those up to `end`.

        Returns:
            blocks whose contents must be copied first, as (source, target): a last block that others hold too.

        Raises:
            ConfigError: all blocks are in use.
        """
        self.truncate(row, start)
        blocks, copies = self.rows[row], list[tuple[int, int]]()
        assert len(blocks) == blocks_for(start), f"row {row} holds fewer than {start} tokens"
        if start % BLOCK and self.pool.references[blocks[-1]] > 1:
            (own,) = self._allocate(1)
            copies.append((blocks[-1], own))
            self.holding.release(blocks[-1:])
            blocks[-1] = own
            self._unsync(row, len(blocks) - 1)
        blocks += self._allocate(blocks_for(end) - len(blocks))
        return copies

    def _allocate(self, count: int) -> list[int]:
        blocks = self.holding.allocate(count)
        if blocks is None:
            raise ConfigError(
                f"the cache has {self.pool.limit} blocks of {BLOCK} tokens, and all are in use",
                hint="Run fewer sequences at a time, or give it more memory.",
            )
        return blocks

    def _unsync(self, row: int, columns: int) -> None:
        self._synced[row] = min(self._synced[row], columns)

    def sync(self, rows: Sequence[int]) -> None:
        """Bring these rows up to date on the device: what changed, in one copy."""
        longest = max(len(self.rows[row]) for row in rows)
        if longest > (width := self.on_device.shape[1]):
            more = max(longest, 2 * width) - width
            self.on_device = torch.nn.functional.pad(self.on_device, (0, more))
        changes: list[tuple[int, int, int]] = []
        for row in rows:
            blocks = self.rows[row]
            changes += [(row, column, blocks[column]) for column in range(self._synced[row], len(blocks))]
            self._synced[row] = len(blocks)
        if changes:
            index, columns, blocks_N = torch.tensor(changes).T.to(self.on_device.device, non_blocking=True)
            self.on_device[index, columns] = blocks_N.int()

    def held_with(self, lengths: Mapping[int, tuple[int, int]]) -> int:
        """Return how many blocks rows will have once they have grown, copies before writing counted.

        Args:
            lengths: by row, the tokens that it holds and those that it will.
        """
        held, writers = len(self.holding), Counter[int]()
        for row, (length, grown) in lengths.items():
            blocks = self.rows[row]
            held += max(0, blocks_for(grown) - len(blocks))
            if grown > length and length % BLOCK and self.holding.counts[blocks[-1]] > 1:
                writers[blocks[-1]] += 1
        # Of those that share a block and all write to it, the last finds it its own.
        return held + sum(count - (count == self.holding.counts[block]) for block, count in writers.items())

    def mapping(self, row: int, start: int, length: int) -> Tensor:
        """Return [length], where each new token of a sequence is written: block * BLOCK + offset in the block."""
        positions = torch.arange(start, start + length)
        first = start // BLOCK
        blocks = torch.tensor(self.rows[row][first:])
        return blocks[positions // BLOCK - first] * BLOCK + positions % BLOCK

    def check_integrity(self, lengths: Sequence[int]) -> None:
        """Check that rows are as long as what they hold (`lengths`, by row), and that the device knows them."""
        counts = Counter(block for blocks in self.rows for block in blocks)
        assert counts == self.holding.counts, "blocks of rows are not counted right"
        on_device = self.on_device.tolist()
        for blocks, synced, known, length in zip(self.rows, self._synced, on_device, lengths, strict=True):
            assert len(blocks) == blocks_for(length), f"{length} tokens in {len(blocks)} blocks"
            assert blocks[:synced] == known[:synced], "the device is misled"
