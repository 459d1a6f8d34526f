"""What a sequence leaves behind between forwards: keys and values, conv inputs, recurrent states.

Shapes:  slots (one a sequence) · Hk KV heads · L capacity in tokens · D head_dim
         keys/values [slots, Hk, L, D] a full-attention layer
         conv [slots, taps - 1, channels], recurrent [slots, Hv, K, V] (fp32) a linear-attention layer
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pocketvlm.config import TextConfig

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


class LayerCache(Protocol):
    """What a layer asks of a cache during the forward of one batch, whichever way the cache is laid out."""

    def write(self, layer: int, k_THE: Tensor, v_THE: Tensor) -> None:
        """New keys and values behind those of each segment's slot."""
        ...

    def attend(self, layer: int, q_THE: Tensor) -> Tensor:
        """New tokens against all of their sequence up to themselves, which must be written; [T, heads, head dim]."""
        ...

    def step_conv(self, layer: int, x_BC: Tensor, weight_CW: Tensor) -> Tensor:
        """One token of each sequence through the convolution and SiLU; its states move on."""
        ...

    def step_delta(self, layer: int, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        """One token of each sequence through the delta rule, from q and k as the convolution left them; [B, H, V]."""
        ...

    def states(self, layer: int) -> tuple[Tensor, Tensor]:
        """Conv inputs and recurrent states that the segments continue from."""
        ...

    def set_states(self, layer: int, conv: Tensor, recurrent: Tensor) -> None:
        """What the segments leave behind."""
        ...
