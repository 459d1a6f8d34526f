"""Attention over keys and values that are kept in blocks, as a sequence's block table lists them.

A plain twin of each routine, and what runs: the kernels of `paged_attention_triton` on a GPU, the twin elsewhere.
Chunks of prompts have the plain routine only.

Shapes:  B sequences · T new tokens of all sequences, packed · H query heads · J KV heads · E head dim
         N blocks of S tokens · M blocks in a row of the table
         q_BHE · keys_NJSE values_NJSE · block_tables_BM int32 · lengths_B int32 (keys that the new token sees, its own
         among them) · slot_mapping_T (block * S + offset in the block; negative for padding)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pocketvlm.kernels.triton_support import runs_triton


def paged_attention(
    q_BHE: Tensor, keys_NJSE: Tensor, values_NJSE: Tensor, block_tables_BM: Tensor, lengths_B: Tensor
) -> Tensor:
    """One new token of each sequence against its keys, scaled by E^-0.5; [B, H, E] in the dtype of the queries.

    A length of 0 is padding: its row is zero and its table is not read. On a GPU nothing waits for the host, so a CUDA
    graph can hold the call.
    """
    if runs_triton(q_BHE):
        from pocketvlm.kernels.paged_attention_triton import triton_paged_attention

        return triton_paged_attention(q_BHE, keys_NJSE, values_NJSE, block_tables_BM, lengths_B)
    return naive_paged_attention(q_BHE, keys_NJSE, values_NJSE, block_tables_BM, lengths_B)


def naive_paged_attention(
    q_BHE: Tensor, keys_NJSE: Tensor, values_NJSE: Tensor, block_tables_BM: Tensor, lengths_B: Tensor
) -> Tensor:
    """The plain twin: every table's blocks laid out one after the other, then the library's attention under a mask."""
    tables = block_tables_BM.long()
    longest = tables.shape[1] * keys_NJSE.shape[2]
    seen_BL = torch.arange(longest, device=q_BHE.device) < lengths_B[:, None]
    # What nothing was written to may hold NaN, which a mask on the scores does not keep out.
    hidden = ~seen_BL[:, None, :, None]
    keys, values = (
        x[tables.clamp(0, x.shape[0] - 1)].transpose(1, 2).flatten(2, 3).masked_fill(hidden, 0.0)
        for x in (keys_NJSE, values_NJSE)
    )
    q = q_BHE.unflatten(1, (keys.shape[1], -1))  # the query heads of a KV head become its rows
    out = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen_BL[:, None, None])
    return out.flatten(1, 2).masked_fill((lengths_B <= 0)[:, None, None], 0.0)


def write_kv(keys_NJSE: Tensor, values_NJSE: Tensor, k_TJE: Tensor, v_TJE: Tensor, slot_mapping_T: Tensor) -> None:
    """Put new keys and values where `slot_mapping_T` says; negative ones are padding and go nowhere."""
    if runs_triton(k_TJE):
        from pocketvlm.kernels.paged_attention_triton import triton_write_kv

        triton_write_kv(keys_NJSE, values_NJSE, k_TJE, v_TJE, slot_mapping_T)
    else:
        naive_write_kv(keys_NJSE, values_NJSE, k_TJE, v_TJE, slot_mapping_T)


def naive_write_kv(
    keys_NJSE: Tensor, values_NJSE: Tensor, k_TJE: Tensor, v_TJE: Tensor, slot_mapping_T: Tensor
) -> None:
    """The plain twin; it waits for the host to leave out the padding."""
    rows = (slot_mapping_T >= 0).nonzero().squeeze(1)
    written, size = slot_mapping_T[rows].long(), keys_NJSE.shape[2]
    block, offset = written // size, written % size
    keys_NJSE[block, :, offset] = k_TJE[rows].to(keys_NJSE.dtype)
    values_NJSE[block, :, offset] = v_TJE[rows].to(values_NJSE.dtype)


def paged_chunk_attention(
    q_THE: Tensor,
    keys_NJSE: Tensor,
    values_NJSE: Tensor,
    block_tables_BM: Tensor,
    lengths: Sequence[int],
    starts: Sequence[int],
) -> Tensor:
    """Chunks of prompts, each behind the part of its sequence that is in the cache; [T, H, E].

    The chunk's own keys and values must have been written.

    Args:
        lengths: new tokens of each sequence, in packed order.
        starts: tokens of each sequence before its chunk.
    """
    heads, kv_heads, size = q_THE.shape[1], keys_NJSE.shape[1], keys_NJSE.shape[2]
    outs = []
    for q, table, length, start in zip(q_THE.split(list(lengths)), block_tables_BM, lengths, starts, strict=True):
        end = start + length
        blocks = table[: -(-end // size)].long()
        keys, values = (x[blocks].transpose(0, 1).flatten(1, 2)[None, :, :end] for x in (keys_NJSE, values_NJSE))
        # Without a mask of its own the library may choose its fastest routine.
        mask = torch.ones(length, end, dtype=torch.bool, device=q.device).tril(start) if start else None
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0),
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=heads != kv_heads,
        )
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)
