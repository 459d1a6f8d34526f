"""How many threads a product is worth."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores this process may run on, within its affinity and its container's quota.

    Two threads of one core share its arithmetic, so they are counted once. `LOKY_MAX_CPU_COUNT` sets a limit. Without
    the extra `onnx`, the processors of the affinity.
    """
    try:
        from loky import cpu_count
    except ImportError:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(cpu_count(only_physical_cores=True))
