"""uint8 [H, W, 3] → uint8 [height, width, 3], bicubic with antialiasing, in numpy: PyTorch's values to the last bit.

An exact twin of `torch.nn.functional.interpolate(mode="bicubic", antialias=True, align_corners=False)` as it treats
uint8 channels-last pixels on a CPU, for processes that do without PyTorch: first the width, then the height, weights as
integers of 16 bits, and whole numbers after each of the two passes.

The sums of products are taken by BLAS in floating point, and are exact: no partial sum, in whatever order, needs more
bits than the type has. Outputs go in blocks, each of which is a product with a small dense matrix, most of whose zeros
lie outside of it.

Shapes: M input and N output pixels of an axis, K most weights of one output
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_BLOCK = 8  # outputs of one product: with more of them more of its matrix is zeros
# OpenBLAS shares larger products among threads of its own, for which those that read other pictures would have to wait.
_MOST_MULTIPLICATIONS = 2**18
_MIDDLE = 128  # taken off the pixels, so that sums need one bit less
_LONGEST_KEPT = 2**14  # pixels of an axis; its matrices take up to 100 bytes for each


class _Block(NamedTuple):
    """A few neighbouring outputs.

    Attributes:
        outputs, inputs: which they are, and what they are made of.
        matrix: [outputs, inputs]: weights, which are whole numbers times a power of two.
        middle: [outputs, 1]: what the sums of centred pixels lack, and the half that rounding down asks for.
    """

    outputs: slice
    inputs: slice
    matrix: NDArray[Any]
    middle: NDArray[Any]


def resample(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] → uint8 [height, width, 3], contiguous; the very same array if it has that size already."""
    if picture.shape[1] != width:
        picture = _turned(_resample_rows(_turned(picture), width))
    if picture.shape[0] != height:
        picture = _resample_rows(picture, height)
    return picture


def _turned(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] → uint8 [W, H, 3], contiguous. A pixel is one element, which is copied in half of the time."""
    pixel = np.dtype((np.void, 3))
    return np.ascontiguousarray(np.ascontiguousarray(picture).view(pixel)[..., 0].T)[..., None].view(np.uint8)


def _resample_rows(picture: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    """uint8 [M, W, 3] → uint8 [N, W, 3]."""
    rows, columns, channels = picture.shape
    make = _blocks if rows <= _LONGEST_KEPT else _blocks.__wrapped__
    blocks = make(rows, height)
    flat = picture.reshape(rows, columns * channels)
    result = np.empty((height, columns * channels), np.uint8)
    step = max(_MOST_MULTIPLICATIONS // max(block.matrix.size for block in blocks), 16)
    for start in range(0, columns * channels, step):
        chunk = slice(start, start + step)
        for block in blocks:
            dtype = block.matrix.dtype
            sums = block.matrix @ np.subtract(flat[block.inputs, chunk], dtype.type(_MIDDLE), dtype=dtype)
            sums += block.middle
            np.clip(sums, 0, 255, out=sums)
            result[block.outputs, chunk] = sums  # what is behind the point is dropped
    return result.reshape(height, columns, channels)


@lru_cache(maxsize=16)
def _blocks(size: int, wanted: int) -> tuple[_Block, ...]:
    """What makes `wanted` pixels of `size`."""
    weights_NK, first_N, dtype = _axis_weights(size, wanted)
    middle_N1 = (_MIDDLE * weights_NK.sum(axis=1, keepdims=True) + 0.5).astype(dtype)
    made = []
    for start in range(0, wanted, _BLOCK):
        outputs = slice(start, min(start + _BLOCK, wanted))
        weights, firsts = weights_NK[outputs], first_N[outputs]
        first = int(firsts[0])
        places = (firsts - first)[:, None] + np.arange(weights.shape[1])
        matrix = np.zeros((len(weights), places.max() + 1), dtype)
        np.put_along_axis(matrix, places, weights, axis=1)
        # Behind the last pixel there are only the zeros of outputs that have fewer weights than others.
        matrix = matrix[:, : size - first]
        made.append(_Block(outputs, slice(first, first + matrix.shape[1]), matrix, middle_N1[outputs]))
    return tuple(made)


def _axis_weights(size: int, wanted: int) -> tuple[NDArray[np.float64], NDArray[np.int64], type[np.floating[Any]]]:
    """What makes `wanted` pixels of `size`, in the order of operations of PyTorch.

    Returns:
        The weights [N, K], whole numbers times 2**-precision, with zeros behind those of outputs that have fewer; where
        the inputs of each output begin [N]; and the smallest type in which all sums of centred pixels are exact.
    """
    scale = size / wanted
    support = 2.0 * max(scale, 1.0)
    most = ceil(support) * 2 + 1
    centre_N1 = scale * (np.arange(wanted)[:, None] + 0.5)
    first_N1 = np.maximum((centre_N1 - support + 0.5).astype(np.int64), 0)
    count_N1 = np.clip(np.minimum((centre_N1 + support + 0.5).astype(np.int64), size) - first_N1, 0, most)
    steps_K = np.arange(count_N1.max())
    weights_NK = _cubic((steps_K + first_N1 - centre_N1 + 0.5) * (1.0 / scale if scale >= 1.0 else 1.0))
    weights_NK[steps_K >= count_N1] = 0.0
    weights_NK /= np.cumsum(weights_NK, axis=1)[:, -1:]  # summed from the left, as there
    precision = _precision(float(weights_NK.max()))
    whole_NK = np.trunc(weights_NK * 2.0**precision + np.where(weights_NK < 0, -0.5, 0.5))
    # 24 bits hold every sum of centred pixels, and all that is left of 256 once the middle is added.
    fits = np.abs(whole_NK).sum(axis=1).max() * _MIDDLE <= 2**24 and precision <= 16
    return whole_NK * 2.0**-precision, first_N1[:, 0], np.float32 if fits else np.float64


def _precision(largest: float) -> int:
    """Bits behind the point with which the largest weight still is an integer of 16 bits."""
    return next((bits for bits in range(22) if int(0.5 + largest * 2 ** (bits + 1)) >= 2**15), 22)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution with a = -0.5."""
    a = -0.5
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
