"""What a sequence leaves behind between forwards: keys and values, conv inputs, recurrent states.

Shapes:  slots (one a sequence) · Hk KV heads · L capacity in tokens · D head_dim
         keys/values [slots, Hk, L, D] a full-attention layer
         conv [slots, taps - 1, channels], recurrent [slots, Hv, K, V] (fp32) a linear-attention layer
"""

from __future__ import annotations

import torch
from torch import Tensor

from pocketvlm.config import TextConfig
from pocketvlm.errors import ConfigError

State = list[Tensor]  # of one sequence: conv inputs and recurrent states of all linear-attention layers


def token_bytes(config: TextConfig, dtype: torch.dtype) -> int:
    """Of the keys and values that one token leaves behind."""
    layers = sum(kind == "full_attention" for kind in config.layer_types)
    return 2 * layers * config.num_key_value_heads * config.head_dim * dtype.itemsize


def state_bytes(config: TextConfig, dtype: torch.dtype) -> int:
    """Of one sequence's conv inputs and recurrent states."""
    layers = sum(kind != "full_attention" for kind in config.layer_types)
    conv = (config.linear_conv_kernel_dim - 1) * config.linear_conv_dim * dtype.itemsize
    recurrent = config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim * 4
    return layers * (conv + recurrent)


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
        self.max_capacity = config.max_position_embeddings
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
