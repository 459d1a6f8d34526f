"""The fast twin of `linear_attention_step.naive_slot_delta_rule` for GPUs: one step in one pass over the state.

The state is the traffic: a program holds [K, U] of it in registers, so it is read once and written once. As in
`step_gated_delta_rule`, S_t^T q = (decayed S)^T q + (k . q) delta, so both products are of the state as it was read.

Shapes:  B sequences · J key heads of K · H value heads of V · U of the V columns in a program
         q_BJK k_BJK (as the convolution left them) · v_BHV · g_BH beta_BH · slots_B · state_SHKV (S slots, fp32)
"""

# Kernels are no Python: mypy sees neither their arguments nor what decorates them.
# mypy: allow-untyped-defs, allow-untyped-decorators, allow-incomplete-defs

from __future__ import annotations

import torch
from torch import Tensor

from pocketvlm.errors import MissingExtraError

try:
    import triton
    import triton.language as tl
except ImportError:
    raise MissingExtraError("triton", "cuda") from None

PROGRAMS = 128  # about the processors of a large GPU; with fewer programs, narrower ones are better


@triton.jit
def step_kernel(
    q,
    k,
    v,
    g,
    beta,
    slots,
    state,
    out,
    q_row,
    k_row,
    v_row,
    g_row,
    beta_row,
    scale,
    eps,
    GROUP: tl.constexpr,
    KEY: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Program (b, h, u): columns u * COLUMNS and on of head h's state in the slot of sequence b."""
    b = tl.program_id(0)
    h = tl.program_id(1)
    heads = tl.num_programs(1)
    slot = tl.load(slots + b).to(tl.int64)
    i = tl.arange(0, KEY_PAD)
    u = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    columns = u < VALUE
    out_U = out + (b * heads + h) * VALUE + u
    if slot >= 0:
        key_head = (h // GROUP) * KEY + i
        q_K = tl.load(q + b * q_row + key_head, mask=i < KEY, other=0.0).to(tl.float32)
        k_K = tl.load(k + b * k_row + key_head, mask=i < KEY, other=0.0).to(tl.float32)
        v_U = tl.load(v + b * v_row + h * VALUE + u, mask=columns, other=0.0).to(tl.float32)
        decay = tl.exp(tl.load(g + b * g_row + h).to(tl.float32))
        rate = tl.load(beta + b * beta_row + h).to(tl.float32)
        q_K = q_K / tl.sqrt(tl.sum(q_K * q_K, 0) + eps) * scale
        k_K = k_K / tl.sqrt(tl.sum(k_K * k_K, 0) + eps)

        at = state + ((slot * heads + h) * KEY + i[:, None]) * VALUE + u[None, :]
        mask = (i < KEY)[:, None] & columns[None, :]
        state_KU = tl.load(at, mask=mask, other=0.0) * decay
        delta_U = rate * (v_U - tl.sum(state_KU * k_K[:, None], 0))
        result_U = tl.sum(state_KU * q_K[:, None], 0) + tl.sum(k_K * q_K, 0) * delta_U
        tl.store(at, state_KU + k_K[:, None] * delta_U[None, :], mask=mask)
        tl.store(out_U, result_U, mask=columns)
    else:
        tl.store(out_U, tl.zeros([COLUMNS], tl.float32), mask=columns)


def triton_slot_delta_rule(
    q_BJK: Tensor,
    k_BJK: Tensor,
    v_BHV: Tensor,
    g_BH: Tensor,
    beta_BH: Tensor,
    slots_B: Tensor,
    state_SHKV: Tensor,
    eps: float = 1e-6,
) -> Tensor:
    """As `naive_slot_delta_rule`: [B, H, V] in fp32; rows of q, k, v, g and beta may be parts of longer rows."""
    batch, key_heads, key = q_BJK.shape
    heads, value = v_BHV.shape[1:]
    assert state_SHKV.dtype == torch.float32, state_SHKV.dtype
    assert state_SHKV.is_contiguous()
    assert state_SHKV.shape[1:] == (heads, key, value), (state_SHKV.shape, heads, key, value)
    assert q_BJK.stride()[1:] == k_BJK.stride()[1:] == (key, 1), (q_BJK.stride(), k_BJK.stride())
    assert v_BHV.stride()[1:] == (value, 1), v_BHV.stride()
    assert g_BH.stride(1) == beta_BH.stride(1) == slots_B.stride(0) == 1
    out = torch.empty(batch, heads, value, dtype=torch.float32, device=q_BJK.device)
    wide = batch * heads * -(-value // 32) >= PROGRAMS
    columns = min(32 if wide else 16, triton.next_power_of_2(value))
    with torch.cuda.device_of(q_BJK):
        step_kernel[batch, heads, -(-value // columns)](
            q_BJK,
            k_BJK,
            v_BHV,
            g_BH,
            beta_BH,
            slots_B,
            state_SHKV,
            out,
            q_BJK.stride(0),
            k_BJK.stride(0),
            v_BHV.stride(0),
            g_BH.stride(0),
            beta_BH.stride(0),
            key**-0.5,
            eps,
            GROUP=heads // key_heads,
            KEY=key,
            KEY_PAD=triton.next_power_of_2(key),
            VALUE=value,
            COLUMNS=columns,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return out
