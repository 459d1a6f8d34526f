"""Linear layers over weights that oneDNN has laid out for the CPU once, instead of at every call.

Measured at the sizes of MiniCPM-V 4.6, fp32, two cores: a library product re-packs the weights on every call, which
costs a fifth of the time at 1,024 rows and two thirds at 2 to 16 rows, where reading weights is all there is to do. The
plain twin is `torch.nn.functional.linear`.

Shapes:  T rows · K inputs · N outputs
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The layout is chosen for this many rows. Tried 1, 8, 64 and 1024: 8 is within a few percent of the best at every size.
ROWS_HINT = 8


def is_available() -> bool:
    """Whether this build of torch has the packed product."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def is_packable(linear: nn.Linear) -> bool:
    """Float32 on the CPU, and large enough for the layout to matter."""
    weight = linear.weight
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and min(weight.shape) >= 64


class PackedLinear(nn.Module):
    """y = x W^T + b for inference.

    Args:
        weight: fp32 [N, K] on the CPU.
        bias: [N] or None.
        keep_plain: keep the weight as it is, too, for inputs of a single row, where its plain rows stream a fifth
            faster. Free for a tied head, whose weight must stay for the embedding.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, keep_plain: bool = False) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS_HINT)
        self.plain = weight.detach() if keep_plain else None
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        weight = self.plain if self.plain is not None and x.numel() == self.in_features else self.packed
        return torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")

    def unpacked(self) -> Tensor:
        """The weight [N, K] as it was."""
        return self.packed.to_dense()


def linear_gelu_tanh(linear: nn.Module, x: Tensor) -> Tensor:
    """gelu_tanh(linear(x)); on packed weights the activation is applied while the product is still in cache."""
    if isinstance(linear, PackedLinear):
        return torch.ops.mkldnn._linear_pointwise(x, linear.packed, linear.bias, "gelu", [], "tanh")
    return F.gelu(linear(x), approximate="tanh")


def linear_silu(linear: nn.Module, x: Tensor) -> Tensor:
    """silu(linear(x)), likewise."""
    if isinstance(linear, PackedLinear):
        return torch.ops.mkldnn._linear_pointwise(x, linear.packed, linear.bias, "swish", [], "")
    return F.silu(linear(x))


def linear_add(linear: nn.Module, x: Tensor, other: Tensor) -> Tensor:
    """linear(x) + other, likewise."""
    if isinstance(linear, PackedLinear):
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, linear.packed, linear.bias, "add")
    return linear(x) + other


def linear_mul(linear: nn.Module, x: Tensor, other: Tensor) -> Tensor:
    """linear(x) * other, likewise."""
    if isinstance(linear, PackedLinear):
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, linear.packed, linear.bias, "mul")
    return linear(x) * other


def pack_together(*linears: nn.Linear) -> PackedLinear:
    """One packed product with the outputs of all side by side: several products of one input read it, and start, once.

    The linears must have no biases.
    """
    return PackedLinear(torch.cat([linear.weight for linear in linears]), None)


def pack_linears(module: nn.Module) -> None:
    """Replace every packable linear layer below `module`, one after the other, so that no second copy of all exists.

    A module that has a method `pack` of its own is left to it.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and is_packable(child):
            setattr(module, name, PackedLinear(child.weight, child.bias))
            continue
        if callable(pack := getattr(child, "pack", None)):
            pack()
        pack_linears(child)
