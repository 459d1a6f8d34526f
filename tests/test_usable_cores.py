"""As many threads as there are cores to run them, and as much memory as there is for this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pocketvlm.machine import _memory_limits, memory_bytes, usable_cores


def test_no_more_than_the_processors_of_this_process() -> None:
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert 1 <= usable_cores() <= most


def test_a_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert usable_cores() == 1


def test_without_loky_it_counts_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "loky", None)
    assert usable_cores() >= 1


@pytest.mark.parametrize(
    ("groups", "files", "limits"),
    [
        ("0::/\n", {"memory.max": "3000"}, [3000]),
        ("0::/\n", {"memory.max": "max"}, []),
        ("0::/a.slice/b.service\n", {"a.slice/b.service/memory.max": "max", "a.slice/memory.max": "5000"}, [5000]),
        ("3:cpu:/x\n2:memory:/docker/1\n", {"memory/memory.limit_in_bytes": "7000"}, [7000]),
        ("2:name=systemd:/\n1:cpu,memory:/a\n", {"memory/a/memory.limit_in_bytes": "9000\n"}, [9000]),
        (None, {}, []),
    ],
)
def test_the_memory_of_a_container_is_known(
    tmp_path: Path, groups: str | None, files: dict[str, str], limits: list[int]
) -> None:
    for name, text in {**({"proc/self/cgroup": groups} if groups else {})}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    for name, text in files.items():
        place = tmp_path / "sys/fs/cgroup" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    assert list(_memory_limits(tmp_path)) == limits


def test_memory_is_no_more_than_the_least_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = memory_bytes()
    monkeypatch.setattr("pocketvlm.machine._memory_limits", lambda _root: iter([2**63, 12345]))
    assert memory_bytes() == 12345 < whole
