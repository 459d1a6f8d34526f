"""The ranges of an evaluation's numbers, for the command line and for those who call it from Python.

Examples of a task are places in a list, so that a run can go on, and every request at a time is a thread: hence the
upper ends. Seconds end where a clock of any system still takes them.
"""

from __future__ import annotations

from collections.abc import Mapping

from pocketvlm.ranges import Range

_DAY = 86_400.0  # seconds

# Of a run, whoever answers.
RUN: Mapping[str, Range] = {
    "count": Range(int, 1, 10**6),
    "seed": Range(int, 0),
}
# Of a model that is loaded here.
LOCAL: Mapping[str, Range] = {
    "batch_size": Range(int, 1, 4096),
}
# Of `endpoint.Endpoint`.
ENDPOINT: Mapping[str, Range] = {
    "concurrency": Range(int, 1, 1024),
    "timeout": Range(float, 0, _DAY, is_open=True),
    "retries": Range(int, 0, 1000),
    "backoff": Range(float, 0, _DAY),
}
# Of what is printed.
REPORT: Mapping[str, Range] = {
    "show_errors": Range(int, 0),
}
