"""The chunked and the single-step delta rule equal the recurrence token by token."""

from __future__ import annotations

import pytest
import torch
from helpers.invariants import assert_as_exact, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pocketvlm.kernels.gated_delta_rule import (
    chunk_gated_delta_rule,
    naive_gated_delta_rule,
    normalise_query_key,
    plan_chunks,
    step_gated_delta_rule,
)

LENGTHS = [1, 3, 63, 64, 65, 130, 257]
HEADS, KEY, VALUE = 2, 8, 6
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def delta_input(
    tokens: int, seed: int = 0, *, decay: float | None = None, dtype: torch.dtype = torch.float32
) -> Inputs:
    """q, k (normalised), v, g, beta as the model makes them; `decay` fixes the log decay instead."""
    generator = torch.Generator().manual_seed(seed * 1000 + tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(tokens, HEADS, *shape, generator=generator)

    q, k = normalise_query_key(normal(KEY), normal(KEY))
    g = -torch.nn.functional.softplus(normal()) * torch.tensor([0.05, 2.0]) if decay is None else normal() * 0 + decay
    return tuple(x.to(dtype) for x in (q, k, normal(VALUE), g, normal().sigmoid()))


def states(count: int, *, zero: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.randn(count, HEADS, KEY, VALUE, generator=torch.Generator().manual_seed(9)).to(dtype)
    return torch.zeros_like(random) if zero else random


def chunked(inputs: Inputs, lengths: list[int], state: Tensor, chunk: int = 64) -> tuple[Tensor, Tensor]:
    return chunk_gated_delta_rule(*inputs, plan_chunks(lengths, chunk=chunk), state)


@pytest.mark.parametrize("zero", [True, False], ids=["fresh", "continued"])
@pytest.mark.parametrize("length", LENGTHS)
def test_one_sequence_equals_plain_twin(length: int, zero: bool) -> None:
    inputs, state = delta_input(length), states(1, zero=zero)
    for got, expected in zip(
        chunked(inputs, [length], state), naive_gated_delta_rule(*inputs, [length], state), strict=True
    ):
        assert_close(got, expected)


@settings(max_examples=25)
@given(st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=5), st.booleans(), st.integers(0, 9))
def test_packed_sequences_in_any_order_equal_plain_twin(lengths: list[int], zero: bool, seed: int) -> None:
    inputs, state = delta_input(sum(lengths), seed), states(len(lengths), zero=zero)
    for got, expected in zip(
        chunked(inputs, lengths, state), naive_gated_delta_rule(*inputs, lengths, state), strict=True
    ):
        assert_close(got, expected)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 9))
def test_the_size_of_a_chunk_is_irrelevant(lengths: list[int], chunk: int) -> None:
    inputs, state = delta_input(sum(lengths)), states(len(lengths))
    for got, expected in zip(chunked(inputs, lengths, state, chunk), chunked(inputs, lengths, state), strict=True):
        assert_close(got, expected)


@settings(max_examples=30)
@given(st.integers(2, 150), st.data())
def test_a_cut_anywhere_changes_nothing(length: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, length - 1))
    inputs, state = delta_input(length), states(1)
    whole, whole_state = chunked(inputs, [length], state)
    first, middle = chunked(tuple(x[:cut] for x in inputs), [cut], state)
    second, last = chunked(tuple(x[cut:] for x in inputs), [length - cut], middle)
    assert_close(torch.cat([first, second]), whole)
    assert_close(last, whole_state)


@settings(max_examples=30)
@given(st.lists(st.sampled_from([1, 3, 64, 70]), min_size=2, max_size=4), st.data())
def test_changing_one_sequence_leaves_the_bits_of_the_others(lengths: list[int], data: st.DataObject) -> None:
    changed = data.draw(st.integers(0, len(lengths) - 1))
    inputs, state = delta_input(sum(lengths)), states(len(lengths))
    other, other_state = tuple(x.clone() for x in inputs), state.clone()
    for tensor in other[:3]:
        tensor.split(lengths)[changed].mul_(-0.5)
    other_state[changed] += 7
    before, after = chunked(inputs, lengths, state), chunked(other, lengths, other_state)
    for b, (one, two) in enumerate(zip(before[0].split(lengths), after[0].split(lengths), strict=True)):
        assert torch.equal(one, two) == (b != changed)
        assert torch.equal(before[1][b], after[1][b]) == (b != changed)


