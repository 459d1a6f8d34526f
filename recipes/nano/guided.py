"""Heads of attention that are told where to look.

A state from which the place of an answer can be told does not yet look there: the attention itself is asked. Training
only, and without weights of its own.

Shapes:  T tokens of all samples · A tokens that are asked · H watched heads · E head dim · K pairs of a token and a
         visual token
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pocketvlm.config import TextConfig
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.text.gated_attention import GatedAttention
from pocketvlm.model.text.rotary import apply_rotary, rotary_cos_sin


class Watched:
    """Queries and keys of some heads of a layer while it is entered as a context.

    Args:
        heads: numbers of query heads.
    """

    def __init__(self, attention: GatedAttention, heads: Sequence[int]) -> None:
        self.attention, self.heads = attention, list(heads)
        self.kv_heads = [head * attention.kv_heads // attention.heads for head in heads]
        self.queries = self.keys = torch.empty(0)

    def __enter__(self) -> Watched:
        def take_queries(_norm: object, _args: object, out: Tensor) -> None:
            self.queries = out[:, self.heads]

        def take_keys(_norm: object, _args: object, out: Tensor) -> None:
            self.keys = out[:, self.kv_heads]

        self.hooks = [
            self.attention.q_norm.register_forward_hook(take_queries),
            self.attention.k_norm.register_forward_hook(take_keys),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def loss(self, config: TextConfig, packed: PackedBatch, samples: Tensor, tokens: Tensor, visual: Tensor) -> Tensor:
        """Minus the logarithm of the attention that each asked token gives to all of its visual tokens together, as a
        mean over tokens and heads; 0 where none is asked.

        Args:
            samples: [T] number of the sample of each token.
            tokens, visual: [K] places in T of the pairs.
        """
        if not len(tokens):
            return self.queries.sum() * 0
        asked, wanted = tokens.unique(return_inverse=True)
        cos, sin = rotary_cos_sin(packed.positions, config.rotary_dim, config.rope_theta)
        queries = apply_rotary(self.queries[asked], cos[asked], sin[asked]).float()
        keys = apply_rotary(self.keys, cos, sin).float()
        scores = torch.einsum("ahe,the->hat", queries, keys) * config.head_dim**-0.5
        places = torch.arange(len(samples), device=samples.device)
        hidden = (samples[asked, None] != samples[None]) | (places[None] > asked[:, None])
        scores = scores.masked_fill(hidden, -torch.inf)
        right = torch.full_like(scores, -torch.inf)
        right[:, wanted, visual] = scores[:, wanted, visual]
        return (scores.logsumexp(2) - right.logsumexp(2)).mean()
