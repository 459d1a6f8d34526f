"""What this machine can do at best: multiply in int8 and fp32, and read memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from pocketvlm.kernels.onnx_ops import library
from pocketvlm.kernels.onnx_ops.ceiling import operations_per_second
from pocketvlm.machine import usable_cores

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

    int8 is what the registers can do with the instructions of our operators; where these cannot be compiled, it is a
    product of ONNX Runtime's, which does less than the processor could.
    """
    threads, compiled = usable_cores(), library.compiled()
    a = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    found = {"fp32": 2 * SIDE**3 / _best(lambda: a @ a) / 1e9, "read": _read(threads) / 1e9}
    with suppress(OSError):  # a library that cannot be loaded from where it lies
        if compiled is not None:
            return found | {"int8": operations_per_second(compiled, threads) / 1e9}
    return found | {"int8": 2 * SIDE**3 / _best(_int8_product()) / 1e9}


def _read(threads: int) -> float:
    """Bytes a second that all cores together read, in an order that memory likes."""
    parts = np.array_split(np.ones(GIGABYTE // 8, np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:
        return GIGABYTE / _best(lambda: list(pool.map(np.max, parts)))


def _int8_product() -> Callable[[], object]:
    """A product of int8 weights with activations that are quantised on the fly, as the bundles have them."""
    from pocketvlm.engine.runners.onnx_runner import product_session
    from pocketvlm.export.onnx.product import int8_product

    session = product_session(int8_product(SIDE, SIDE))
    x = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    return lambda: session.run(None, {"x": x})
