"""The gated delta rule of linear attention: a plain twin, a chunked form for prompts, a single step for decoding.

Recurrence for each head (Yang et al., "Gated Delta Networks", arXiv 2412.06464), all in fp32:

    S_t = exp(g_t) S_{t-1} + k_t (beta_t (v_t - (exp(g_t) S_{t-1})^T k_t))^T        o_t = S_t^T q_t

Queries and keys arrive L2-normalised, queries also scaled by key_dim^-0.5 (see `normalise_query_key`).

Shapes:  T tokens of all sequences, packed · B sequences · H value heads · K key dim · V value dim
         N chunks of C tokens
         q_THK k_THK v_THV · g_TH (log decay, <= 0) · beta_TH · state_BHKV
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64


def normalise_query_key(q: Tensor, k: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """L2-normalise the last dimension of both in fp32 (eps inside the root) and scale the query by dim^-0.5."""
    q, k = q.float(), k.float()
    q_scale = torch.rsqrt(q.square().sum(-1, keepdim=True) + eps) * q.shape[-1] ** -0.5
    return q * q_scale, k * torch.rsqrt(k.square().sum(-1, keepdim=True) + eps)


def naive_gated_delta_rule(
    q_THK: Tensor,
    k_THK: Tensor,
    v_THV: Tensor,
    g_TH: Tensor,
    beta_TH: Tensor,
    lengths: Sequence[int],
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """The recurrence token by token: the plain twin. Returns outputs [T, H, V] and the final states [B, H, K, V]."""
    outputs, states, first = [], [], 0
    for length, initial in zip(lengths, state_BHKV, strict=True):
        state_HKV = initial
        for t in range(first, first + length):
            state_HKV = state_HKV * g_TH[t].exp()[:, None, None]
            predicted_HV = torch.einsum("hkv,hk->hv", state_HKV, k_THK[t])
            delta_HV = beta_TH[t][:, None] * (v_THV[t] - predicted_HV)
            state_HKV = state_HKV + k_THK[t][:, :, None] * delta_HV[:, None, :]
            outputs.append(torch.einsum("hkv,hk->hv", state_HKV, q_THK[t]))
        states.append(state_HKV)
        first += length
    return torch.stack(outputs), torch.stack(states)


@dataclass(frozen=True)
class ChunkPlan:
    """How packed sequences fall into chunks; made once a batch, used by every linear layer.

    Chunks are ordered step-major: first the first chunk of every sequence (longest sequence first), then the second
    chunk of those that have one, and so on, so that one step of the scan is one contiguous slice.
    """

    token_index: Tensor  # [N * C], row of the packed tokens; T (one past the end) where a chunk is padding
    chunk_index: Tensor  # [T], row of the flattened [N * C] chunks that holds each packed token
    active: tuple[int, ...]  # sequences that take part in each step of the scan, falling
    order: Tensor  # [B], sequences by falling number of chunks
    inverse_order: Tensor  # [B]
    chunk: int

    @property
    def single(self) -> bool:
        """One sequence only: its chunks are its tokens in order, so no gathering is needed."""
        return len(self.order) == 1


def plan_chunks(lengths: Sequence[int], device: torch.device | str = "cpu", chunk: int = CHUNK) -> ChunkPlan:
    """Plan the chunks of packed sequences with these lengths (host arithmetic only)."""
    counts = [-(-n // chunk) for n in lengths]
    order = sorted(range(len(lengths)), key=lambda b: -counts[b])
    firsts = [sum(lengths[:b]) for b in range(len(lengths))]
    total = sum(lengths)
    active = tuple(sum(c > step for c in counts) for step in range(max(counts, default=0)))
    token_index = torch.full((sum(active), chunk), total, dtype=torch.long)
    row = 0
    for step, width in enumerate(active):
        for b in order[:width]:
            size = min(chunk, lengths[b] - step * chunk)
            first = firsts[b] + step * chunk
            token_index[row, :size] = torch.arange(first, first + size)
            row += 1
    token_index = token_index.flatten()
    chunk_index = torch.empty(total + 1, dtype=torch.long)
    chunk_index[token_index] = torch.arange(token_index.numel())
    order_B = torch.tensor(order, dtype=torch.long)
    return ChunkPlan(
        token_index.to(device),
        chunk_index[:total].to(device),
        active,
        order_B.to(device),
        order_B.argsort().to(device),
        chunk,
    )


def _to_chunks(x_TH: Tensor, plan: ChunkPlan) -> Tensor:
    """[T, H, ...] to [N, H, C, ...], zeros in the padding."""
    total = plan.token_index.numel()
    if plan.single:
        x = F.pad(x_TH, (0, 0) * (x_TH.dim() - 1) + (0, total - x_TH.shape[0]))
    else:
        x = torch.cat([x_TH, x_TH.new_zeros(1, *x_TH.shape[1:])]).index_select(0, plan.token_index)
    return x.unflatten(0, (-1, plan.chunk)).transpose(1, 2)


def chunk_gated_delta_rule(
    q_THK: Tensor, k_THK: Tensor, v_THV: Tensor, g_TH: Tensor, beta_TH: Tensor, plan: ChunkPlan, state_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """The plain twin's result by matrix products within chunks and a scan over chunks (section 3.3 of the paper).

    Padding inside a last chunk has g = 0 and beta = 0 and therefore changes neither states nor outputs.

    Returns:
        outputs [T, H, V] and final states [B, H, K, V], both in the dtype of the inputs (fp32 in the model).
    """
    q, k, v = (_to_chunks(x, plan) for x in (q_THK, k_THK, v_THV))
    g_NHC, beta_NHC = _to_chunks(g_TH, plan), _to_chunks(beta_TH, plan)
    decay = g_NHC.cumsum(-1).exp().unsqueeze(-1)
    total_NH11 = decay[..., -1:, :]

    # Decay from token j to token i >= j. Summed for each j on its own: in a difference of two cumulative sums the small
    # decays behind a token that forgets everything (g of -80) would be lost.
    upto = torch.ones(plan.chunk, plan.chunk, dtype=torch.bool, device=q.device).triu()
    pair_NHCC = g_NHC.unsqueeze(-1).masked_fill(upto, 0.0).cumsum(-2).exp().tril()

    # Within a chunk the corrections depend on each other through a unit lower triangular system; one solve gives the
    # new values (from beta v) and what they take from the incoming state (from beta exp(cum) k).
    beta = beta_NHC.unsqueeze(-1)
    k_beta = k * beta
    system = (k_beta @ k.transpose(-1, -2)) * pair_NHCC
    right = torch.cat([v * beta, k_beta * decay], dim=-1)
    # At least fp32, also when training has its products in bfloat16, for which CUDA has no solver.
    exact = torch.promote_types(system.dtype, torch.float32)
    solved = torch.linalg.solve_triangular(system.to(exact), right.to(exact), upper=False, unitriangular=True)
    value_NHCV, from_state_NHCK = solved.split([v.shape[-1], k.shape[-1]], dim=-1)

    within_NHCC = (q @ k.transpose(-1, -2)) * pair_NHCC
    q_decay = q * decay
    k_rest = (k * pair_NHCC[..., -1, :, None]).transpose(-1, -2)

    state = state_BHKV.to(q.dtype).index_select(0, plan.order)
    outputs, finished, row = [], [], 0
    for width in plan.active:
        rows = slice(row, row + width)
        if width < len(state):
            finished.append(state[width:])
            state = state[:width]
        new_value = value_NHCV[rows] - from_state_NHCK[rows] @ state
        outputs.append(q_decay[rows] @ state + within_NHCC[rows] @ new_value)
        state = state * total_NH11[rows] + k_rest[rows] @ new_value
        row += width
    out = torch.cat(outputs).transpose(1, 2).flatten(0, 1)
    out_THV = out[: q_THK.shape[0]] if plan.single else out.index_select(0, plan.chunk_index)
    final = torch.cat([state, *reversed(finished)]).index_select(0, plan.inverse_order)
    return out_THV, final


def step_gated_delta_rule(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, g_BH: Tensor, beta_BH: Tensor, state_BHKV: Tensor
) -> Tensor:
    """One token of each of B sequences; updates `state_BHKV` (fp32, contiguous) in place and returns [B, H, V].

    The state is the traffic here, so it is touched three times only: decay, one product with [key; query], rank-one
    update. The output needs no fourth pass since S_t^T q = (decayed S)^T q + (k . q) delta.
    """
    state_BHKV.mul_(g_BH.exp()[..., None, None])
    both = torch.stack([k_BHK, q_BHK], dim=2) @ state_BHKV
    delta_BHV = beta_BH.unsqueeze(-1) * (v_BHV - both[:, :, 0])
    torch.baddbmm(
        state_BHKV.flatten(0, 1),
        k_BHK.flatten(0, 1).unsqueeze(-1),
        delta_BHV.flatten(0, 1).unsqueeze(1),
        out=state_BHKV.flatten(0, 1),
    )
    return both[:, :, 1] + (k_BHK * q_BHK).sum(-1, keepdim=True) * delta_BHV
