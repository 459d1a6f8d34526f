"""Weights of linear layers in fewer bits, some rows at a time: the head alone is a gigabyte in fp32.

Shapes:  N outputs · K inputs · B blocks of the inputs · n rows at once
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketvlm.export.onnx.pieces import Piece, Scratch, each_part, size_of

# Inputs that share a scale in 4 bits, the largest that divides them. Fewer scales are fewer bytes and operations: 128
# take 0.6 of the time of 32 in steps, 0.7 in prompts, for a quarter more error (after the search for scales).
BLOCKS = (128, 64, 32)
# Steps between zero and the value of largest magnitude that are tried for each block. More than 8 clip that value.
SPANS = (8.0, 7.6, 8.6, 9.2, 10.0, 11.0)
MIXED = 32  # inputs that a rotation mixes, at most: 128 bring no more, and take 7 % of a prompt's time instead of 2

Array = NDArray[Any]


class Once:
    """Two arrays that are made together and asked for one by one, in any order; neither is kept longer than needed."""

    def __init__(self, make: Callable[[], tuple[Array, Array]]) -> None:
        self.make = make
        self.left: dict[int, Array] = {}

    def __call__(self, part: int) -> Array:
        if part not in self.left:
            self.left = dict(enumerate(self.make()))
        return self.left.pop(part)


def rotation(inputs: int) -> Array | None:
    """The orthogonal matrix fp32 [b, b] that mixes blocks of inputs: Hadamard's, b a power of two up to `MIXED`; None
    where no block of several divides the inputs."""
    matrix, size = np.ones((1, 1), np.float32), math.gcd(inputs, MIXED)
    while len(matrix) < size:  # Sylvester's construction
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return None if size == 1 else matrix * np.float32(size**-0.5)


def as_int8(pieces: Sequence[Piece], mix: Array | None = None) -> tuple[Array, Array]:
    """Symmetric, a scale for each output: int8 [K, N] (as ONNX multiplies) and fp32 [N].

    Args:
        mix: [b, b], orthogonal and symmetric; the weights are those of inputs that it mixed, b at a time.
    """
    outputs, inputs = size_of(pieces)
    values, scales = np.empty((inputs, outputs), np.int8), np.empty(outputs, np.float32)

    def work(place: slice, rows: Array, scratch: Scratch) -> None:
        if mix is not None:
            blocks = rows.reshape(-1, len(mix))
            rows = np.matmul(blocks, mix, out=scratch("mixed", blocks.shape)).reshape(rows.shape)
        steps = np.abs(rows, out=scratch("steps", rows.shape))
        largest = np.take_along_axis(steps, steps.argmax(1)[:, None], 1)
        scale = np.maximum(largest, np.float32(1e-12)) / np.float32(127)
        with np.errstate(invalid="ignore"):  # the scale of what is no number is none
            np.rint(np.divide(rows, scale, out=steps), out=steps)
            whole = scratch("whole", rows.shape, np.int8)
            np.copyto(whole, steps, casting="unsafe")
        values[:, place] = whole.T
        scales[place] = scale[:, 0]

    each_part(pieces, work)
    return values, scales


def block_of(inputs: int) -> int | None:
    """Inputs of a 4-bit block; None where whole blocks cannot be made."""
    return next((block for block in BLOCKS if inputs % block == 0), None)


def as_int4(pieces: Sequence[Piece]) -> tuple[Array, Array]:
    """A scale for each block of `block_of(K)` inputs; values 0 to 15 stand for -8 to 7 times the scale.

    The scale is signed, so that the value of largest magnitude is negative, where there is one step more (as in the
    4-bit blocks of GGML). Of some spans the one with the least squared error is kept.

    Returns:
        uint8 [N, B, block / 2], two values a byte with the first in the low half; fp32 [N, B].
    """
    outputs, inputs = size_of(pieces)
    block = block_of(inputs)
    assert block is not None, inputs
    blocks = inputs // block
    values, scales = np.empty((outputs, blocks, block // 2), np.uint8), np.empty((outputs, blocks), np.float32)

    def work(place: slice, rows: Array, scratch: Scratch) -> None:
        with np.errstate(all="ignore"):  # the scale of what is no number is none
            steps, scale = _nearest_steps(rows.reshape(-1, block), scratch)
            packed = scratch("packed", steps.shape, np.uint8)
            np.copyto(packed, np.add(steps, np.float32(8), out=steps), casting="unsafe")
        values[place] = (packed[..., 0::2] | (packed[..., 1::2] << 4)).reshape(-1, blocks, block // 2)
        scales[place] = scale.reshape(-1, blocks)

    each_part(pieces, work)
    return values, scales


def _nearest_steps(blocks: Array, scratch: Scratch) -> tuple[Array, Array]:
    """[n, block] as whole steps from -8 to 7, in memory of `scratch`, and the scales [n, 1] of the blocks that come
    closest."""
    steps, other = scratch("steps", blocks.shape), scratch("other", blocks.shape)
    at = np.abs(blocks, out=other).argmax(1)
    largest = np.take_along_axis(blocks, at[:, None], 1)
    best_divisor, best_scale = np.full_like(largest, np.inf), np.zeros_like(largest)
    least = np.full_like(largest, np.inf)
    for span in SPANS:
        scale = largest / np.float32(-span)
        divisor = np.where(scale == 0, np.float32(1), scale)
        _steps(blocks, divisor, steps)
        # The best scale of these steps, by least squares.
        scale = _dot(blocks, steps) / np.maximum(_dot(steps, steps), np.float32(1))
        np.subtract(np.multiply(steps, scale, out=other), blocks, out=other)
        error = _dot(other, other)
        better = ~(error >= least)  # also where a weight is NaN, which must not become a zero
        best_divisor, best_scale = np.where(better, divisor, best_divisor), np.where(better, scale, best_scale)
        least = np.minimum(error, least)
    return _steps(blocks, best_divisor, steps), best_scale


def _steps(blocks: Array, divisor: Array, out: Array) -> Array:
    np.rint(np.divide(blocks, divisor, out=out), out=out)
    return np.clip(out, np.float32(-8), np.float32(7), out=out)


def _dot(a: Array, b: Array) -> Array:
    """[n, 1] products of rows of both."""
    products: Array = np.einsum("nb,nb->n", a, b)[:, None]
    return products


def from_int8(values: Array, scales: Array) -> Array:
    """The weights [N, K] that `as_int8` stands for."""
    return (values.astype(np.float32) * scales).T


def from_int4(values: Array, scales: Array) -> Array:
    """The weights [N, K] that `as_int4` stands for."""
    steps = np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:2], -1).astype(np.float32) - 8
    return (steps * scales[..., None]).reshape(len(values), -1)
