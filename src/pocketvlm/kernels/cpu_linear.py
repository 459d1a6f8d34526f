"""Linear layers for fp32 inference on a CPU, through oneDNN instead of the library's general product.

Measured at the sizes of MiniCPM-V 4.6, two AVX-512 cores: on plain weights 31 against 16 GB/s at one row and 210
against 185 GFLOP/s at 700 rows; on weights laid out in blocks beforehand 27 against 9 GB/s at eight rows (and 27 at
one). So weights stay plain until several sequences decode together, and are laid out then, once. Activations, residuals
and products that follow are applied while the result is still in cache. The plain twin of all of it is
`torch.nn.functional.linear` and the operation behind it.

Shapes:  T rows · K inputs · N outputs
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The layout is chosen for this many rows; of 1, 2, 4, 8, 32 and 1024, 8 is close to the best from two rows on.
ROWS_HINT = 8


def is_available() -> bool:
    """Whether this build of torch has oneDNN and its fused product."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def is_suitable(linear: nn.Linear) -> bool:
    """Float32 on the CPU, and large enough for the product to matter."""
    weight = linear.weight
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and min(weight.shape) >= 64


class CPULinear(nn.Module):
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

    def lay_out(self) -> None:
        """Block the weight for inputs of several rows; once."""
        if self.blocked is None and self.plain is not None:
            self.blocked = torch.ops.mkldnn._reorder_linear_weight(self.plain, ROWS_HINT)
            self.plain = self.plain if self.keep_plain else None

    def weight_for(self, x: Tensor) -> Tensor:
        """The layout that suits this input."""
        if self.blocked is None or (self.plain is not None and x.numel() == self.in_features):
            assert self.plain is not None
            return self.plain
        return self.blocked

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight_for(x), self.bias, "none", [], "")


def linear_gelu_tanh(linear: nn.Module, x: Tensor) -> Tensor:
    """gelu_tanh(linear(x)); through oneDNN the activation is applied while the product is still in cache."""
    if isinstance(linear, CPULinear):
        return torch.ops.mkldnn._linear_pointwise(x, linear.weight_for(x), linear.bias, "gelu", [], "tanh")
    return F.gelu(linear(x), approximate="tanh")


def linear_silu(linear: nn.Module, x: Tensor) -> Tensor:
    """silu(linear(x)), likewise."""
    if isinstance(linear, CPULinear):
        return torch.ops.mkldnn._linear_pointwise(x, linear.weight_for(x), linear.bias, "swish", [], "")
    return F.silu(linear(x))


def linear_add(linear: nn.Module, x: Tensor, other: Tensor) -> Tensor:
    """linear(x) + other, likewise."""
    if isinstance(linear, CPULinear):
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, linear.weight_for(x), linear.bias, "add")
    return linear(x) + other


def linear_mul(linear: nn.Module, x: Tensor, other: Tensor) -> Tensor:
    """linear(x) * other, likewise."""
    if isinstance(linear, CPULinear):
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, linear.weight_for(x), linear.bias, "mul")
    return linear(x) * other


def join(*linears: nn.Linear) -> CPULinear:
    """One product with the outputs of all side by side: products of one input read it, and start, once.

    The linears must have no biases.
    """
    return CPULinear(torch.cat([linear.weight for linear in linears]), None)


def use_cpu_linears(module: nn.Module) -> None:
    """Replace every suitable linear layer below `module`; weights are shared.

    A module that has a method `join_projections` gets to join its own first, one after the other, so that no second
    copy of all of them exists.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and is_suitable(child):
            setattr(module, name, CPULinear(child.weight, child.bias))
            continue
        if callable(join_projections := getattr(child, "join_projections", None)):
            join_projections()
        use_cpu_linears(child)


def lay_out_linears(module: nn.Module) -> None:
    """Block the weights of every `CPULinear` below `module`, one after the other."""
    for child in module.modules():
        if isinstance(child, CPULinear):
            child.lay_out()
