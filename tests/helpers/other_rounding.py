"""A plugin of pytest, `-p helpers.other_rounding`: PyTorch's products in fp32 round as on a processor we do not have.

Each result is off by up to an eps of the largest value of its row. The same values multiplied in the same shape are off
by the same: what has to be equal to the last bit still is, and what only happened to be is not. So this finds bounds
that hold for the kernels of one processor alone.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any

import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps
PRODUCTS = {
    torch: ("matmul", "bmm", "mm", "einsum"),
    Tensor: ("__matmul__", "matmul", "bmm", "mm"),
    torch.nn.functional: ("linear", "scaled_dot_product_attention"),
}


@functools.lru_cache(maxsize=256)
def _errors(shape: tuple[int, ...]) -> Tensor:
    """From -1 to 1, always the same for a shape."""
    seed = zlib.crc32(repr(shape).encode())
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _rounded(out: Tensor) -> Tensor:
    if out.dtype != torch.float32 or out.device.type != "cpu" or not out.dim() or not out.numel():
        return out
    values = out.detach()
    largest = values.abs().amax(-1, keepdim=True)
    signs = 1 - 2 * (values.contiguous().view(torch.int32) & 1)  # other values, other errors
    return out + _errors(tuple(values.shape)) * signs * largest * EPS


def _wrap(owner: Any, name: str) -> None:
    real = getattr(owner, name)

    @functools.wraps(real)
    def product(*args: Any, **options: Any) -> Any:
        out = real(*args, **options)
        return out if options.get("out") is not None else _rounded(out)

    setattr(owner, name, product)


for _owner, _names in PRODUCTS.items():
    for _name in _names:
        _wrap(_owner, _name)
