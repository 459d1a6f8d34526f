"""One forward of the decoder over a contiguous cache: what its layers read and write, and where.

Shapes:  B sequences · T new tokens, packed · H query heads · E head dim · C channels
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pocketvlm.kernels.causal_conv1d import step_causal_conv1d
from pocketvlm.kernels.gated_delta_rule import normalise_query_key, step_gated_delta_rule
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.packing import PackedBatch


@dataclass(frozen=True, eq=False)
class ContiguousStep:
    """Is the `LayerCache` of one forward over a contiguous cache."""

    cache: Cache
    batch: PackedBatch

    def write(self, layer: int, k_THE: Tensor, v_THE: Tensor) -> None:
        slots, positions = self.batch.token_slots, self.batch.positions
        self.cache.keys[layer][slots, :, positions] = k_THE
        self.cache.values[layer][slots, :, positions] = v_THE

    def attend(self, layer: int, q_THE: Tensor) -> Tensor:
        return self._decode(layer, q_THE) if self.batch.is_decode else self._continued(layer, q_THE)

    def _decode(self, layer: int, q: Tensor) -> Tensor:
        """Attend with one token a sequence: the query heads of a KV head become its rows, so keys are read once."""
        longest = max(s.start for s in self.batch.segments) + 1
        keys = self.cache.keys[layer][self.batch.slots][:, :, :longest]
        values = self.cache.values[layer][self.batch.slots][:, :, :longest]
        rows = q.view(q.shape[0], keys.shape[1], -1, q.shape[2])
        out = F.scaled_dot_product_attention(rows, keys, values, attn_mask=self.batch.decode_mask)
        return out.reshape(-1, *q.shape[1:])

    def _continued(self, layer: int, q: Tensor) -> Tensor:
        """Attend with chunks of prompts behind a cached part, each against its own slot."""
        outs = []
        for first, s in zip(self.batch.firsts, self.batch.segments, strict=True):
            end = s.start + s.length
            keys, values = (x[layer][s.slot, :, :end].unsqueeze(0) for x in (self.cache.keys, self.cache.values))
            seen = torch.ones(s.length, end, dtype=torch.bool, device=q.device).tril(s.start)
            out = F.scaled_dot_product_attention(
                q[first : first + s.length].transpose(0, 1).unsqueeze(0),
                keys,
                values,
                attn_mask=seen,
                enable_gqa=q.shape[1] != keys.shape[1],
            )
            outs.append(out[0].transpose(0, 1))
        return torch.cat(outs)

    def step_conv(self, layer: int, x_BC: Tensor, weight_CW: Tensor) -> Tensor:
        state = self.cache.conv[layer][self.batch.slots]
        out = step_causal_conv1d(x_BC, weight_CW, state)
        if not isinstance(self.batch.slots, slice):  # a slice is a view and has been updated in place
            self.cache.conv[layer][self.batch.slots] = state
        return out

    def step_delta(self, layer: int, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        q, k = normalise_query_key(q, k)
        if v.shape[1] != q.shape[1]:
            q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], dim=1) for x in (q, k))
        state = self.cache.recurrent[layer][self.batch.slots]
        out = step_gated_delta_rule(q, k, v.float(), g, beta, state)
        if not isinstance(self.batch.slots, slice):
            self.cache.recurrent[layer][self.batch.slots] = state
        return out

    def states(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.cache.conv[layer][self.batch.slots], self.cache.recurrent[layer][self.batch.slots]

    def set_states(self, layer: int, conv: Tensor, recurrent: Tensor) -> None:
        self.cache.conv[layer][self.batch.slots] = conv
        self.cache.recurrent[layer][self.batch.slots] = recurrent
