"""How many int8 operations a second this processor can do at best, by its registers alone (`ceiling.h`)."""

from __future__ import annotations

import ctypes
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SECONDS = 0.05  # of a round
ROUNDS = 5


def operations_per_second(compiled: Path, threads: int = 1) -> float:
    """Operations a second (a product and its sum are two), the median of some rounds: of one thread by the time of the
    processor, so that a busy machine says what a quiet one does; of several together by the clock.

    Args:
        compiled: the library of operators; its instructions are measured, tiles where it uses them.
    """
    work = ctypes.CDLL(str(compiled)).pocketvlm_operations  # without the interpreter's lock
    work.restype, work.argtypes = ctypes.c_int64, [ctypes.c_int64]
    turns, took = 1000, 0.0
    while took < SECONDS:  # until a round is long enough to be timed
        turns *= 2
        began = time.thread_time()
        work(turns)
        took = time.thread_time() - began
    clock = time.thread_time if threads == 1 else time.perf_counter
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            began = clock()
            done = work(turns) if threads == 1 else sum(pool.map(work, [turns] * threads))
            rates.append(done / (clock() - began))
    return statistics.median(rates)
