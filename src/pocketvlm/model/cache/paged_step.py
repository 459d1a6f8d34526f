"""One forward of the decoder over a paged cache: what its layers read and write, and where.

Shapes:  B sequences · T new tokens, packed · H query heads · E head dim · M blocks in a row of the table · C channels
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from pocketvlm.kernels.linear_attention_step import slot_causal_conv1d, slot_gated_delta_rule
from pocketvlm.kernels.paged_attention import paged_attention, paged_chunk_attention, write_kv
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.packing import PackedBatch


@dataclass(frozen=True, eq=False)
class PagedStep:
    """Is the `LayerCache` of one forward over a paged cache. In decode batches a negative row is padding.

    Attributes:
        cache: its keys and values are blocks, its states are ordered by row.
        rows_B: int32, the row of each sequence in the states.
        tables_BM: int32, its blocks.
        mapping_T: where new keys and values go.
        lengths_B: int32, in decode batches: tokens, the new one among them.
    """

    cache: Cache
    batch: PackedBatch
    rows_B: Tensor
    tables_BM: Tensor
    mapping_T: Tensor
    lengths_B: Tensor | None = None

    @cached_property
    def index(self) -> Tensor:
        """The rows as int64, as PyTorch's indexing takes them."""
        return self.rows_B.long()

    def write(self, layer: int, k_THE: Tensor, v_THE: Tensor) -> None:
        write_kv(self.cache.keys[layer], self.cache.values[layer], k_THE, v_THE, self.mapping_T)

    def attend(self, layer: int, q_THE: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        if self.lengths_B is not None:
            return paged_attention(q_THE, keys, values, self.tables_BM, self.lengths_B)
        starts = [s.start for s in self.batch.segments]
        return paged_chunk_attention(q_THE, keys, values, self.tables_BM, self.batch.lengths, starts)

    def step_conv(self, layer: int, x_BC: Tensor, weight_CW: Tensor) -> Tensor:
        return slot_causal_conv1d(x_BC, weight_CW, self.rows_B, self.cache.conv[layer])

    def step_delta(self, layer: int, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        return slot_gated_delta_rule(q, k, v, g, beta, self.rows_B, self.cache.recurrent[layer])

    def states(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.cache.conv[layer][self.index], self.cache.recurrent[layer][self.index]

    def set_states(self, layer: int, conv: Tensor, recurrent: Tensor) -> None:
        self.cache.conv[layer][self.index] = conv
        self.cache.recurrent[layer][self.index] = recurrent
