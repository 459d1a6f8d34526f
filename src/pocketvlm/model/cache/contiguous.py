"""What a sequence leaves behind between forwards: keys and values, conv inputs, recurrent states.

Shapes:  slots (one a sequence) · Hk KV heads · L capacity in tokens · D head_dim
         keys/values [slots, Hk, L, D] a full-attention layer
         conv [slots, taps - 1, channels], recurrent [slots, Hv, K, V] (fp32) a linear-attention layer
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pocketvlm.config import TextConfig
from pocketvlm.errors import ConfigError
from pocketvlm.kernels.causal_conv1d import step_causal_conv1d
from pocketvlm.kernels.gated_delta_rule import normalise_query_key, step_gated_delta_rule
from pocketvlm.model.cache.base import LayerCache, State
from pocketvlm.model.packing import PackedBatch


class Cache:
    """State of up to `slots` sequences. Keys and values grow by doubling; the recurrent part never grows.

    Args:
        config: shapes of the decoder.
        slots: sequences held at the same time.
        capacity: tokens a slot can hold before the first growth.
    """

    def __init__(
        self,
        config: TextConfig,
        slots: int = 1,
        capacity: int = 512,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.max_capacity, self.dtype = config.max_position_embeddings, dtype
        capacity = min(capacity, self.max_capacity)
        kv_shape = (slots, config.num_key_value_heads, capacity, config.head_dim)
        conv_shape = (slots, config.linear_conv_kernel_dim - 1, config.linear_conv_dim)
        state_shape = (
            slots,
            config.linear_num_value_heads,
            config.linear_key_head_dim,
            config.linear_value_head_dim,
        )
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.conv: dict[int, Tensor] = {}
        self.recurrent: dict[int, Tensor] = {}
        for layer, kind in enumerate(config.layer_types):
            if kind == "full_attention":
                self.keys[layer] = torch.zeros(kv_shape, dtype=dtype, device=device)
                self.values[layer] = torch.zeros(kv_shape, dtype=dtype, device=device)
            else:
                self.conv[layer] = torch.zeros(conv_shape, dtype=dtype, device=device)
                self.recurrent[layer] = torch.zeros(state_shape, dtype=torch.float32, device=device)
        self.capacity = capacity
        self.slots = slots
        self.lengths = [0] * slots

    @property
    def device(self) -> torch.device:
        return next(iter((*self.keys.values(), *self.conv.values()))).device

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` tokens in every slot; `ConfigError` beyond the model's context."""
        if tokens <= self.capacity:
            return
        if tokens > self.max_capacity:
            raise ConfigError(
                f"a sequence of {tokens} tokens is over the model's context of {self.max_capacity}",
                hint="Shorten the prompt or ask for fewer tokens.",
            )
        grown = min(max(tokens, 2 * self.capacity), self.max_capacity)
        for store in (self.keys, self.values):
            for layer, old in store.items():
                new = old.new_zeros(*old.shape[:2], grown, old.shape[3])
                new[:, :, : self.capacity] = old
                store[layer] = new
        self.capacity = grown

    def resize(self, slots: int, capacity: int, kept: int) -> None:
        """Change how many sequences of how many tokens there is room for; the first `kept` slots stay."""
        assert kept <= slots, (kept, slots)
        assert max(self.lengths[:kept], default=0) <= capacity, (self.lengths, capacity)
        for store in (self.keys, self.values):
            for layer, old in store.items():
                new = old.new_zeros(slots, old.shape[1], capacity, old.shape[3])
                both = min(capacity, self.capacity)
                new[:kept, :, :both] = old[:kept, :, :both]
                store[layer] = new
        if slots != self.slots:
            for store in (self.conv, self.recurrent):
                for layer, old in store.items():
                    new = old.new_zeros(slots, *old.shape[1:])
                    new[:kept] = old[:kept]
                    store[layer] = new
        self.lengths = (self.lengths[:kept] + [0] * slots)[:slots]
        self.slots, self.capacity = slots, capacity

    def erase(self, slot: int) -> None:
        """Forget the sequence in `slot`, keys and values too: a NaN behind a mask is a NaN all the same."""
        self.reset(slot)
        for store in (self.keys, self.values):
            for tensor in store.values():
                tensor[slot].zero_()

    def release_slot(self, slot: int) -> None:
        """Nobody needs what is in `slot` any more."""
        self.lengths[slot] = 0

    def move_slot(self, source: int, target: int) -> None:
        """The sequence in `source` goes where nobody needs what is there; what `source` holds then is undefined."""
        self.copy_slot(source, target)

    def swap_slots(self, one: int, other: int) -> None:
        """Exchange two sequences."""
        longest = max(self.lengths[one], self.lengths[other])
        for store in (self.keys, self.values):
            for tensor in store.values():
                kept = tensor[one, :, :longest].clone()
                tensor[one, :, :longest] = tensor[other, :, :longest]
                tensor[other, :, :longest] = kept
        for store in (self.conv, self.recurrent):
            for tensor in store.values():
                tensor[[one, other]] = tensor[[other, one]]
        self.lengths[one], self.lengths[other] = self.lengths[other], self.lengths[one]

    def reset(self, slot: int) -> None:
        """Forget the sequence in `slot`. Old keys are unreachable (length 0); states must read as zero."""
        self.lengths[slot] = 0
        for store in (self.conv, self.recurrent):
            for tensor in store.values():
                tensor[slot].zero_()

    def copy_slot(self, source: int, target: int, start: int = 0) -> None:
        """Make `target` continue from where `source` is (several answers to one prompt share its prefill).

        Args:
            start: tokens at the beginning that `target` holds already, the same ones: beams share their prompt.
        """
        length = self.lengths[source]
        for store in (self.keys, self.values):
            for tensor in store.values():
                tensor[target, :, start:length] = tensor[source, :, start:length]
        for store in (self.conv, self.recurrent):
            for tensor in store.values():
                tensor[target] = tensor[source]
        self.lengths[target] = length

    def save_state(self, slot: int) -> State:
        """A copy of what only the newest place of the sequence is known by. Keys and values need none: those of the
        first tokens stay where they are."""
        return [tensor[slot].clone() for store in (self.conv, self.recurrent) for tensor in store.values()]

    def restore_state(self, slot: int, state: State, length: int) -> None:
        """Go back to where the sequence had `length` tokens and `state` was saved."""
        own = [tensor[slot] for store in (self.conv, self.recurrent) for tensor in store.values()]
        for tensor, saved in zip(own, state, strict=True):
            tensor.copy_(saved)
        self.lengths[slot] = length

    def at(self, batch: PackedBatch) -> LayerCache:
        """What the layers work on in the forward of a batch."""
        return ContiguousStep(self, batch)

    def advance(self, batch: PackedBatch) -> None:
        """The forward of a batch is over."""
        for s in batch.segments:
            self.lengths[s.slot] = s.start + s.length


