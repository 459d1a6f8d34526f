"""Free memory goes back to the system, every so many requests."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from helpers.engine_runs import drive, make_request
from helpers.tiny_models import random_text, tiny_model

from pocketvlm.engine import engine as engine_module
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.machine import _malloc_trim, release_free_memory


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_gaps_between_what_is_kept_are_given_back() -> None:
    if _malloc_trim() is None:
        release_free_memory()  # a C library without it: nothing happens
        return
    release_free_memory()
    made = [bytearray(b"x" * 50_000) for _ in range(2000)]  # below what the library maps by itself
    kept = made[::100]
    made.clear()
    gc.collect()
    before = resident_bytes()
    release_free_memory()
    assert resident_bytes() < before - 50_000_000
    assert len(kept) == 20


def test_the_engine_asks_for_it_every_so_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(engine_module, "REQUESTS_BETWEEN_TRIMS", 3)
    monkeypatch.setattr(engine_module, "release_free_memory", lambda: calls.append(1))
    runner = TorchRunner(tiny_model(0))
    engine = Engine(runner)
    for seed in range(7):
        engine.add(make_request(runner, random_text(5, seed), SamplingParams(temperature=0, max_tokens=2)))
        drive(engine)
    assert len(calls) == 2
