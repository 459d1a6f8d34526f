"""In which order a view's patches stand in the tower, and where on the table of positions: plain numbers, in NumPy.

Shapes:  h, w patches of a view on each side
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketvlm.config import DownsampleMode
from pocketvlm.errors import ConfigError

Indices = NDArray[np.int64]

WINDOW = 4  # tokens in a 2 x 2 window

_LANES, _UNROLLED = 8, 16  # of PyTorch's `arange` on x86, with any instructions


@lru_cache(maxsize=512)
def window_order(height: int, width: int, mode: DownsampleMode) -> Indices:
    """[h * w] row-major patch numbers in window order: 4 x 4 blocks of 2 x 2 windows (16x) or 2 x 2 windows (4x)."""
    side = 4 if mode == "16x" else 2
    if height % side or width % side:
        raise ConfigError(f"a {mode} view of {height} x {width} patches is no multiple of {side} on each side")
    numbers = np.arange(height * width)
    if mode == "16x":
        blocks = numbers.reshape(height // 4, 2, 2, width // 4, 2, 2).transpose(0, 3, 1, 4, 2, 5)
    else:
        blocks = numbers.reshape(height // 2, 2, width // 2, 2).transpose(0, 2, 1, 3)
    return _kept(blocks.reshape(-1))


@lru_cache(maxsize=512)
def nearest_positions(height: int, width: int, buckets: int) -> Indices:
    """[h * w] rows of the square position table, nearest bucket on each axis.

    Which side of a boundary an edge case falls on decides exact parity, so this is not the place for tidier arithmetic:
    both sides are rounded to fp32 as the reference rounds them.
    """
    boundaries = _boundaries(buckets)
    rows, columns = (
        np.searchsorted(boundaries, np.arange(n, dtype=np.float32) / np.float32(n), side="right")
        for n in (height, width)
    )
    return _kept((rows[:, None] * buckets + columns).reshape(-1))


def _boundaries(buckets: int) -> NDArray[np.float32]:
    """fp32 [buckets - 1] (or one more, by rounding): what the reference's `torch.arange(1 / n, 1.0, 1 / n)` gives.

    That rounds the first number of each group of lanes and counts on from there; what is left behind the last pair of
    groups it counts from the beginning.
    """
    step = 1 / buckets
    number = np.arange(max(0, math.ceil((1.0 - step) / step)))
    exact = step + step * number
    first = (step + step * (number // _LANES * _LANES)).astype(np.float32).astype(np.float64)
    in_groups = number < len(number) // _UNROLLED * _UNROLLED
    return np.where(in_groups, first + step * (number % _LANES), exact).astype(np.float32)


def _kept(indices: Any) -> Indices:
    """The same numbers, which nobody may change: they are given to all who ask."""
    found: Indices = np.ascontiguousarray(indices, np.int64)
    found.flags.writeable = False
    return found
