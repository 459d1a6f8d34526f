"""What a linear layer of the CPU kernels can do, and the products that models call.

`kernels.linear.onednn_linear` and `kernels.linear.fp16_linear` are the two kinds; the plain twin of both is
`torch.nn.functional.linear` and the operation behind it. `kernels.linear.replace` chooses.

Shapes:  T rows · K inputs · N outputs
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F


class CPULinear(nn.Module, ABC):
    """y = x W^T (+ b) in fp32, for inference; what follows the product may be applied inside it."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""

    def gelu_tanh(self, x: Tensor) -> Tensor:
        return F.gelu(self.forward(x), approximate="tanh")

    def silu(self, x: Tensor) -> Tensor:
        return F.silu(self.forward(x), inplace=True)

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        return self.forward(x).add_(other)

    def mul(self, x: Tensor, other: Tensor) -> Tensor:
        return self.forward(x).mul_(other)

    def prepare_batches(self) -> None:
        """Called once, when several sequences first decode together."""


def linear_gelu_tanh(linear: nn.Module, x: Tensor) -> Tensor:
    """gelu_tanh(linear(x))."""
    return linear.gelu_tanh(x) if isinstance(linear, CPULinear) else F.gelu(linear(x), approximate="tanh")


def linear_silu(linear: nn.Module, x: Tensor) -> Tensor:
    """silu(linear(x))."""
    return linear.silu(x) if isinstance(linear, CPULinear) else F.silu(linear(x))


def linear_add(linear: nn.Module, x: Tensor, other: Tensor) -> Tensor:
    """linear(x) + other."""
    return linear.add(x, other) if isinstance(linear, CPULinear) else linear(x) + other


def linear_mul(linear: nn.Module, x: Tensor, other: Tensor) -> Tensor:
    """linear(x) * other."""
    return linear.mul(x, other) if isinstance(linear, CPULinear) else linear(x) * other
