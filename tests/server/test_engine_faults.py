"""The figures of `benchmarks/reliability_faults.py`: a fault of the engine costs what it touches, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "reliability_faults.py"
REQUESTS = 16


@pytest.mark.skipif(sys.platform == "win32", reason="faults are ordered by SIGUSR1, which Windows does not have")
def test_a_fault_of_the_tower_or_of_a_step_costs_what_it_touches_alone() -> None:
    command = [sys.executable, str(PROGRAM), "tower-fault", "step-fault", "--requests", str(REQUESTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    tower, step = map(json.loads, done.stdout.splitlines())
    assert tower["failed_5xx"] == REQUESTS // 4
    assert tower["ok"], tower
    # Times are for a quiet machine.
    assert step["failed"] > 0, step
    assert (step["clean"], step["answered_again_as_before"], step["reconciled"]) == (True, True, True), step