@dataclass(frozen=True, eq=False)
class ContiguousStep:
    """A `LayerCache`: one forward over a contiguous cache."""

    cache: Cache
    batch: PackedBatch

    def write(self, layer: int, k_THE: Tensor, v_THE: Tensor) -> None:
        slots, positions = self.batch.token_slots, self.batch.positions
        self.cache.keys[layer][slots, :, positions] = k_THE
        self.cache.values[layer][slots, :, positions] = v_THE

    def attend(self, layer: int, q_THE: Tensor) -> Tensor:
        return self._decode(layer, q_THE) if self.batch.is_decode else self._continued(layer, q_THE)

    def _decode(self, layer: int, q: Tensor) -> Tensor:
        """One token a sequence: the query heads of a KV head become its rows, so keys are read once, not expanded."""
        longest = max(s.start for s in self.batch.segments) + 1
        keys = self.cache.keys[layer][self.batch.slots][:, :, :longest]
        values = self.cache.values[layer][self.batch.slots][:, :, :longest]
        rows = q.view(q.shape[0], keys.shape[1], -1, q.shape[2])
        out = F.scaled_dot_product_attention(rows, keys, values, attn_mask=self.batch.decode_mask)
        return out.reshape(-1, *q.shape[1:])

    def _continued(self, layer: int, q: Tensor) -> Tensor:
        """Chunks of prompts behind a cached part, each against its own slot."""
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
