"""Packages that training imports do nothing else meanwhile: no download, no words on the terminal."""

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
