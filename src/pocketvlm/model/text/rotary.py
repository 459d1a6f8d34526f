"""Partial rotary position embedding (Su et al., arXiv 2104.09864; rotate-half pairing as in GPT-NeoX).

Positions are an input of the decoder: plain 1-D counts for MiniCPM-V 4.6. Only the leading `rotary_dim` dimensions of a
head rotate (64 of 256 at the published size).

Shapes:  T tokens · R = rotary_dim · H heads · D head_dim
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_cos_sin(positions_T: Tensor, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T, R/2] of every angle, fp32: at long positions half precision would lose the phase."""
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions_T.device) / rotary_dim
    angles = positions_T.float().unsqueeze(-1) * (1.0 / theta**exponent)
    return angles.cos(), angles.sin()


def apply_rotary(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotate the leading dimensions of each head; the rest passes through."""
    half = cos_TR.shape[-1]
    cos, sin = cos_TR.unsqueeze(1).to(x_THD.dtype), sin_TR.unsqueeze(1).to(x_THD.dtype)
    first, second, rest = x_THD[..., :half], x_THD[..., half : 2 * half], x_THD[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
