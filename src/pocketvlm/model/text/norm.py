"""RMS norms of the decoder (Zhang & Sennrich, arXiv 1910.07467), computed in fp32 whatever the input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ZeroCentredRMSNorm(nn.Module):
    """x / rms(x) * (1 + weight): the stored weight is an offset from one."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., dim], same dtype."""
        return F.rms_norm(x.float(), x.shape[-1:], 1.0 + self.weight.float(), self.eps).to(x.dtype)


class GatedRMSNorm(nn.Module):
    """x / rms(x) * weight * silu(gate): the norm behind linear attention, whose weight is plain (not offset by one)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Both [..., dim]; returns [..., dim] in the gate's dtype."""
        normed = F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps)
        return (normed * F.silu(gate.float())).to(gate.dtype)
