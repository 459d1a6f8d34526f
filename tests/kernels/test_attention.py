"""Attention for training in bfloat16 on a CPU equals the library's, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pocketvlm.kernels import attention
from pocketvlm.kernels.attention import attend


def inputs(batch: int, heads: int, kv_heads: int, length: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, length, 16), (batch, kv_heads, length, 16), (batch, kv_heads, length, 16)]
    return [torch.randn(shape, generator=generator).bfloat16().float() for shape in shapes]


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    kv_heads=st.sampled_from([1, 2]),
    length=st.integers(1, 20),
    is_causal=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_gradients_are_as_near_as_bfloat16_allows(
    batch: int, kv_heads: int, length: int, is_causal: bool, seed: int
) -> None:
    exact = [x.requires_grad_() for x in inputs(batch, 2, kv_heads, length, seed)]
    half = [x.detach().bfloat16().requires_grad_() for x in exact]
    expected = F.scaled_dot_product_attention(*exact, is_causal=is_causal, enable_gqa=kv_heads != 2)
    out = attend(*half, is_causal=is_causal)
    assert out.dtype == torch.bfloat16
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(seed + 1))
    (expected * weight).sum().backward()
    (out.float() * weight).sum().backward()
    torch.testing.assert_close(out.float(), expected, rtol=0.03, atol=0.03)
    for a, b in zip(half, exact, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        scale = max(1.0, float(b.grad.abs().max()))
        torch.testing.assert_close(a.grad.float() / scale, b.grad / scale, rtol=0.03, atol=0.04)


def test_the_future_has_no_gradient() -> None:
    q, k, v = (x.bfloat16().requires_grad_() for x in inputs(1, 2, 2, 6))
    attend(q, k, v, is_causal=True)[:, :, 2].float().sum().backward()
    for x in (k, v):
        assert x.grad is not None
        assert not x.grad[:, :, 3:].any()
        assert x.grad[:, :, :3].any()


@pytest.mark.parametrize("trains", [False, True])
def test_only_training_in_bfloat16_leaves_the_library_kernel(trains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(attention._BFloat16Attention, "apply", lambda *args: calls.append(args) or args[2])
    q, k, v = (x.requires_grad_(trains) for x in inputs(1, 2, 2, 4))
    attend(q, k, v)  # fp32
    assert not calls
    with torch.autocast("cpu", torch.bfloat16):
        attend(q, k, v)
    assert bool(calls) == trains
    with torch.no_grad():
        attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert len(calls) == int(trains)
