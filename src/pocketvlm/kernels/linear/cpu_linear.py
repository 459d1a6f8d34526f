"""What a linear layer of the CPU kernels can do, and the kind that any weight can be.

`kernels.linear.onednn_linear` and `kernels.linear.fp16_linear` are the fast kinds; `PlainLinear` is the twin of both.
`kernels.linear.choice` chooses.

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


class PlainLinear(CPULinear):
    """`torch.nn.functional.linear`, for weights too small for anything else to matter.

    Args:
        weight: [N, K] on the CPU, of any floating type.
        bias: [N] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight.detach().float()
        self.bias = None if bias is None else bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        return F.linear(x, self.weight, self.bias)
