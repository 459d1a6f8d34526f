"""Whether there is a GPU for PyTorch, without importing it: that takes as long as an answer of ONNX Runtime."""

from __future__ import annotations

import ctypes
import re
import sys
from importlib.util import find_spec
from pathlib import Path

_DRIVER = {"win32": "nvcuda.dll"}.get(sys.platform, "libcuda.so.1")
_DEVICES = ("/dev/kfd", "/dev/dxg", "/proc/driver/nvidia")


def has_gpu() -> bool:
    """Whether PyTorch finds a GPU. It is only asked, and imported, where it was built for one and there may be one."""
    if "torch" not in sys.modules and not (_is_built_for_gpu() and _may_be_there()):
        return False
    import torch

    return torch.cuda.is_available()


def has_unused_gpu() -> bool:
    """Whether there is a GPU, and no PyTorch that could use it."""
    return find_spec("torch") is None and _may_be_there()


def _is_built_for_gpu() -> bool:
    """By the file in which PyTorch says with which CUDA (or HIP) it was built; True where that cannot be told."""
    try:
        spec = find_spec("torch")
        if spec is None or spec.origin is None:
            return False
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except (OSError, ValueError, ImportError):
        return True
    said = re.findall(r"^(?:cuda|hip)\b[^=\n]*=\s*(\S+)", text, re.MULTILINE)
    return not said or any(value != "None" for value in said)


def _may_be_there() -> bool:
    """False only where nothing speaks for a GPU: NVIDIA's driver is missing or finds no device, and no device of
    another kind is there (AMD's, and those that Windows lends to Linux), which PyTorch would then be asked about."""
    if any(Path(device).exists() for device in _DEVICES):
        return True
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
