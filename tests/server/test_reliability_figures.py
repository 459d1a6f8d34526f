"""The figures of `benchmarks/reliability.py` that say yes or no, at a size for every day."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "reliability.py"


@pytest.mark.parametrize(("case", "requests"), [("abort-storm", 60), ("sigterm", 12), ("hostile-media", 8)])
def test_a_figure_holds_at_a_small_size(case: str, requests: int) -> None:
    command = [sys.executable, str(PROGRAM), case, "--requests", str(requests)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.count("\n") == 1, done.stderr
    found = json.loads(done.stdout)
    # Times are for a quiet machine.
    assert found.get("reconciled", True), found
    assert found.get("statuses", {}).keys() <= {"0", "200"}, found
    assert found.get("refused_4xx", requests) == requests, found
    assert found.get("good_equal_to_quiet", True), found
    assert (found.get("exit_status", 0), found.get("finished", requests)) == (0, requests), found
    assert found.get("connections_to_private", 0) == 0, found
