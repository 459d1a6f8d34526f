"""What products are computed in while a model learns, and weights that are kept in it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketvlm.model.vlm import MiniCPMV

# Of the decoder: in smaller models the casts around products take longer than the products save.
_WIDE = 512


def autocast_dtype(device: torch.device, width: int) -> torch.dtype:
    """bfloat16 on CUDA, and on CPUs with instructions or units for it (AVX-512 BF16, AMX) where the model is wide;
    else float32.

    Args:
        width: hidden size of the decoder.
    """
    if device.type == "cuda":
        return torch.bfloat16
    if device.type != "cpu" or width < _WIDE:
        return torch.float32
    is_fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if is_fast else torch.float32


def keeps_half(method: str, device: torch.device, width: int) -> bool:
    """Whether linear layers that do not learn are kept in bfloat16 where they are not in 4 bits: beside adapters, on a
    CPU whose products are."""
    return method != "full" and device.type == "cpu" and autocast_dtype(device, width) == torch.bfloat16


class HalfLinear(nn.Linear):
    """A linear layer that does not learn, in bfloat16: half the memory, and nothing to cast in each product. The
    numbers are those that autocast computes; published weights are bfloat16, so that none is rounded."""

    def forward(self, input: Tensor) -> Tensor:
        """[…, in] → […, out]; in the dtype that came where no autocast is on, as in an evaluation."""
        out = F.linear(input.to(self.weight.dtype), self.weight, self.bias)
        return out if torch.is_autocast_enabled(input.device.type) else out.to(input.dtype)


def halve_base(model: MiniCPMV, layers: Iterable[str]) -> None:
    """Keep some linear layers in bfloat16, in place. They do not learn any more; adapters beside them can."""
    for name in layers:
        layer = model.get_submodule(name)
        if type(layer) is nn.Linear:
            layer.to(torch.bfloat16).requires_grad_(False)
            layer.__class__ = HalfLinear
