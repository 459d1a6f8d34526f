"""What this machine can do at best: multiply in int8 and fp32, and read memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch

from pocketvlm.errors import MissingExtraError

SIDE = 2048
GIGABYTE = 2**30


def _best(function: Callable[[], object], rounds: int = 5) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def measure() -> dict[str, float]:
    """`int8` and `fp32` in 10^9 operations a second (two a multiply-add), `read` in 10^9 bytes a second.

    Without the extra `onnx`, nothing here computes in int8, and its ceiling is left out.
    """
    memory = torch.ones(GIGABYTE // 4)
    a = torch.rand(SIDE, SIDE)
    found = {
        "fp32": 2 * SIDE**3 / _best(lambda: a @ a) / 1e9,
        "read": GIGABYTE / _best(memory.sum) / 1e9,
    }
    with suppress(MissingExtraError):
        found["int8"] = 2 * SIDE**3 / _best(_int8_product()) / 1e9
    return found


def _int8_product() -> Callable[[], object]:
    """A product of int8 weights with activations that are quantised on the fly, as the bundles have them."""
    from pocketvlm.engine.runners.onnx_runner import product_session
    from pocketvlm.export.onnx.product import int8_product

    session = product_session(int8_product(SIDE, SIDE))
    x = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    return lambda: session.run(None, {"x": x})
