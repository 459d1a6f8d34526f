"""The gated delta rule over packed prompts: by flash-linear-attention on a GPU, by `chunk_gated_delta_rule` elsewhere.

fla computes products within chunks in the dtype of its inputs, so it runs in half precision only; states are fp32 both
ways. It may be installed without its models, as `fla-core`.

Shapes:  T tokens of all sequences, packed · B sequences · J key heads of K · H value heads of V
         q_TJK k_TJK (as the convolution left them) · v_THV · g_TH (log decay) · beta_TH · state_BHKV
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from pocketvlm.kernels.gated_delta_rule import ChunkPlan, chunk_gated_delta_rule, normalise_query_key, plan_chunks
from pocketvlm.kernels.triton_support import is_installed

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class PromptPlan:
    """Where packed sequences begin, for whichever routine runs; made once a batch, used by every linear layer.

    fla keeps what it derives from `bounds` by the tensor's identity, so all layers must be given the same one.
    """

    chunks: ChunkPlan | None  # for our own routine
    bounds: Tensor | None  # for fla: [B + 1] int64 on the device, the sum of the lengths before each sequence
    bounds_on_host: Tensor | None  # the same on the host: fla would copy it back, and wait


def plan_prompts(lengths: Sequence[int], device: torch.device | str, dtype: torch.dtype) -> PromptPlan:
    """Plan packed sequences with these lengths for queries of this dtype (host arithmetic only)."""
    if not runs_fla(torch.device(device), dtype):
        return PromptPlan(plan_chunks(lengths, device), None, None)
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.long)
    return PromptPlan(None, bounds.to(device), bounds)


def runs_fla(device: torch.device, dtype: torch.dtype) -> bool:
    """On a GPU, in half precision, where fla and Triton are installed."""
    return device.type == "cuda" and dtype in HALF and is_installed("fla") and is_installed("triton")


def prompt_gated_delta_rule(
    q_TJK: Tensor, k_TJK: Tensor, v_THV: Tensor, g_TH: Tensor, beta_TH: Tensor, plan: PromptPlan, state_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs [T, H, V], in fp32 (ours) or the dtype of the queries (fla's), and final states [B, H, K, V] in fp32.

    Args:
        q_TJK: queries, neither normalised nor scaled: as by `normalise_query_key`, this is done here.
        k_TJK: keys, likewise. Each key head serves H / J value heads, one after the other.
        state_BHKV: what each sequence continues from; left as it is.
    """
    if plan.chunks is None:
        return _by_fla(_fla(), q_TJK, k_TJK, v_THV, g_TH, beta_TH, plan, state_BHKV)
    q, k = normalise_query_key(q_TJK, k_TJK)
    if v_THV.shape[1] != q.shape[1]:
        q, k = (x.repeat_interleave(v_THV.shape[1] // x.shape[1], dim=1) for x in (q, k))
    return chunk_gated_delta_rule(q, k, v_THV.float(), g_TH.float(), beta_TH.float(), plan.chunks, state_BHKV.float())


@cache
def _fla() -> Callable[..., Any]:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule as routine

    return routine


def _by_fla(
    routine: Callable[..., Any],
    q_TJK: Tensor,
    k_TJK: Tensor,
    v_THV: Tensor,
    g_TH: Tensor,
    beta_TH: Tensor,
    plan: PromptPlan,
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """`fla.ops.gated_delta_rule.chunk_gated_delta_rule` (0.6): one packed row [1, T, ...], states [B, H, K, V]."""
    q, k, v, g, beta = (x.unsqueeze(0) for x in (q_TJK, k_TJK, v_THV.to(q_TJK.dtype), g_TH.float(), beta_TH.float()))
    out, state = routine(
        q,
        k,
        v,
        g,
        beta,
        scale=q_TJK.shape[-1] ** -0.5,
        initial_state=state_BHKV.float(),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
        cu_seqlens=plan.bounds,
        cu_seqlens_cpu=plan.bounds_on_host,
    )
    return out.squeeze(0), state
