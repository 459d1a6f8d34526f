"""Free memory goes back to the system, every so many requests."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from engine_runs import drive, make_request
from tiny_models import random_text, tiny_model

from pocketvlm.engine import heap
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.sampling_params import SamplingParams
from pocketvlm.engine.torch_runner import TorchRunner


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_gaps_between_what_is_kept_are_given_back() -> None:
    if heap._malloc_trim() is None:
        heap.release_free_memory()  # a C library without it: nothing happens
        return
    heap.release_free_memory()
    made = [bytearray(b"x" * 50_000) for _ in range(2000)]  # below what the library maps by itself
    kept = made[::100]
    made.clear()
    gc.collect()
    before = resident_bytes()
    heap.release_free_memory()
    assert resident_bytes() < before - 50_000_000
    assert len(kept) == 20


def test_the_engine_asks_for_it_every_so_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(heap, "REQUESTS_BETWEEN", 3)
    monkeypatch.setattr(heap, "release_free_memory", lambda: calls.append(1))
    runner = TorchRunner(tiny_model(0))
    engine = Engine(runner)
    for seed in range(7):
        engine.add(make_request(runner, random_text(5, seed), SamplingParams(temperature=0, max_tokens=2)))
        drive(engine)
    assert len(calls) == 2
