"""Linear attention of the decoder: gated delta net (Yang et al., arXiv 2412.06464) with a causal convolution in front.

Shapes:  T tokens, packed · D hidden · C conv channels (queries, keys, values side by side) · B sequences
         Hk key heads of K · Hv value heads of V
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketvlm.config import TextConfig
from pocketvlm.kernels.causal_conv1d import packed_causal_conv1d
from pocketvlm.kernels.prompt_delta_rule import PromptPlan, prompt_gated_delta_rule
from pocketvlm.model.cache.base import LayerCache
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.text.norm import GatedRMSNorm


class GatedDeltaNet(nn.Module):
    """Chunked for prompts, one in-place step for single tokens; the state is fp32 whatever the weights are."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.key_heads, self.key_dim = config.linear_num_key_heads, config.linear_key_head_dim
        self.value_heads, self.value_dim = config.linear_num_value_heads, config.linear_value_head_dim
        self.channels, self.taps = config.linear_conv_dim, config.linear_conv_kernel_dim
        self.in_proj_qkv = nn.Linear(config.hidden_size, self.channels, bias=False)
        self.in_proj_z = nn.Linear(config.hidden_size, config.linear_value_dim, bias=False)
        self.in_proj_b = nn.Linear(config.hidden_size, self.value_heads, bias=False)
        self.in_proj_a = nn.Linear(config.hidden_size, self.value_heads, bias=False)
        self.conv1d = nn.Conv1d(self.channels, self.channels, self.taps, groups=self.channels, bias=False)
        # Kept in fp32 always: exp(A_log) in half precision can round to zero or infinity.
        self.A_log = nn.Parameter(torch.empty(self.value_heads))
        if not self.A_log.is_meta:  # see `Embedding`
            nn.init.uniform_(self.A_log, 0.01, 16).data.log_()
        self.dt_bias = nn.Parameter(torch.ones(self.value_heads))
        self.norm = GatedRMSNorm(self.value_dim, config.rms_norm_eps)
        self.out_proj = nn.Linear(config.linear_value_dim, config.hidden_size, bias=False)

    def project(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mixed queries, keys and values [T, C], z [T, HvV], b [T, Hv] and a [T, Hv]."""
        return self.in_proj_qkv(x_TD), self.in_proj_z(x_TD), self.in_proj_b(x_TD), self.in_proj_a(x_TD)

    def output(self, x_TH: Tensor, residual_TD: Tensor) -> Tensor:
        """Normalised heads [T, HvV] to residual + [T, D]."""
        return self.out_proj(x_TH) + residual_TD

    def forward(self, x_TD: Tensor, batch: PackedBatch, cache: LayerCache | None, residual_TD: Tensor) -> Tensor:
        """[T, D] to residual + [T, D]; with a cache, continues from and updates the states of each segment's slot."""
        mixed_TC, z, b, a = self.project(x_TD)
        beta_TH = b.float().sigmoid()
        g_TH = -self.A_log.float().exp() * F.softplus(a.float() + self.dt_bias.float())
        if cache is not None and batch.is_decode:
            out_THV = self._step(mixed_TC, g_TH, beta_TH, cache)
        else:
            out_THV = self._prompt(mixed_TC, g_TH, beta_TH, batch, cache)
        z_THV = z.unflatten(-1, (self.value_heads, self.value_dim))
        return self.output(self.norm(out_THV, z_THV).flatten(1), residual_TD)

    def _heads(self, mixed_TC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Convolved channels to q, k [T, Hk, K] and v [T, Hv, V]."""
        width = self.key_heads * self.key_dim
        q, k, v = mixed_TC.split([width, width, self.value_heads * self.value_dim], dim=-1)
        q, k = (x.unflatten(-1, (self.key_heads, self.key_dim)) for x in (q, k))
        return q, k, v.unflatten(-1, (self.value_heads, self.value_dim))

    def _prompt(
        self, mixed_TC: Tensor, g: Tensor, beta: Tensor, batch: PackedBatch, cache: LayerCache | None
    ) -> Tensor:
        if cache is None:
            count = len(batch.segments)
            conv = mixed_TC.new_zeros(count, self.taps - 1, self.channels)
            state = g.new_zeros(count, self.value_heads, self.key_dim, self.value_dim)
            plan = PromptPlan(batch.chunks, None, None)  # training too, whose gradients are our own routine's
        else:
            conv, state = cache.states(self.layer)
            plan = batch.prompts(mixed_TC.dtype)
        mixed_TC, conv = packed_causal_conv1d(mixed_TC, self.conv1d.weight.squeeze(1), batch.conv(self.taps), conv)
        out, state = prompt_gated_delta_rule(*self._heads(mixed_TC), g, beta, plan, state)
        if cache is not None:
            cache.set_states(self.layer, conv, state)
        return out

    def _step(self, mixed_BC: Tensor, g: Tensor, beta: Tensor, cache: LayerCache) -> Tensor:
        mixed_BC = cache.step_conv(self.layer, mixed_BC, self.conv1d.weight.squeeze(1))
        return cache.step_delta(self.layer, *self._heads(mixed_BC), g, beta)
