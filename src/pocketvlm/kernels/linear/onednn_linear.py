"""Linear layers through oneDNN instead of the library's general product, with what follows them in the same pass.

Measured at the sizes of MiniCPM-V 4.6, two AVX-512 cores: on plain weights 31 against 16 GB/s at one row and 210
against 185 GFLOP/s at 700 rows; on weights laid out in blocks beforehand 27 against 9 GB/s at eight rows (and 27 at
one). So weights stay plain until several sequences decode together, and are laid out then, once. Activations, residuals
and products that follow are applied while the result is still in cache.

Shapes:  T rows · K inputs · N outputs
"""

from __future__ import annotations

import torch
from torch import Tensor

from pocketvlm.kernels.linear.cpu_linear import CPULinear

# The layout is chosen for this many rows; of 1, 2, 4, 8, 32 and 1024, 8 is close to the best from two rows on.
ROWS_HINT = 8


def is_available() -> bool:
    """Whether this build of torch has oneDNN and its fused product."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class OneDNNLinear(CPULinear):
    """y = x W^T + b for inference.

    Args:
        weight: fp32 [N, K] on the CPU; shared, not copied.
        bias: [N] or None.
        keep_plain: keep the plain weight beside the blocked one, for inputs of a single row; free for a tied head,
            whose weight must stay for the embedding.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, keep_plain: bool = False) -> None:
        super().__init__()
        self.in_features, self.keep_plain = weight.shape[1], keep_plain
        self.plain: Tensor | None = weight.detach()
        self.blocked: Tensor | None = None
        self.bias = None if bias is None else bias.detach()

    def prepare_batches(self) -> None:
        """Block the weight for inputs of several rows; once."""
        if self.blocked is None and self.plain is not None:
            self.blocked = torch.ops.mkldnn._reorder_linear_weight(self.plain, ROWS_HINT)
            self.plain = self.plain if self.keep_plain else None

    def weight_for(self, x: Tensor) -> Tensor:
        """The layout that suits this input."""
        # In this order: another thread may block the weight meanwhile, and then lets go of the plain one.
        plain, blocked = self.plain, self.blocked
        if blocked is None or (plain is not None and x.numel() == self.in_features):
            assert plain is not None
            return plain
        return blocked

    def _unary(self, x: Tensor, operation: str, algorithm: str = "") -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight_for(x), self.bias, operation, [], algorithm)

    def _binary(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight_for(x), self.bias, operation)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        return self._unary(x, "none")

    def gelu_tanh(self, x: Tensor) -> Tensor:
        return self._unary(x, "gelu", "tanh")

    def silu(self, x: Tensor) -> Tensor:
        return self._unary(x, "swish")

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        return self._binary(x, other, "add")

    def mul(self, x: Tensor, other: Tensor) -> Tensor:
        return self._binary(x, other, "mul")
