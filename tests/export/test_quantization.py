"""Weights in fewer bits: never further off than half a step, the same however they are cut into pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketvlm.errors import CheckpointError
from pocketvlm.export.onnx import pieces
from pocketvlm.export.onnx.pieces import Given, as_fp32
from pocketvlm.export.onnx.quantization import (
    BLOCKS,
    SPANS,
    Once,
    as_int4,
    as_int8,
    block_of,
    from_int4,
    from_int8,
    rotation,
)

Array = NDArray[np.float32]


def weights(outputs: int, blocks: int, seed: int) -> Array:
    random = np.random.default_rng(seed)
    scales = random.random((outputs, 1), np.float32) * 3
    return random.standard_normal((outputs, blocks * min(BLOCKS)), np.float32) * scales


SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 8), st.integers(0, 99))


@given(SHAPES)
def test_int8_is_off_by_half_a_step_of_its_output_at_most(shape: tuple[int, int, int]) -> None:
    w = weights(*shape)
    values, scales = as_int8([Given(w)])
    assert values.shape == w.T.shape
    assert np.abs(values).max(initial=0) <= 127
    assert (np.abs(from_int8(values, scales) - w) <= scales[:, None] * 0.501).all()


@given(SHAPES)
def test_the_largest_weight_of_an_output_is_127_steps_in_int8(shape: tuple[int, int, int]) -> None:
    """None of the range is given away, and none is passed: a step more or less would be seen nowhere else."""
    w = weights(*shape)
    values, _ = as_int8([Given(w)])
    at = np.abs(w).argmax(1)
    largest = w[np.arange(len(w)), at]
    assert (largest != 0).all()
    assert (values[at, np.arange(len(w))] == np.sign(largest) * 127).all()


@given(SHAPES)
def test_int4_is_no_further_off_than_plain_rounding_and_within_its_steps(shape: tuple[int, int, int]) -> None:
    w = weights(*shape)
    values, scales = as_int4([Given(w)])
    block = block_of(w.shape[1])
    assert block is not None
    assert values.shape == (*scales.shape, block // 2)
    true = w.reshape(*scales.shape, block)
    error = np.square(from_int4(values, scales).reshape(true.shape) - true).sum(-1)
    largest = np.take_along_axis(true, np.abs(true).argmax(-1)[..., None], -1)
    plain = np.square(np.clip(np.round(true / (largest / -8)), -8, 7) * (largest / -8) - true).sum(-1)
    assert (error <= plain * 1.0001 + 1e-6).all()


def test_a_search_for_scales_pays() -> None:
    w = np.random.default_rng(0).standard_normal((64, 1024), np.float32)
    error = np.square(from_int4(*as_int4([Given(w)])) - w).mean()
    assert error < 0.0097  # of a variance of 1; without the search 0.0106


@pytest.mark.parametrize(("inputs", "block"), [(1024, 128), (192, 64), (96, 32), (48, None)])
def test_blocks_are_as_large_as_the_inputs_allow(inputs: int, block: int | None) -> None:
    assert block_of(inputs) == block


@given(SHAPES, st.integers(1, 5), st.integers(1, 3))
def test_pieces_are_one_matrix_whatever_the_rows_at_once(shape: tuple[int, int, int], rows: int, threads: int) -> None:
    w = weights(*shape)
    cut = len(w) // 2
    with pytest.MonkeyPatch.context() as patch:
        made = [make([Given(w)]) for make in (as_int8, as_int4)]
        patch.setattr(pieces, "VALUES", rows * w.shape[1])
        patch.setattr(pieces, "usable_cores", lambda: threads)
        for whole, make in zip(made, (as_int8, as_int4), strict=True):
            for one, other in zip(whole, make([Given(w[:cut]), Given(w[cut:])]), strict=True):
                assert np.array_equal(one, other)
        assert np.array_equal(as_fp32([Given(w[:cut]), Given(w[cut:])]), w)
        assert np.array_equal(as_fp32([Given(w[:, 0])]), w[:, 0])


def plain_int8(w: torch.Tensor, mix: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """As PyTorch has it, without regard for memory."""
    if mix is not None:
        w = (w.unflatten(1, (-1, len(mix))) @ mix).flatten(1)
    scale = w.abs().amax(1).clamp(min=1e-12) / 127
    return (w / scale[:, None]).round().to(torch.int8).T, scale


def plain_int4(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As PyTorch has it: the steps, and the scale of each block."""
    blocks = w.unflatten(1, (-1, block_of(w.shape[1]) or 1))
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    tried = []
    for span in SPANS:
        steps = (blocks / (largest / -span)).round().clamp(-8, 7)
        scale = (blocks * steps).sum(-1, keepdim=True) / (steps * steps).sum(-1, keepdim=True)
        tried.append((steps, scale, (steps * scale - blocks).square().sum(-1, keepdim=True)))
    steps, scales, errors = (torch.stack(part) for part in zip(*tried, strict=True))
    best = errors.argmin(0, keepdim=True)
    return steps.take_along_dim(best, 0)[0].flatten(1), scales.take_along_dim(best, 0)[0].squeeze(-1)


