"""Prompts by fla get what fla's signature asks for; without it they get our own routine and the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.invariants import assert_close
from torch import Tensor

from pocketvlm.kernels import prompt_delta_rule as module
from pocketvlm.kernels.gated_delta_rule import naive_gated_delta_rule, normalise_query_key
from pocketvlm.kernels.prompt_delta_rule import plan_prompts, prompt_gated_delta_rule, runs_fla

KEY_HEADS, HEADS, KEY, VALUE = 2, 4, 5, 6
LENGTHS = [3, 1, 70]


def prompts(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """q, k, v, g, beta and states, g and beta in fp32 as the model makes them."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS)
    q, k = torch.randn(2, tokens, KEY_HEADS, KEY, generator=generator)
    v = torch.randn(tokens, HEADS, VALUE, generator=generator)
    g, beta = -torch.rand(tokens, HEADS, generator=generator), torch.rand(tokens, HEADS, generator=generator)
    state = torch.randn(len(LENGTHS), HEADS, KEY, VALUE, generator=generator)
    return q.to(dtype), k.to(dtype), v.to(dtype), g, beta, state


def recurrence(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    q, k = (x.repeat_interleave(HEADS // KEY_HEADS, dim=1) for x in normalise_query_key(q, k))
    return naive_gated_delta_rule(q, k, v.float(), g, beta, LENGTHS, state)


def fake_fla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """fla 0.6's `chunk_gated_delta_rule` as its documentation has it, by the recurrence."""
    assert use_qk_l2norm_in_kernel
    assert q.shape == k.shape == (1, sum(LENGTHS), KEY_HEADS, KEY)
    assert v.shape == (1, sum(LENGTHS), HEADS, VALUE)
    assert g.shape == beta.shape == (1, sum(LENGTHS), HEADS)
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    assert g.dtype == torch.float32
    assert initial_state is not None
    assert initial_state.dtype == torch.float32
    assert cu_seqlens is not None
    assert cu_seqlens_cpu is not None
    assert cu_seqlens.dtype == torch.long
    assert cu_seqlens.tolist() == cu_seqlens_cpu.tolist() == [0, 3, 4, 74]
    assert scale == KEY**-0.5
    out, state = recurrence(q[0], k[0], v[0], g[0], beta[0], initial_state)
    return out.to(q.dtype)[None], state if output_final_state else None


def test_fla_is_called_as_its_signature_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "runs_fla", lambda *_: True)
    monkeypatch.setattr(module, "_fla", lambda: fake_fla)
    inputs = prompts(torch.bfloat16)
    before = inputs[5].clone()
    out, state = prompt_gated_delta_rule(*inputs[:5], plan_prompts(LENGTHS, "cpu", torch.bfloat16), inputs[5])
    expected, expected_state = recurrence(*inputs)
    assert out.shape == expected.shape
    assert_close(out.float(), expected, 2.0**-8)
    assert_close(state, expected_state)
    assert torch.equal(inputs[5], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_our_routine_takes_the_same_arguments(dtype: torch.dtype) -> None:
    inputs = prompts(dtype)
    got = prompt_gated_delta_rule(*inputs[:5], plan_prompts(LENGTHS, "cpu", dtype), inputs[5])
    for ours, expected in zip(got, recurrence(*inputs), strict=True):
        assert ours.dtype == torch.float32
        assert_close(ours, expected)


@pytest.mark.parametrize(
    ("device", "dtype", "missing", "expected"),
    [
        ("cuda", torch.bfloat16, "", True),
        ("cuda:1", torch.float16, "", True),
        ("cuda", torch.float32, "", False),
        ("cpu", torch.bfloat16, "", False),
        ("cuda", torch.bfloat16, "fla", False),
        ("cuda", torch.bfloat16, "triton", False),
    ],
)
def test_fla_is_for_half_precision_on_a_gpu_where_it_is_installed(
    device: str, dtype: torch.dtype, missing: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_installed(package: str) -> Any:
        return package != missing

    monkeypatch.setattr(module, "is_installed", is_installed)
    assert runs_fla(torch.device(device), dtype) is expected
