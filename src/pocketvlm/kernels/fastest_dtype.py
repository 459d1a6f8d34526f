"""What this machine multiplies fastest: chosen by measuring, since processors that know bfloat16 differ by ten times in
how fast they are at it."""

from __future__ import annotations

import statistics
import time

import torch

ROUNDS = 7
GAIN = 1.1  # bfloat16 must be this many times as fast: casts around the products cost something, too


def fastest_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where its products are faster than those of fp32, measured on a CPU, in a moment, with products as
    those of a small tower."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    return torch.bfloat16 if _seconds(torch.float32) > GAIN * _seconds(torch.bfloat16) else torch.float32


def _seconds(dtype: torch.dtype) -> float:
    """The median time of a layer's product in `dtype`."""
    rows, weight = torch.randn(2048, 192, dtype=dtype), torch.randn(192, 512, dtype=dtype)
    times = []
    for _ in range(ROUNDS + 2):
        began = time.perf_counter()
        rows @ weight
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])
