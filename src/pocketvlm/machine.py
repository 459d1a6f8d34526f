"""This machine: its processors and their instruction sets, its memory, and where things are kept for this user."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

_M_ARENA_MAX = -8  # of glibc's malloc.h
CACHE_VARIABLE = "POCKETVLM_CACHE"


def cache_directory() -> Path:
    """Where things are kept that were made once for this user: $POCKETVLM_CACHE, else pocketvlm in the user's cache.

    Raises:
        FileNotFoundError: this user has no home, as in containers that run under any number.
    """
    try:
        if given := os.environ.get(CACHE_VARIABLE):
            return Path(given).expanduser()
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base) if base else Path.home() / ".cache") / "pocketvlm"
    except RuntimeError:
        raise FileNotFoundError(errno.ENOENT, "this user has no home directory") from None


def usable_processors() -> int:
    """Processors this process may run on (fewer than the machine has, in a container or under taskset)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_cores() -> int:
    """Cores this process may run on, within its affinity and its container's quota: the threads a product is worth.

    Two threads of one core share its arithmetic, so they are counted once. `LOKY_MAX_CPU_COUNT` sets a limit. Without
    the package loky, the processors of the affinity.
    """
    try:
        from loky import cpu_count
    except ImportError:
        return usable_processors()
    return int(cpu_count(only_physical_cores=True))


def processor_flags() -> frozenset[str]:
    """The instruction sets of this processor, as Linux names them; empty on other systems."""
    return frozenset(_cpuinfo("flags", "Features").split())  # ARM calls them features


def processor_name() -> str:
    """What this processor is called, for people."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(*fields: str) -> str:
    """Return the first line of Linux's description of the processors with one of these fields; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(fields)), "")


def memory_bytes() -> int:
    """Bytes of memory that this process may have: of the machine, or of its container where that is less."""
    if hasattr(os, "sysconf"):
        return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_memory_limits(Path("/"))])
    return _memory_of_windows()


def _memory_limits(root: Path) -> Iterator[int]:
    """Limits of the control groups that this process is in, of either version; `root` is that of the file system.

    In a container its own group is what it sees as the topmost one.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):  # not on Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        top, name = "sys/fs/cgroup", "memory.max"
        if controllers:
            top, name = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        if controllers and "memory" not in controllers.split(","):
            continue
        group = PurePosixPath(path.lstrip("/"))
        for place in (group, *group.parents):
            with suppress(OSError, ValueError):  # it has none ("max"), or is not to be seen from here
                yield int((root / top / place / name).read_text())


def resident_bytes() -> int:
    """What this process has in memory now."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        import psutil  # comes with accelerate, which a run needs

        return int(psutil.Process().memory_info().rss)
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes() -> int:
    """The most that this process has had in memory so far.

    On Linux not from getrusage: there a new process starts with the peak of the one that started it.
    """
    try:
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # on Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    return (1 if sys.platform == "darwin" else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _memory_of_windows() -> int:
    """Bytes of this machine, from GlobalMemoryStatusEx."""
    status = (ctypes.c_uint64 * 8)()  # MEMORYSTATUSEX: its size and the load in 32 bits each, then all memory, …
    status[0] = ctypes.sizeof(status)
    windows: Any = ctypes  # `windll` is known to type checkers on Windows only
    windows.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status[1])


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Of glibc; other C libraries have none, and Windows and macOS give memory back by themselves."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def release_free_memory() -> None:
    """Give pages that hold nothing back to the system, where the C library can.

    Pictures of all sizes are made in some threads and let go of in others. glibc keeps the gaps between them for
    itself: no object is lost, but a process that serves for days grows.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


def use_one_heap() -> None:
    """Have all threads of this process allocate from one heap, where the C library is glibc; call it before they start.

    Otherwise each thread takes a heap of its own (an arena; up to eight for each processor) and keeps what it once
    needed: with 64 threads that prepare requests, memory grows for thousands of requests. The variable
    `MALLOC_ARENA_MAX` of glibc overrides it.
    """
    if _malloc_trim() is not None and "MALLOC_ARENA_MAX" not in os.environ:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


class OwnProcess:
    """The process that something was made in. A fork of it has none of its threads, and may find their locks taken."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    @property
    def is_here(self) -> bool:
        return os.getpid() == self.pid

    def check(self) -> None:
        """`RuntimeError` in another process."""
        if not self.is_here:
            raise RuntimeError(
                f"the model was loaded in process {self.pid}, and cannot be used in process {os.getpid()}, a fork "
                "of it. Call pocketvlm.load in the worker itself."
            )
