"""Attention over blocks equals attention over the same keys one after the other, wherever the blocks lie."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.invariants import assert_close
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pocketvlm.errors import MissingExtraError
from pocketvlm.kernels import paged_attention as module
from pocketvlm.kernels.paged_attention import (
    naive_paged_attention,
    naive_write_kv,
    paged_attention,
    paged_chunk_attention,
    write_kv,
)

HEADS, KV_HEADS, DIM, BLOCK = 4, 2, 8, 4
NOWHERE = 2**30  # in a table behind the blocks of a sequence: nothing may look there


def paged_keys(lengths: list[int], seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Keys and values [2, J, L, E] of each sequence, and the same in shuffled blocks with NaN around them."""
    generator = torch.Generator().manual_seed(seed)
    own = [torch.randn(2, KV_HEADS, length, DIM, generator=generator) for length in lengths]
    counts = [-(-length // BLOCK) for length in lengths]
    order = torch.randperm(sum(counts) + 2, generator=generator).tolist()
    tables = torch.full((len(lengths), max(counts) + 1), NOWHERE, dtype=torch.int32)
    stores = torch.full((2, sum(counts) + 2, KV_HEADS, BLOCK, DIM), float("nan"))
    for b, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        tables[b, :count] = torch.tensor([order.pop() for _ in range(count)], dtype=torch.int32)
        for t in range(length):
            stores[:, tables[b, t // BLOCK], :, t % BLOCK] = own[b][:, :, t]
    return own, stores[0], stores[1], tables


@given(st.lists(st.integers(0, 3 * BLOCK + 1), min_size=1, max_size=5), st.integers(0, 9))
def test_decode_equals_attention_over_each_sequence_alone(lengths: list[int], seed: int) -> None:
    own, keys, values, tables = paged_keys(lengths, seed)
    q = torch.randn(len(lengths), HEADS, DIM, generator=torch.Generator().manual_seed(seed))
    got = paged_attention(q, keys, values, tables, torch.tensor(lengths, dtype=torch.int32))
    for row, query, (k, v) in zip(got, q, own, strict=True):
        if not k.shape[1]:
            assert torch.equal(row, torch.zeros_like(row))
            continue
        alone = F.scaled_dot_product_attention(query[None, :, None], k[None], v[None], enable_gqa=True)
        assert_close(row, alone[0, :, 0])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=4), st.integers(0, 9))
def test_chunks_behind_a_cached_part_equal_whole_causal_attention(cuts: list[tuple[int, int]], seed: int) -> None:
    starts, lengths = [c[0] for c in cuts], [c[1] for c in cuts]
    own, keys, values, tables = paged_keys([a + b for a, b in cuts], seed)
    generator = torch.Generator().manual_seed(seed)
    queries = [torch.randn(HEADS, k.shape[2], DIM, generator=generator) for k in own]
    packed = torch.cat([q[:, start:].transpose(0, 1) for q, start in zip(queries, starts, strict=True)])
    got = paged_chunk_attention(packed, keys, values, tables, lengths, starts).split(lengths)
    for out, q, (k, v), start in zip(got, queries, own, starts, strict=True):
        whole = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)
        assert_close(out, whole[0, :, start:].transpose(0, 1))


def test_written_keys_are_where_decoding_looks_and_padding_goes_nowhere() -> None:
    own, keys, values, tables = paged_keys([BLOCK + 1, 3])
    k, v = torch.randn(2, 3, KV_HEADS, DIM)
    places = torch.tensor([int(tables[0, 1]) * BLOCK + 1, -1, int(tables[1, 0]) * BLOCK + 3], dtype=torch.int32)
    before = keys.clone()
    write_kv(keys, values, k, v, places)
    changed = ~torch.isclose(keys, before, equal_nan=True).all(-1).all(1)
    assert changed.nonzero().tolist() == sorted([[int(tables[0, 1]), 1], [int(tables[1, 0]), 3]])
    q = torch.randn(2, HEADS, DIM)
    got = naive_paged_attention(q, keys, values, tables, torch.tensor([BLOCK + 2, 4]))
    for row, query, old, new in zip(got, q, own, (0, 2), strict=True):
        extended = torch.cat([old, torch.stack([k[new], v[new]]).unsqueeze(2)], dim=2)
        alone = F.scaled_dot_product_attention(
            query[None, :, None], extended[0][None], extended[1][None], enable_gqa=True
        )
        assert_close(row, alone[0, :, 0])


def test_a_write_takes_the_dtype_of_the_store() -> None:
    keys = torch.zeros(1, KV_HEADS, BLOCK, DIM, dtype=torch.bfloat16)
    values, k = keys.clone(), torch.randn(1, KV_HEADS, DIM)
    naive_write_kv(keys, values, k, -k, torch.tensor([2]))
    assert torch.equal(keys[0, :, 2], k[0].bfloat16())
    assert torch.equal(values[0, :, 2], -k[0].bfloat16())


def test_a_gpu_gets_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    fast: Any = ModuleType("pocketvlm.kernels.paged_attention_triton")
    fast.triton_paged_attention = lambda *args: calls.append(args) or args[0]
    fast.triton_write_kv = lambda *args: calls.append(args)
    monkeypatch.setitem(sys.modules, fast.__name__, fast)
    monkeypatch.setattr(module, "runs_triton", lambda _: True)
    args = tuple(torch.zeros(1) for _ in range(5))
    assert paged_attention(*args) is args[0]
    write_kv(*args)
    assert [all(a is b for a, b in zip(call, args, strict=True)) for call in calls] == [True, True]


@pytest.mark.parametrize("name", ["paged_attention", "gated_delta_rule", "causal_conv1d"])
def test_without_triton_the_kernels_name_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, f"pocketvlm.kernels.{name}_triton", raising=False)
    with pytest.raises(MissingExtraError, match=r"pocketvlm\[cuda\]"):
        __import__(f"pocketvlm.kernels.{name}_triton")


def test_nothing_imports_triton_or_fla_on_a_cpu() -> None:
    code = """
import sys, torch
from pocketvlm.kernels import linear_attention_step as step, paged_attention as paged, prompt_delta_rule as prompt
q, blocks, one = torch.ones(1, 1, 4), torch.ones(1, 1, 2, 4), torch.ones(1, dtype=torch.int32)
paged.write_kv(blocks, blocks.clone(), q, q, one)
paged.paged_attention(q, blocks, blocks, one[None] - 1, one)
step.slot_causal_conv1d(torch.ones(1, 4), torch.ones(4, 2), one - 1, torch.zeros(1, 1, 4))
step.slot_gated_delta_rule(q, q, q, -torch.ones(1, 1), torch.ones(1, 1), one - 1, torch.zeros(1, 1, 4, 4))
plan = prompt.plan_prompts([1], "cpu", torch.bfloat16)
prompt.prompt_gated_delta_rule(q, q, q, -torch.ones(1, 1), torch.ones(1, 1), plan, torch.zeros(1, 1, 4, 4))
print({"triton", "fla"} & set(sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "set()\n", result.stderr