@given(SHAPES)
def test_it_is_what_pytorch_makes_but_for_ties(shape: tuple[int, int, int]) -> None:
    """Weights of bfloat16, as published ones are, have many equal ones and many halves of steps."""
    w = torch.from_numpy(weights(*shape)).bfloat16().float()
    values, scales = as_int8([Given(w.numpy())])
    for got, true in zip((values, scales), plain_int8(w, None), strict=True):
        assert np.array_equal(got, true.numpy())
    mix = rotation(w.shape[1])
    assert mix is not None
    values, scales = as_int8([Given(w.numpy())], mix)
    steps, scale = plain_int8(w, torch.from_numpy(mix))
    np.testing.assert_allclose(scales, scale.numpy(), rtol=1e-6)
    assert np.abs(values.astype(int) - steps.numpy()).max() <= 1
    halves, scales = as_int4([Given(w.numpy())])
    steps, scale = plain_int4(w)
    true = (steps.unflatten(1, (scales.shape[1], -1)) * scale[..., None]).flatten(1)
    close = np.isclose(scales, scale.numpy(), rtol=1e-5)
    assert close.mean() > 0.95  # of two spans that are as good, either
    got = from_int4(halves, scales).reshape(*scales.shape, -1)[close]
    np.testing.assert_allclose(got, true.numpy().reshape(*scales.shape, -1)[close], rtol=1e-5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_becomes_no_zero(wrong: float) -> None:
    w = weights(3, 8, 0)
    w[1, 7] = wrong
    with np.errstate(invalid="ignore"):
        rows, blocks = from_int8(*as_int8([Given(w)])), from_int4(*as_int4([Given(w)])).reshape(3, 2, 128)
    assert np.isfinite(rows).all(-1).tolist() == [True, False, True]
    blocks = np.isfinite(blocks).all(-1)
    assert blocks.tolist() == [[True, True], [False, True], [True, True]]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_a_thread_is_raised_and_ends_the_others(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Given):
        def rows(self, start: int, stop: int) -> Array:
            read.append((start, stop))
            raise CheckpointError("it is gone")

    read: list[tuple[int, int]] = []
    monkeypatch.setattr(pieces, "usable_cores", lambda: threads)
    monkeypatch.setattr(pieces, "VALUES", 1)
    with pytest.raises(CheckpointError, match="it is gone"):
        as_int8([Broken(weights(1000, 1, 0))])
    assert len(read) <= threads


def test_zeros_stay_zeros() -> None:
    w = [Given(np.zeros((3, 128), np.float32))]
    assert not from_int8(*as_int8(w)).any()
    assert not from_int4(*as_int4(w)).any()


def test_what_is_made_together_is_made_once_for_both() -> None:
    made = []

    def make() -> tuple[np.ndarray, np.ndarray]:
        made.append(1)
        return np.zeros(1), np.ones(1)

    once = Once(make)
    assert (once(1)[0], once(0)[0], len(made)) == (1, 0, 1)
    assert not once.left
    assert (once(0)[0], len(made)) == (0, 2)
