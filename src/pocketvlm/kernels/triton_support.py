"""Whether a tensor's routines run as Triton kernels. Triton itself is imported by the modules `*_triton` only."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from torch import Tensor


@cache
def is_installed(package: str) -> bool:
    """Whether a package that an extra brings is there; it is not imported."""
    return find_spec(package) is not None


def runs_triton(x: Tensor) -> bool:
    """On a GPU, where Triton is installed: PyTorch's own builds for CUDA bring it."""
    return x.is_cuda and is_installed("triton")
