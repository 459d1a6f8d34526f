"""Quantised weights in the order in which the compiled product reads them (`kernels/onnx_ops/quantized_product.h`).

Shapes:  N outputs · K inputs · B blocks of the inputs · P panels of 64 outputs · b bits
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

PANEL = 64  # outputs; the last panel is filled up with zeros
TOGETHER = 256  # panels made at once: the head has 3,877

Array = NDArray[Any]


def is_possible(inputs: int, block: int, *, rotated: bool = True) -> bool:
    """Whether the compiled product takes rows of so many inputs, in blocks of so many; a rotation mixes 32 of them."""
    return inputs % (32 if rotated else 16) == 0 and block % 16 == 0 and inputs % block == 0


def panels_of(outputs: int) -> int:
    """P"""
    return -(-outputs // PANEL)


def from_int8(values: Array, scales: Array) -> tuple[Array, Array]:
    """int8 [K, N] and fp32 [N] of `as_int8` to uint8 [P, K / 4, 64, 4] (128 stands for zero) and fp32 [P, 1, 64]."""
    inputs, outputs = values.shape
    packed = np.full((panels_of(outputs), inputs // 4, PANEL, 4), 128, np.uint8)
    for panels, columns in _parts(outputs):
        rows = values[:, columns].T.view(np.uint8) ^ 128  # two's complement, 128 higher
        packed[panels] = _by_panels(rows, 128).reshape(-1, PANEL, inputs // 4, 4).transpose(0, 2, 1, 3)
    return packed, _scales(scales[:, None])


def from_int4(values: Array, scales: Array) -> tuple[Array, Array]:
    """uint8 [N, B, block / 2] and fp32 [N, B] of `as_int4` to uint8 [P, K / 8, 64, 4] and fp32 [P, B, 64]: of eight
    inputs the first four in the lower halves of four bytes, the others in the upper."""
    outputs, inputs = len(values), 2 * values[0].size
    packed = np.empty((panels_of(outputs), inputs // 8, PANEL, 4), np.uint8)
    for panels, rows in _parts(outputs):
        pairs = _by_panels(values[rows].reshape(-1, inputs // 2), 0x88)
        steps = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(-1, PANEL, inputs // 8, 2, 4)
        packed[panels] = (steps[..., 0, :] | steps[..., 1, :] << 4).transpose(0, 2, 1, 3)
    return packed, _scales(scales)


def _parts(outputs: int) -> Iterator[tuple[slice, slice]]:
    """(panels, outputs) that belong together, some panels at a time."""
    for first in range(0, panels_of(outputs), TOGETHER):
        panels = slice(first, min(first + TOGETHER, panels_of(outputs)))
        yield panels, slice(panels.start * PANEL, min(panels.stop * PANEL, outputs))


def _by_panels(rows: Array, zero: int) -> Array:
    """[n, …] with as many more rows as fill the last panel."""
    return np.pad(rows, ((0, -len(rows) % PANEL), (0, 0)), constant_values=zero)


def _scales(scales: Array) -> Array:
    """[N, B] to [P, B, 64]."""
    return _by_panels(scales, 0).reshape(-1, PANEL, scales.shape[1]).transpose(0, 2, 1)
