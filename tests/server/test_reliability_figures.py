"""The figures of `benchmarks/reliability.py` that say yes or no, at a size for every day."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "reliability.py"
CASES = ("abort-storm", "hostile-media", "sigterm")  # the last ends the server that all of them share
REQUESTS = 16


def test_figures_hold_at_a_small_size() -> None:
    command = [sys.executable, str(PROGRAM), *CASES, "--requests", str(REQUESTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    cases = {found["case"]: found for found in map(json.loads, done.stdout.splitlines())}
    assert tuple(cases) == CASES, done.stderr
    # Times are for a quiet machine.
    assert cases["abort-storm"]["reconciled"], cases
    assert {"200"} <= cases["abort-storm"]["statuses"].keys() <= {"0", "200"}, cases
    assert (cases["hostile-media"]["hostile"], cases["hostile-media"]["connections_to_private"]) == (REQUESTS, 0), cases
    assert (cases["sigterm"]["exit_status"], cases["sigterm"]["finished"]) == (0, REQUESTS), cases