@pytest.mark.parametrize("batch", [1, 3])
def test_single_steps_equal_plain_twin(batch: int) -> None:
    steps, lengths = 9, [9] * batch
    inputs, state = delta_input(steps * batch), states(batch)
    expected, expected_state = naive_gated_delta_rule(*inputs, lengths, state)
    running = state.clone()
    by_step = [x.view(batch, steps, *x.shape[1:]) for x in inputs]
    outs = [step_gated_delta_rule(*(x[:, t] for x in by_step), running) for t in range(steps)]
    assert_close(torch.stack(outs, 1).flatten(0, 1), expected)
    assert_close(running, expected_state)


@pytest.mark.parametrize("decay", [-80.0, 0.0])
@pytest.mark.parametrize("lengths", [[130], [3, 65]])
def test_extreme_decays_stay_finite_and_equal_plain_twin(lengths: list[int], decay: float) -> None:
    inputs, state = delta_input(sum(lengths), decay=decay), states(len(lengths))
    for got, expected in zip(
        chunked(inputs, lengths, state), naive_gated_delta_rule(*inputs, lengths, state), strict=True
    ):
        assert_close(got, expected)


@settings(max_examples=20)
@given(st.lists(st.sampled_from([-80.0, -20.0, -1.0, -1e-3, 0.0]), min_size=65, max_size=70))
def test_sudden_forgetting_between_slow_decays_equals_plain_twin(decays: list[float]) -> None:
    inputs, state = delta_input(len(decays)), states(1)
    inputs = (*inputs[:3], torch.tensor(decays)[:, None].expand(-1, HEADS), inputs[4])
    for got, expected in zip(
        chunked(inputs, [len(decays)], state), naive_gated_delta_rule(*inputs, [len(decays)], state), strict=True
    ):
        assert_close(got, expected)


@pytest.mark.parametrize("lengths", [[5], [2, 5, 1]])
def test_gradients_equal_finite_differences(lengths: list[int]) -> None:
    inputs = delta_input(sum(lengths), dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (*inputs, states(len(lengths), dtype=torch.float64))]
    plan = plan_chunks(lengths, chunk=4)

    def rule(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return chunk_gated_delta_rule(*args[:5], plan, args[5])

    # Along random directions where there are several sequences, along every number of one.
    assert torch.autograd.gradcheck(rule, leaves, fast_mode=len(lengths) > 1)


@pytest.mark.parametrize("lengths", [[1], [65], [130, 3, 64]])
def test_gradients_equal_plain_twin(lengths: list[int]) -> None:
    inputs, state = delta_input(sum(lengths)), states(len(lengths))
    gradients = []
    for rule in (chunked, lambda args, sizes, s: naive_gated_delta_rule(*args, sizes, s)):
        leaves = [x.clone().requires_grad_() for x in (*inputs, state)]
        out, final = rule(tuple(leaves[:5]), lengths, leaves[5])
        gradients.append(torch.autograd.grad(out.square().sum() + final.square().sum(), leaves))
    for got, expected in zip(*gradients, strict=True):
        assert_close(got, expected, 3e-5)


@pytest.mark.parametrize("decay", [-80.0, -1.0, 0.0])
def test_gradients_stay_finite_under_extreme_decays(decay: float) -> None:
    leaves = [x.requires_grad_() for x in delta_input(130, decay=decay)]
    out, final = chunked(tuple(leaves), [130], states(1))
    for gradient in torch.autograd.grad(out.sum() + final.sum(), leaves):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("lengths", [[257], [64, 130, 3]])
@pytest.mark.parametrize("seed", range(3))
def test_error_is_at_most_twice_the_recurrence_in_fp32_against_fp64(lengths: list[int], seed: int) -> None:
    inputs, state = delta_input(sum(lengths), seed), states(len(lengths))
    exact = naive_gated_delta_rule(*(x.double() for x in inputs), lengths, state.double())
    plain = naive_gated_delta_rule(*inputs, lengths, state)
    for ours, twin, truth in zip(chunked(inputs, lengths, state), plain, exact, strict=True):
        assert_as_exact(ours, twin, truth, additions=max(lengths))


def test_normalised_queries_and_keys_have_the_stated_lengths() -> None:
    q, k = normalise_query_key(torch.randn(5, 2, 16) * 30, torch.randn(5, 2, 16) * 30)
    assert_close(q.norm(dim=-1), torch.full((5, 2), 0.25))
    assert_close(k.norm(dim=-1), torch.ones(5, 2))
    zero, _ = normalise_query_key(torch.zeros(1, 1, 16), torch.zeros(1, 1, 16))
    assert torch.equal(zero, torch.zeros(1, 1, 16))
