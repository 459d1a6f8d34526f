"""The packed convolution equals its plain twin, whatever stands beside a sequence."""

from __future__ import annotations

import pytest
import torch
from helpers.invariants import assert_as_exact, assert_close
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pocketvlm.kernels.causal_conv1d import naive_causal_conv1d, packed_causal_conv1d, plan_conv, step_causal_conv1d

LENGTHS = [1, 2, 3, 4, 5, 63, 64, 65, 130, 257]
CHANNELS = 6


def conv_input(
    lengths: list[int], taps: int = 4, *, zero_state: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths) + taps)
    x = torch.randn(sum(lengths), CHANNELS, generator=generator, dtype=dtype)
    weight = torch.randn(CHANNELS, taps, generator=generator, dtype=dtype)
    state = torch.randn(len(lengths), taps - 1, CHANNELS, generator=generator, dtype=dtype)
    return x, weight, torch.zeros_like(state) if zero_state else state


def packed(x: Tensor, weight: Tensor, lengths: list[int], state: Tensor) -> tuple[Tensor, Tensor]:
    return packed_causal_conv1d(x, weight, plan_conv(lengths, weight.shape[1]), state)


@pytest.mark.parametrize("taps", [2, 4])
@pytest.mark.parametrize("length", LENGTHS)
def test_one_sequence_equals_plain_twin(length: int, taps: int) -> None:
    x, weight, state = conv_input([length], taps)
    got, new_state = packed(x, weight, [length], state)
    expected, expected_state = naive_causal_conv1d(x, weight, [length], state)
    assert_close(got, expected)
    assert torch.equal(new_state, expected_state)


@given(st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=6), st.booleans())
def test_packed_sequences_equal_plain_twin(lengths: list[int], zero_state: bool) -> None:
    x, weight, state = conv_input(lengths, zero_state=zero_state)
    got, new_state = packed(x, weight, lengths, state)
    expected, expected_state = naive_causal_conv1d(x, weight, lengths, state)
    assert_close(got, expected)
    assert torch.equal(new_state, expected_state)


@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.data())
def test_changing_one_sequence_leaves_the_bits_of_the_others(lengths: list[int], data: st.DataObject) -> None:
    changed = data.draw(st.integers(0, len(lengths) - 1))
    x, weight, state = conv_input(lengths)
    other_x, other_state = x.clone(), state.clone()
    other_x.split(lengths)[changed].mul_(-1e3)
    other_state[changed] += 1e3
    before, after = (packed(*args, lengths, s) for args, s in (((x, weight), state), ((other_x, weight), other_state)))
    for b, (one, other) in enumerate(zip(before[0].split(lengths), after[0].split(lengths), strict=True)):
        assert torch.equal(one, other) == (b != changed)
        assert torch.equal(before[1][b], after[1][b]) == (b != changed)


@pytest.mark.parametrize("batch", [1, 3])
def test_single_steps_equal_plain_twin(batch: int) -> None:
    steps, lengths = 7, [7] * batch
    x, weight, state = conv_input(lengths)
    expected, expected_state = naive_causal_conv1d(x, weight, lengths, state)
    running = state.clone()
    outs = [step_causal_conv1d(x.view(batch, steps, -1)[:, t], weight, running) for t in range(steps)]
    assert_close(torch.stack(outs, 1).flatten(0, 1), expected)
    assert torch.equal(running, expected_state)


@given(st.integers(2, 40), st.data())
def test_a_cut_anywhere_changes_nothing(length: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, length - 1))
    x, weight, state = conv_input([length])
    whole, whole_state = packed(x, weight, [length], state)
    first, middle = packed(x[:cut], weight, [cut], state)
    second, last = packed(x[cut:], weight, [length - cut], middle)
    assert_close(torch.cat([first, second]), whole)
    assert torch.equal(last, whole_state)


@pytest.mark.parametrize("lengths", [[5], [1, 4, 2]])
def test_gradients_equal_plain_twin_and_finite_differences(lengths: list[int]) -> None:
    inputs = [t.requires_grad_() for t in conv_input(lengths, dtype=torch.float64)]

    def fast(x: Tensor, weight: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return packed(x, weight, lengths, state)

    assert torch.autograd.gradcheck(fast, inputs)
    plain = naive_causal_conv1d(inputs[0], inputs[1], lengths, inputs[2])
    for got, expected in zip(
        torch.autograd.grad(sum(out.square().sum() for out in fast(*inputs)), inputs),
        torch.autograd.grad(sum(out.square().sum() for out in plain), inputs),
        strict=True,
    ):
        assert_close(got, expected, 1e-12)


@pytest.mark.parametrize("lengths", [[257], [65, 3, 130]])
def test_error_is_at_most_twice_the_library_convolution_against_fp64(lengths: list[int]) -> None:
    x, weight, state = conv_input(lengths)
    exact, _ = naive_causal_conv1d(x.double(), weight.double(), lengths, state.double())
    library, _ = naive_causal_conv1d(x, weight, lengths, state)
    ours, _ = packed(x, weight, lengths, state)
    assert_as_exact(ours, library, exact, additions=weight.shape[1])


def test_half_precision_state_is_read_in_the_dtype_of_the_tokens() -> None:
    x, weight, state = conv_input([3, 2])
    got, new_state = packed(x, weight, [3, 2], state.bfloat16())
    expected, _ = packed(x, weight, [3, 2], state.bfloat16().float())
    assert torch.equal(got, expected)
    assert new_state.dtype == x.dtype
