"""Packages that are imported do nothing else meanwhile: no download, no words on the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from pocketvlm.lenient_imports import offline

KERNELS = """
def get_kernel(*_, **__):
    raise SystemExit('a kernel would be downloaded')
"""


@pytest.mark.parametrize("package", ["lora.import_peft", "memory.import_bitsandbytes"])
def test_imports_ask_no_hub_and_say_nothing(tmp_path: Path, package: str) -> None:
    (tmp_path / "kernels.py").write_text(KERNELS)
    name, _, function = package.partition(".")
    code = f"from pocketvlm.training.{name} import {function}; {function}()"
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_package_that_was_hidden_is_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("kernels")
    for before in (package, None):
        if before is None:
            monkeypatch.delitem(sys.modules, "kernels")
        else:
            monkeypatch.setitem(sys.modules, "kernels", before)
        with offline(), pytest.raises(ImportError):
            import_module("kernels")
        assert sys.modules.get("kernels") is before


SAYS = """
import os, sys
from pocketvlm.lenient_imports import quiet_discovery
with quiet_discovery(sys.argv[1]):
    os.write(2, b"[W:onnxruntime:Default, device_discovery.cc:164] GPU device discovery failed: no such file\\n")
    os.write(2, b"something else\\n")
os.write(2, b"afterwards\\n")
"""


@pytest.mark.parametrize("is_gpu", [False, True])
def test_a_display_that_is_no_gpu_is_not_warned_of(tmp_path: Path, is_gpu: bool) -> None:
    device = tmp_path / "card0" / "device"
    device.mkdir(parents=True)
    (tmp_path / "card0-HDMI-A-1").mkdir()  # an outlet of it, which has no device
    if is_gpu:
        (device / "vendor").touch()  # the block then leaves stderr alone, so that what is said in it is seen
    done = subprocess.run([sys.executable, "-c", SAYS, tmp_path], capture_output=True, text=True, check=True)
    warned, *rest = done.stderr.splitlines()[-3:] if is_gpu else ["", *done.stderr.splitlines()]
    assert ("GPU device discovery failed" in warned) == is_gpu
    assert rest == ["something else", "afterwards"]


def test_an_error_within_the_block_is_seen_and_a_closed_stderr_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "card0" / "device").mkdir(parents=True)
    code = SAYS.replace('os.write(2, b"something else\\n")', "raise ImportError('not this one')")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "ImportError: not this one"
    assert "GPU device discovery failed" not in done.stderr
    closed = "import os; os.close(2)\n" + SAYS.replace("os.write(2,", "print(").replace("os.write", "print")
    done = subprocess.run([sys.executable, "-c", closed, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "something else" in done.stdout
