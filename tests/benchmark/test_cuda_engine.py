"""The command for a GPU runs to its end: rehearsed on a CPU, with a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cuda_engine.py"


def test_every_case_prints_a_line_and_answers_are_equal(seeded_checkpoint: Callable[[int], Path]) -> None:
    numbers = [
        "--rounds=1",
        "--requests=32",
        "--tokens=6",
        "--side=112",
        "--sides=112",
        "--steps=2",
        "--batches",
        "1",
        "3",
    ]
    command = [sys.executable, str(SCRIPT), "--model", str(seeded_checkpoint(0)), "--device", "cpu", *numbers]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr
    found = {line["case"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert list(found) == ["equal", "ttft", "decode", "throughput"]
    ways = [value for value in found["equal"].values() if isinstance(value, dict)]
    assert [way["equal"] for way in ways] == [2] * 4
    assert found["ttft"]["112², 9 slices"]["cold_ms"] > 0
    assert {f"{kind}, batch {batch}" for kind in ("eager", "recorded") for batch in (1, 3)} <= set(found["decode"])
    assert found["throughput"]["4x, 6 tokens"]["tokens_s"] >= 0
