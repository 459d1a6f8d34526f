"""The package imports, and does what it can, where a system lacks what only Linux or POSIX has."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pocketvlm.machine import memory_bytes, processor_flags, processor_name, usable_processors

# Modules and functions that Windows or macOS lack. Libraries decide for themselves what they need, by `sys.platform`,
# so they are imported first, and only our own imports are refused.
IMPORT_ALL = """
import builtins, importlib, multiprocessing.popen_spawn_posix, os, pkgutil, signal, sys
import torch, onnxruntime, loky, huggingface_hub, filelock, av, PIL.Image, rich.console, llguidance, gguf, onnx_ir

MODULES = {"fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog", "readline", "_posixsubprocess"}
FUNCTIONS = {
    os: ("sysconf", "sched_getaffinity", "fork", "forkpty", "getuid", "geteuid", "register_at_fork", "mkfifo", "pread",
         "preadv", "statvfs", "uname", "getloadavg", "killpg", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"),
    signal: ("SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "pthread_sigmask", "setitimer", "alarm"),
}
plain = builtins.__import__

def refuse(name, globals=None, locals=None, fromlist=(), level=0):
    if name in MODULES and (globals or {}).get("__name__", "").partition(".")[0] == "pocketvlm":
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return plain(name, globals, locals, fromlist, level)

import pocketvlm

builtins.__import__ = refuse
for module, names in FUNCTIONS.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
found = [module.name for module in pkgutil.walk_packages(pocketvlm.__path__, "pocketvlm.")]
for name in found:
    if not name.endswith(".__main__") and "triton" not in name:
        importlib.import_module(name)
assert len(found) > 150
from pocketvlm.files import fcntl
assert fcntl is None
"""


def test_every_module_imports_without_what_only_posix_has() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_machine_is_known_without_what_only_linux_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def status(pointer: object) -> None:
        fields = pointer._obj  # type: ignore[attr-defined]  # as `ctypes.byref` made it
        assert fields[0] == ctypes.sizeof(fields) == 64
        fields[1] = 12 * 2**30

    windows = SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=status))
    monkeypatch.setattr(ctypes, "windll", windows, raising=False)
    for name in ("sysconf", "sched_getaffinity"):
        monkeypatch.delattr(os, name, raising=False)
    assert memory_bytes() == 12 * 2**30
    assert usable_processors() == (os.cpu_count() or 1)
    monkeypatch.setattr(Path, "read_text", lambda *_args, **_more: (_ for _ in ()).throw(FileNotFoundError))
    assert processor_flags() == frozenset()
    assert processor_name() == (platform.processor() or platform.machine())


def test_the_processor_is_known_by_what_linux_says_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\nmodel name\t: One: fast\nflags\t\t: avx2 sha_ni\nmodel name\t: Two\nflags\t\t: none\n"
    monkeypatch.setattr(Path, "read_text", lambda *_args, **_more: text)
    assert processor_name() == "One: fast"
    assert processor_flags() == {"avx2", "sha_ni"}
    monkeypatch.setattr(Path, "read_text", lambda *_args, **_more: "Features\t: asimd i8mm\n")
    assert processor_flags() == {"asimd", "i8mm"}
