"""As many threads as there are cores to run them."""

from __future__ import annotations

import os
import sys

import pytest

from pocketvlm.machine import usable_cores


def test_no_more_than_the_processors_of_this_process() -> None:
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert 1 <= usable_cores() <= most


def test_a_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert usable_cores() == 1


def test_without_loky_it_counts_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "loky", None)
    assert usable_cores() >= 1
