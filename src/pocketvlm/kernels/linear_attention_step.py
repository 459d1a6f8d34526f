"""One decode step of linear attention on states that stay in their slots: convolution and gated delta rule.

A plain twin of each, and what runs: a Triton kernel on a GPU, the twin elsewhere. A negative slot is padding, as in
batches of CUDA graphs: its row of the output is zero and no state is touched. No slot may stand in a batch twice.

Shapes:  B sequences · C channels · W taps · J key heads of K · H value heads of V · S slots
         slots_B int32 · conv state_SKC (K = W - 1 last inputs) · recurrent state_SHKV in fp32
"""

from __future__ import annotations

import torch
from torch import Tensor

from pocketvlm.kernels.causal_conv1d import step_causal_conv1d
from pocketvlm.kernels.gated_delta_rule import normalise_query_key, step_gated_delta_rule
from pocketvlm.kernels.triton_support import runs_triton


def slot_causal_conv1d(x_BC: Tensor, weight_CW: Tensor, slots_B: Tensor, state_SKC: Tensor) -> Tensor:
    """One token of each sequence through the convolution and SiLU; shifts the states in place, returns [B, C]."""
    if runs_triton(x_BC):
        from pocketvlm.kernels.causal_conv1d_triton import triton_slot_causal_conv1d

        return triton_slot_causal_conv1d(x_BC, weight_CW, slots_B, state_SKC)
    return naive_slot_causal_conv1d(x_BC, weight_CW, slots_B, state_SKC)


def naive_slot_causal_conv1d(x_BC: Tensor, weight_CW: Tensor, slots_B: Tensor, state_SKC: Tensor) -> Tensor:
    """The plain twin: states gathered, `step_causal_conv1d`, states written back."""
    rows = (slots_B >= 0).nonzero().squeeze(1)
    slots = slots_B[rows].long()
    state = state_SKC[slots]
    out = torch.zeros_like(x_BC)
    out[rows] = step_causal_conv1d(x_BC[rows], weight_CW, state)
    state_SKC[slots] = state
    return out


def slot_gated_delta_rule(
    q_BJK: Tensor,
    k_BJK: Tensor,
    v_BHV: Tensor,
    g_BH: Tensor,
    beta_BH: Tensor,
    slots_B: Tensor,
    state_SHKV: Tensor,
) -> Tensor:
    """One token of each sequence; updates the states in place and returns [B, H, V] in fp32.

    Args:
        q_BJK: queries as the convolution left them: they are normalised and scaled here, as by `normalise_query_key`.
        k_BJK: keys, likewise. Each key head serves H / J value heads, one after the other.
        g_BH: log decay, at most 0.
    """
    if runs_triton(q_BJK):
        from pocketvlm.kernels.gated_delta_rule_triton import triton_slot_delta_rule

        return triton_slot_delta_rule(q_BJK, k_BJK, v_BHV, g_BH, beta_BH, slots_B, state_SHKV)
    return naive_slot_delta_rule(q_BJK, k_BJK, v_BHV, g_BH, beta_BH, slots_B, state_SHKV)


def naive_slot_delta_rule(
    q_BJK: Tensor,
    k_BJK: Tensor,
    v_BHV: Tensor,
    g_BH: Tensor,
    beta_BH: Tensor,
    slots_B: Tensor,
    state_SHKV: Tensor,
) -> Tensor:
    """The plain twin: states gathered, `step_gated_delta_rule`, states written back."""
    rows = (slots_B >= 0).nonzero().squeeze(1)
    slots = slots_B[rows].long()
    q, k = normalise_query_key(q_BJK[rows], k_BJK[rows])
    q, k = (x.repeat_interleave(v_BHV.shape[1] // x.shape[1], dim=1) for x in (q, k))
    state = state_SHKV[slots]
    out = torch.zeros(v_BHV.shape, dtype=torch.float32, device=v_BHV.device)
    out[rows] = step_gated_delta_rule(q, k, v_BHV[rows].float(), g_BH[rows].float(), beta_BH[rows].float(), state)
    state_SHKV[slots] = state
    return out
