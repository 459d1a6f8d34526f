"""Weights of linear layers in fewer bits, a few thousand rows at a time: the head alone is a gigabyte in fp32.

Weights come as PyTorch keeps them, [N, K] (outputs, inputs), in pieces that lie one below the other.

Shapes:  N outputs · K inputs · B blocks of the inputs
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Inputs that share a scale in 4 bits, the largest that divides them. Fewer scales are fewer bytes and operations: 128
# take 0.6 of the time of 32 in steps, 0.7 in prompts, for a quarter more error (after the search for scales).
BLOCKS = (128, 64, 32)
# Steps between zero and the value of largest magnitude that are tried for each block. More than 8 clip that value.
SPANS = (8.0, 7.6, 8.6, 9.2, 10.0, 11.0)
MIXED = 32  # inputs that a rotation mixes, at most: 128 bring no more, and take 7 % of a prompt's time instead of 2
ROWS = 1024  # outputs at once

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


def rows_of(pieces: Sequence[Tensor], count: int = ROWS) -> Iterator[tuple[slice, Tensor]]:
    """(place, fp32 rows) of all pieces, at most `count` rows each."""
    first = 0
    for piece in pieces:
        for rows in piece.detach().split(count):
            yield slice(first, first + len(rows)), rows.float()
            first += len(rows)


def size_of(pieces: Sequence[Tensor]) -> tuple[int, int]:
    """(N, K) of all pieces together."""
    return sum(len(piece) for piece in pieces), pieces[0].shape[1]


def as_fp32(pieces: Sequence[Tensor]) -> Array:
    """[N, K]"""
    out = np.empty(size_of(pieces), np.float32)
    for place, rows in rows_of(pieces):
        out[place] = rows.numpy()
    return out


def rotation(inputs: int) -> Array | None:
    """The orthogonal matrix fp32 [b, b] that mixes blocks of inputs: Hadamard's, b a power of two up to `MIXED`; None
    where no block of several divides the inputs."""
    matrix, size = np.ones((1, 1), np.float32), math.gcd(inputs, MIXED)
    while len(matrix) < size:  # Sylvester's construction
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return None if size == 1 else matrix * np.float32(size**-0.5)


def as_int8(pieces: Sequence[Tensor], mix: Array | None = None) -> tuple[Array, Array]:
    """Symmetric, a scale for each output: int8 [K, N] (as ONNX multiplies) and fp32 [N].

    Args:
        mix: [b, b], orthogonal and symmetric; the weights are those of inputs that it mixed, b at a time.
    """
    outputs, inputs = size_of(pieces)
    values, scales = np.empty((inputs, outputs), np.int8), np.empty(outputs, np.float32)
    for place, rows in rows_of(pieces):
        if mix is not None:
            rows = (rows.unflatten(1, (-1, len(mix))) @ torch.from_numpy(mix)).flatten(1)
        scale = rows.abs().amax(1).clamp(min=1e-12) / 127
        values[:, place] = (rows / scale[:, None]).round().to(torch.int8).T.numpy()
        scales[place] = scale.numpy()
    return values, scales


def block_of(inputs: int) -> int | None:
    """Inputs of a 4-bit block; None where whole blocks cannot be made."""
    return next((block for block in BLOCKS if inputs % block == 0), None)


def as_int4(pieces: Sequence[Tensor]) -> tuple[Array, Array]:
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
    for place, rows in rows_of(pieces):
        steps, scale = _nearest_steps(rows.unflatten(1, (blocks, block)))
        packed = steps.add_(8).to(torch.uint8)
        values[place] = (packed[..., 0::2] | (packed[..., 1::2] << 4)).numpy()
        scales[place] = scale.squeeze(2).numpy()
    return values, scales


def _nearest_steps(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """[…, block] as whole steps from -8 to 7, and the scales […, 1] of the blocks that come closest."""
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    best_steps, best_scale = torch.zeros_like(blocks), torch.zeros_like(largest)
    least = torch.full_like(largest, torch.inf)
    for span in SPANS:
        scale = largest / -span
        steps = (blocks / torch.where(scale == 0, 1.0, scale)).round_().clamp_(-8, 7)
        # The best scale of these steps, by least squares.
        squares = (steps * steps).sum(-1, keepdim=True)
        scale = (blocks * steps).sum(-1, keepdim=True) / squares.clamp(min=1)
        error = (steps * scale).sub_(blocks).square_().sum(-1, keepdim=True)
        better = ~(error >= least)  # also where a weight is NaN, which must not become a zero
        best_steps, best_scale = torch.where(better, steps, best_steps), torch.where(better, scale, best_scale)
        least = torch.minimum(error, least)
    return best_steps, best_scale


def from_int8(values: Array, scales: Array) -> Array:
    """The weights [N, K] that `as_int8` stands for."""
    return (values.astype(np.float32) * scales).T


def from_int4(values: Array, scales: Array) -> Array:
    """The weights [N, K] that `as_int4` stands for."""
    steps = np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:2], -1).astype(np.float32) - 8
    return (steps * scales[..., None]).reshape(len(values), -1)
