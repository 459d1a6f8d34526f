"""One heap for all threads; asked of the C library itself, in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

HEAPS = """
import ctypes, sys, threading
from pocketvlm.machine import use_one_heap
if sys.argv[2] == "one":
    use_one_heap()
libc, together = ctypes.CDLL(None), threading.Barrier(6)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
def work():
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


def heaps(folder: Path, how: str, **variables: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | variables
    subprocess.run([sys.executable, "-c", HEAPS, str(folder / how), how], env=environment, check=True, timeout=60)
    return (folder / how).read_text().count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of threads are glibc's (run it on such a Linux)")
def test_threads_share_one_heap_unless_the_variable_says_otherwise(tmp_path: Path) -> None:
    assert heaps(tmp_path, "one") == 1
    assert heaps(tmp_path, "as it is") > 1
    assert heaps(tmp_path, "one", MALLOC_ARENA_MAX="3") == 3
