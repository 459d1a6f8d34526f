"""Where the arrays of a cache are: NumPy's in the memory of the machine, or PyTorch's on a device.

The caches work on both with what the two have in common: slices, assignment, indices, `reshape` and `swapaxes`. What
differs is here and in `torch_memory`, so that a cache of ONNX Runtime needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

Array = Any  # NDArray or Tensor, the same throughout one cache
ALIGNMENT = 64  # bytes: a line of the processor's cache, and its widest vectors


class Memory(Protocol):
    """Makes the arrays of one cache.

    Attributes:
        dtype: of keys, values and conv inputs, by the array library's name; recurrent states are fp32.
        device: where they are, likewise.
    """

    dtype: Any
    device: Any

    @property
    def itemsize(self) -> int:
        """Bytes of one number of `dtype`."""
        ...

    def zeros(self, shape: Sequence[int], *, is_fp32: bool = False) -> Array:
        """Return zeros of `dtype`, or of fp32."""
        ...

    def empty(self, shape: Sequence[int]) -> Array:
        """Return memory of `dtype` with anything in it."""
        ...

    def copy(self, array: Array) -> Array:
        """Return a copy, in memory of its own."""
        ...

    def index(self, numbers: Sequence[Any]) -> Array:
        """Return indices of rows, or several of equal length, where the arrays are."""
        ...


class HostMemory:
    """NumPy's fp32 arrays."""

    dtype, device = np.dtype(np.float32), "cpu"

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def zeros(self, shape: Sequence[int], *, is_fp32: bool = False) -> Array:
        del is_fp32  # all are
        size = int(np.prod(shape, dtype=np.int64)) * self.itemsize
        bytes_ = np.zeros(size + ALIGNMENT, np.uint8)
        start = -bytes_.ctypes.data % ALIGNMENT
        return bytes_[start : start + size].view(self.dtype).reshape(tuple(shape))

    def empty(self, shape: Sequence[int]) -> Array:
        return self.zeros(shape)  # the system gives zeros, and only where something is written

    def copy(self, array: Array) -> Array:
        return array.copy()

    def index(self, numbers: Sequence[Any]) -> Array:
        return np.array(numbers, np.int64)
