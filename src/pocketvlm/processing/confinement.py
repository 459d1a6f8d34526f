"""What a process that opens files of strangers is held to. Nothing here imports PyTorch."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from pathlib import Path


def confine(memory: int) -> None:
    """Hold this process to `memory` bytes of address space beyond those that it has now, where the system keeps such
    limits; let it go first where memory runs out; and leave Ctrl-C to the process that it works for."""
    with suppress(ValueError, OSError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError):  # a picture goes and not the server
        Path("/proc/self/oom_score_adj").write_text("500")
    import resource

    with suppress(OSError, ValueError, IndexError):
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        wanted = now + memory
        resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
