"""Linear layers that compute in fp32 over weights held in fp16, without loss: half the bytes, the same numbers.

Decoding waits for weights to arrive from memory. The published weights are bfloat16, 8 bits of mantissa; multiplied by
a power of two they fit into fp16, 11 bits. FBGEMM's product reads those, widens them to fp32 in registers, and
multiplies and adds in fp32 as any fp32 product does. Weights of more than 11 bits (fine-tuned in fp32, say) are not
narrowed: `is_lossless` says no, and such layers stay with `kernels.linear.onednn_linear`.

Measured at the sizes of MiniCPM-V 4.6, two AVX-512 cores, against oneDNN on plain or blocked fp32 weights, whichever is
faster: 2.2 times at one row, 1.3 to 1.7 at eight, 0.9 to 1.0 at 16 and more.

Shapes:  T rows · K inputs · N outputs
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from pocketvlm.kernels.linear.cpu_linear import CPULinear

# Packing a matrix as large as the head (248,094 rows) takes three times as long a row as this many rows at a time.
PART_ROWS = 16384
_BEYOND_FP16 = 0x1FFF  # bits of an fp32 mantissa that are over 11, its implicit one counted


def is_available() -> bool:
    """Whether this build of torch has FBGEMM and uses it, which it does on x86 alone."""
    return (
        sys.byteorder == "little"
        and torch.backends.quantized.engine in ("x86", "fbgemm")
        and hasattr(torch.ops.quantized, "linear_prepack_fp16")
        and hasattr(torch.ops.quantized, "linear_dynamic_fp16")
    )


def is_lossless(weight: Tensor) -> bool:
    """Whether this weight holds values of at most 11 bits of mantissa, as bfloat16 and fp16 have them, all finite.

    Such values times the power of two that brings the largest to [2^14, 2^15) are exact in fp16 down to 2^-14; below,
    they are rounded by at most 2^-39 of the largest, a 2^15th of what fp32 addition rounds away beside it.
    """
    if weight.dtype == torch.float32:
        for rows in weight.detach().split(PART_ROWS):  # a mask of all rows at once would be half of the weight again
            if torch.count_nonzero(rows.contiguous().view(torch.int16)[..., ::2] & _BEYOND_FP16):
                return False
    # Beyond these, a shifted input could leave the range of fp32; no model has such weights.
    is_known = weight.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return is_known and 2.0**-32 < _largest(weight) < 2.0**32


def can_round(weight: Tensor) -> bool:
    """Whether rounding this fp32 weight to fp16 costs half a unit in the last of 11 bits and no more: what is too
    small for all of them is then below a 2^16th of the largest value."""
    return 2.0**-8 <= _largest(weight) < 2.0**15


def _largest(weight: Tensor) -> float:
    low, high = torch.aminmax(weight.detach())
    return max(-float(low), float(high))


def pack_part(scaled: Tensor) -> torch.ScriptObject:
    """fp32 [N, K] to what the product reads. On one core, about 7 ns a weight; other threads may run meanwhile."""
    return torch.ops.quantized.linear_prepack_fp16(scaled, None)


class FP16Linear(CPULinear):
    """y = x W^T for inference, once `parts` holds `pack_part` of everything that `take` gives.

    Args:
        weight: fp32, bfloat16 or fp16 [N, K] on the CPU that `is_lossless`.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.plain: Tensor | None = weight.detach()
        # Scaling by powers of two rounds nothing, neither here nor where it is taken back.
        self.shift = 15 - math.frexp(_largest(weight))[1]
        self.parts: list[torch.ScriptObject] = []

    def take(self) -> Iterator[Tensor]:
        """Rows of the weight in fp32, scaled, part after part; the weight itself is let go of."""
        weight, self.plain = self.plain, None
        for rows in () if weight is None else weight.split(PART_ROWS):
            yield rows.float() * 2.0**self.shift

    def _scaled(self, x: Tensor) -> Tensor:
        """x (2^shift W)^T."""
        outputs = [torch.ops.quantized.linear_dynamic_fp16(x, part) for part in self.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        return self._scaled(x * 2.0**-self.shift)

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        return torch.add(other, self._scaled(x), alpha=2.0**-self.shift)
