"""PyTorch's tensors as the arrays of a cache (`memory.Memory`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class TorchMemory:
    """Tensors of one type on one device."""

    def __init__(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        self.dtype, self.device = dtype, torch.device(device)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def zeros(self, shape: Sequence[int], *, is_fp32: bool = False) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float32 if is_fp32 else self.dtype, device=self.device)

    def empty(self, shape: Sequence[int]) -> Tensor:
        return torch.empty(*shape, dtype=self.dtype, device=self.device)

    def copy(self, array: Tensor) -> Tensor:
        return array.clone()

    def index(self, numbers: Sequence[Any]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long).to(self.device, non_blocking=True)
