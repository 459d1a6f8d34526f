"""A decode step on states in their slots equals the step on gathered states; padding touches nothing."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.invariants import assert_close
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.kernels import linear_attention_step as module
from pocketvlm.kernels.causal_conv1d import naive_causal_conv1d
from pocketvlm.kernels.gated_delta_rule import naive_gated_delta_rule, normalise_query_key
from pocketvlm.kernels.linear_attention_step import slot_causal_conv1d, slot_gated_delta_rule

KEY_HEADS, HEADS, KEY, VALUE, CHANNELS, SLOTS = 2, 4, 5, 6, 7, 6
slots = st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=SLOTS, unique=True).flatmap(
    lambda used: st.permutations(used + [-1] * 2)
)


@given(slots, st.integers(0, 9))
def test_the_delta_rule_equals_the_recurrence_in_each_slot(rows: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = len(rows)
    q, k = torch.randn(2, batch, KEY_HEADS, KEY, generator=generator)
    v = torch.randn(batch, HEADS, VALUE, generator=generator)
    g, beta = -torch.rand(batch, HEADS, generator=generator), torch.rand(batch, HEADS, generator=generator)
    state = torch.randn(SLOTS, HEADS, KEY, VALUE, generator=generator)
    before = state.clone()
    got = slot_gated_delta_rule(q, k, v, g, beta, torch.tensor(rows, dtype=torch.int32), state)
    q, k = (x.repeat_interleave(HEADS // KEY_HEADS, dim=1) for x in normalise_query_key(q, k))
    for b, slot in enumerate(rows):
        if slot < 0:
            assert torch.equal(got[b], torch.zeros_like(got[b]))
            continue
        inputs = [x[b : b + 1] for x in (q, k, v, g, beta)]
        out, final = naive_gated_delta_rule(*inputs, [1], before[slot : slot + 1])
        assert_close(got[b], out[0])
        assert_close(state[slot], final[0])
    unused = [slot for slot in range(SLOTS) if slot not in rows]
    assert torch.equal(state[unused], before[unused])


@given(slots, st.integers(0, 9))
def test_the_convolution_equals_the_library_in_each_slot(rows: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(rows), CHANNELS, generator=generator)
    weight = torch.randn(CHANNELS, 4, generator=generator)
    state = torch.randn(SLOTS, 3, CHANNELS, generator=generator)
    before = state.clone()
    got = slot_causal_conv1d(x, weight, torch.tensor(rows, dtype=torch.int32), state)
    for b, slot in enumerate(rows):
        if slot < 0:
            assert torch.equal(got[b], torch.zeros_like(got[b]))
            continue
        out, final = naive_causal_conv1d(x[b : b + 1], weight, [1], before[slot : slot + 1])
        assert_close(got[b], out[0])
        assert torch.equal(state[slot], final[0])
    unused = [slot for slot in range(SLOTS) if slot not in rows]
    assert torch.equal(state[unused], before[unused])


def test_a_gpu_gets_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    for name, function in (
        ("causal_conv1d_triton", "triton_slot_causal_conv1d"),
        ("gated_delta_rule_triton", "triton_slot_delta_rule"),
    ):
        fast = ModuleType(f"pocketvlm.kernels.{name}")
        setattr(fast, function, lambda *args: calls.append(args) or args[0])
        monkeypatch.setitem(sys.modules, fast.__name__, fast)
    monkeypatch.setattr(module, "runs_triton", lambda _: True)
    args = tuple(torch.zeros(1) for _ in range(7))
    assert slot_causal_conv1d(*args[:4]) is args[0]
    assert slot_gated_delta_rule(*args) is args[0]
    for call, expected in zip(calls, (args[:4], args), strict=True):
        assert all(a is b for a, b in zip(call, expected, strict=True))
