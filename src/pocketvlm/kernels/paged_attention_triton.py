"""The fast twins of `paged_attention` for GPUs: decode attention split over the sequence, and the write of new keys.

One program takes the query heads of one KV head of one sequence and a run of its keys; it keeps the largest score, the
sum and the weighted values (Dao et al., "Flash-Decoding", 2023), and a second kernel joins the runs. Without the split
a single long sequence would occupy as many processors as it has KV heads.

Shapes:  as in `paged_attention` · G query heads a KV head · R rows of a tile of queries (G, padded) · L keys of a tile
         P runs of a sequence · partial_BHPE, lse_BHP (base 2) in fp32
"""

# Kernels are no Python: mypy sees neither their arguments nor what decorates them.
# mypy: allow-untyped-defs, allow-untyped-decorators, allow-incomplete-defs

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from pocketvlm.errors import MissingExtraError

try:
    import triton
    import triton.language as tl
except ImportError:
    raise MissingExtraError("triton", "cuda") from None

ROWS = 16  # a tensor core takes no fewer
TILE_BYTES = 16384  # of keys in one tile: two tiles of keys and values in flight fit the 64 KiB of the smallest GPUs
MAX_SPLITS = 64
LOG2_E = 1.4426950408889634
# The interpreter, which tests use on a CPU, has no products of bfloat16.
DOT_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def decode_kernel(
    q,
    keys,
    values,
    tables,
    lengths,
    out,
    lse,
    q_row,
    q_head,
    block_step,
    head_step,
    table_row,
    scale,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS: tl.constexpr,
    DOT: tl.constexpr,
):
    """Program (b, j, run). `out` is the result itself where there is one run, else partial_BHPE."""
    b = tl.program_id(0)
    j = tl.program_id(1)
    run = tl.program_id(2)
    length = tl.load(lengths + b)
    # A run is a share of this sequence, not of the longest: programs of one sequence have equal work.
    share = tl.cdiv(tl.cdiv(length, TILE), SPLITS) * TILE
    first = run * share
    last = tl.minimum(first + share, length)

    r = tl.arange(0, ROWS)
    e = tl.arange(0, DIM_PAD)
    n = tl.arange(0, TILE)
    head = j * GROUP + r
    rows = (r < GROUP)[:, None] & (e < DIM)[None, :]
    q_RE = tl.load(q + b * q_row + head[:, None] * q_head + e[None, :], mask=rows, other=0.0).to(DOT)
    largest_R = tl.full([ROWS], float("-inf"), tl.float32)
    sum_R = tl.zeros([ROWS], tl.float32)
    out_RE = tl.zeros([ROWS, DIM_PAD], tl.float32)
    for start in range(first, last, TILE):
        token = start + n
        seen = token < last
        block = tl.load(tables + b * table_row + token // BLOCK, mask=seen, other=0).to(tl.int64)
        at = block * block_step + j * head_step + (token % BLOCK) * DIM
        k_EL = tl.load(keys + at[None, :] + e[:, None], mask=seen[None, :] & (e < DIM)[:, None], other=0.0)
        v_LE = tl.load(values + at[:, None] + e[None, :], mask=seen[:, None] & (e < DIM)[None, :], other=0.0)
        score_RL = tl.dot(q_RE, k_EL.to(DOT), input_precision="ieee") * scale
        score_RL = tl.where(seen[None, :], score_RL, float("-inf"))
        top_R = tl.maximum(largest_R, tl.max(score_RL, 1))
        p_RL = tl.exp2(score_RL - top_R[:, None])
        shrink_R = tl.exp2(largest_R - top_R)
        sum_R = sum_R * shrink_R + tl.sum(p_RL, 1)
        out_RE = out_RE * shrink_R[:, None] + tl.dot(p_RL.to(DOT), v_LE.to(DOT), input_precision="ieee")
        largest_R = top_R
    out_RE = out_RE / tl.where(sum_R > 0, sum_R, 1.0)[:, None]

    row = (b * tl.num_programs(1) * GROUP + head) * SPLITS + run
    if SPLITS == 1:
        tl.store(out + row[:, None] * DIM + e[None, :], out_RE.to(out.dtype.element_ty), mask=rows)
    else:
        # Runs without a key are known by their lse alone; their part is neither written nor read.
        tl.store(out + row[:, None] * DIM + e[None, :], out_RE, mask=rows & (sum_R > 0)[:, None])
        tl.store(lse + row, largest_R + tl.log2(tl.where(sum_R > 0, sum_R, 1.0)), mask=r < GROUP)


@triton.jit
def join_kernel(partial, lse, out, DIM: tl.constexpr, DIM_PAD: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr):
    """Program (a row of [B * H]): the mean of its runs, weighted by their sums."""
    row = tl.program_id(0)
    e = tl.arange(0, DIM_PAD)
    lse_P = tl.load(lse + row * SPLITS + tl.arange(0, SPLITS))
    top = tl.max(lse_P, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2(lse_P - top), 0)
    out_E = tl.zeros([DIM_PAD], tl.float32)
    for first in range(0, SPLITS, TILE):
        run = row * SPLITS + first + tl.arange(0, TILE)
        weight = tl.exp2(tl.load(lse + run) - top)
        mask = (weight > 0)[:, None] & (e < DIM)[None, :]
        part = tl.load(partial + run[:, None] * DIM + e[None, :], mask=mask, other=0.0)
        out_E += tl.sum(part * weight[:, None], 0)
    out_E = out_E / tl.where(total > 0, total, 1.0)
    tl.store(out + row * DIM + e, out_E.to(out.dtype.element_ty), mask=e < DIM)


@triton.jit
def write_kernel(
    keys,
    values,
    k,
    v,
    slots,
    k_row,
    v_row,
    block_step,
    head_step,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (t, j): one head of one token."""
    t = tl.program_id(0)
    j = tl.program_id(1)
    slot = tl.load(slots + t).to(tl.int64)
    if slot >= 0:
        e = tl.arange(0, DIM_PAD)
        at = (slot // BLOCK) * block_step + j * head_step + (slot % BLOCK) * DIM + e
        k_E = tl.load(k + t.to(tl.int64) * k_row + j * DIM + e, mask=e < DIM)
        v_E = tl.load(v + t.to(tl.int64) * v_row + j * DIM + e, mask=e < DIM)
        tl.store(keys + at, k_E.to(keys.dtype.element_ty), mask=e < DIM)
        tl.store(values + at, v_E.to(values.dtype.element_ty), mask=e < DIM)


def triton_paged_attention(
    q_BHE: Tensor,
    keys_NJSE: Tensor,
    values_NJSE: Tensor,
    block_tables_BM: Tensor,
    lengths_B: Tensor,
    splits: int | None = None,
) -> Tensor:
    """As `naive_paged_attention`; queries, keys and values of one dtype.

    Args:
        splits: runs that each sequence is cut into, a power of two; chosen by the batch when None.
    """
    batch, heads, dim = q_BHE.shape
    kv_heads, block = keys_NJSE.shape[1:3]
    assert q_BHE.dtype == keys_NJSE.dtype == values_NJSE.dtype, (q_BHE.dtype, keys_NJSE.dtype, values_NJSE.dtype)
    assert q_BHE.stride(2) == block_tables_BM.stride(1) == lengths_B.stride(0) == 1
    _check_blocks(keys_NJSE, values_NJSE)
    group, dim_pad = heads // kv_heads, max(16, triton.next_power_of_2(dim))
    tile = min(max(TILE_BYTES // (dim_pad * q_BHE.element_size()), 16), 128)
    if splits is None:
        splits = choose_splits(
            batch * kv_heads, -(-block_tables_BM.shape[1] * block // tile), _processors(q_BHE.device)
        )
    out = q_BHE.new_empty(batch, heads, dim)
    partial, lse = out, out
    if splits > 1:
        partial = torch.empty(batch, heads, splits, dim, dtype=torch.float32, device=q_BHE.device)
        lse = torch.empty(batch, heads, splits, dtype=torch.float32, device=q_BHE.device)
    with torch.cuda.device_of(q_BHE):
        decode_kernel[batch, kv_heads, splits](
            q_BHE,
            keys_NJSE,
            values_NJSE,
            block_tables_BM,
            lengths_B,
            partial,
            lse,
            q_BHE.stride(0),
            q_BHE.stride(1),
            keys_NJSE.stride(0),
            keys_NJSE.stride(1),
            block_tables_BM.stride(0),
            dim**-0.5 * LOG2_E,
            GROUP=group,
            ROWS=max(ROWS, triton.next_power_of_2(group)),
            DIM=dim,
            DIM_PAD=dim_pad,
            BLOCK=block,
            TILE=tile,
            SPLITS=splits,
            DOT=DOT_TYPES[q_BHE.dtype] if q_BHE.is_cuda else tl.float32,
            num_warps=4,
            enable_fp_fusion=True,
            num_stages=2,
        )
        if splits > 1:
            join_kernel[(batch * heads,)](
                partial,
                lse,
                out,
                DIM=dim,
                DIM_PAD=dim_pad,
                SPLITS=splits,
                TILE=min(16, splits),
                num_warps=4,
                enable_fp_fusion=True,
            )
    return out


def choose_splits(programs: int, tiles: int, processors: int) -> int:
    """Runs a sequence, a power of two, so that about two programs for each processor start; no more than `tiles`.

    It depends on shapes alone, never on lengths, which the host does not know.

    Args:
        programs: that start without a split, one for each KV head of each sequence.
        tiles: of keys that a table has room for.
        processors: of the GPU.
    """
    wanted = min(2 * processors // programs, tiles, MAX_SPLITS)
    return 1 << max(wanted, 1).bit_length() - 1


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def triton_write_kv(
    keys_NJSE: Tensor, values_NJSE: Tensor, k_TJE: Tensor, v_TJE: Tensor, slot_mapping_T: Tensor
) -> None:
    """As `naive_write_kv`, without waiting for the host."""
    tokens, kv_heads, dim = k_TJE.shape
    _check_blocks(keys_NJSE, values_NJSE)
    assert k_TJE.stride()[1:] == v_TJE.stride()[1:] == (dim, 1), (k_TJE.stride(), v_TJE.stride())
    assert slot_mapping_T.stride(0) == 1
    with torch.cuda.device_of(k_TJE):
        write_kernel[tokens, kv_heads](
            keys_NJSE,
            values_NJSE,
            k_TJE,
            v_TJE,
            slot_mapping_T,
            k_TJE.stride(0),
            v_TJE.stride(0),
            keys_NJSE.stride(0),
            keys_NJSE.stride(1),
            DIM=dim,
            DIM_PAD=triton.next_power_of_2(dim),
            BLOCK=keys_NJSE.shape[2],
            num_warps=1,
            enable_fp_fusion=True,
        )


def _check_blocks(keys: Tensor, values: Tensor) -> None:
    """The kernels take one set of strides for both, with the tokens of a head one after the other."""
    assert keys.shape == values.shape, (keys.shape, values.shape)
    assert keys.stride() == values.stride(), (keys.stride(), values.stride())
    assert keys.stride()[2:] == (keys.shape[3], 1), keys.stride()
