"""PyTorch's device and number format for what a user says."""

from __future__ import annotations

import torch

from pocketvlm.config import check_device_name, check_dtype_name
from pocketvlm.errors import ConfigError
from pocketvlm.machine import memory_bytes


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one."""
    if check_device_name(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name!r} is not there: {torch.cuda.device_count()} CUDA devices were found")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of that name; "auto" is float32 on a CPU, bfloat16 elsewhere."""
    if check_dtype_name(name) == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def memory_of(device: torch.device) -> int:
    """Bytes: of this machine, or free on its GPU."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else memory_bytes()
