"""Full attention of the decoder: grouped queries, normalised queries and keys, partial rotary, sigmoid output gate.

Shapes:  T tokens, packed · D hidden · H query heads · Hk KV heads · E head_dim · B sequences · L tokens
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pocketvlm.config import TextConfig
from pocketvlm.kernels.attention import attend
from pocketvlm.model.cache.base import LayerCache
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.text.norm import ZeroCentredRMSNorm
from pocketvlm.model.text.rotary import apply_rotary


class GatedAttention(nn.Module):
    """`q_proj` gives query and gate side by side for each head: [T, H, 2E]."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.q_proj = nn.Linear(config.hidden_size, 2 * self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        self.q_norm = ZeroCentredRMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = ZeroCentredRMSNorm(self.head_dim, config.rms_norm_eps)

    def project(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries with gates [T, 2HE], keys and values [T, HkE]."""
        return self.q_proj(x_TD), self.k_proj(x_TD), self.v_proj(x_TD)

    def output(self, x_TH: Tensor, residual_TD: Tensor) -> Tensor:
        """Gated heads [T, HE] to residual + [T, D]."""
        return self.o_proj(x_TH) + residual_TD

    def forward(
        self,
        x_TD: Tensor,
        rotary: tuple[Tensor, Tensor],
        batch: PackedBatch,
        cache: LayerCache | None,
        residual_TD: Tensor,
    ) -> Tensor:
        """[T, D] to residual + [T, D]; with a cache, new keys and values go behind those of each segment's slot."""
        q, k, v = self.project(x_TD)
        k, v = (x.unflatten(-1, (self.kv_heads, self.head_dim)) for x in (k, v))
        q, gate = q.unflatten(-1, (self.heads, 2 * self.head_dim)).chunk(2, dim=-1)
        q, k = apply_rotary(self.q_norm(q), *rotary), apply_rotary(self.k_norm(k), *rotary)
        if cache is not None:
            cache.write(self.layer, k, v)
        if cache is not None and (batch.is_decode or not batch.is_fresh):
            out = cache.attend(self.layer, q)
        else:
            assert batch.is_fresh, "segments that continue a sequence need its cache"
            out = self._fresh(q, k, v, batch)
        return self.output((out * torch.sigmoid(gate)).flatten(1), residual_TD)

    def _fresh(self, q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch) -> Tensor:
        """Whole prompts: those of like lengths laid out as [B, longest]. Causality keeps the padding out."""
        if len(batch.segments) == 1:
            return self._causal(*(x.unsqueeze(0) for x in (q, k, v)))
        groups, back = batch.padded_groups
        outs = [
            self._causal(*(x.index_select(0, rows).unflatten(0, (count, -1)) for x in (q, k, v)))
            for count, rows in groups
        ]
        return torch.cat(outs).index_select(0, back)

    def _causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, L, heads, head dim] each to [B * L, heads, head dim]."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return attend(q, k, v, is_causal=True).transpose(1, 2).flatten(0, 1)
