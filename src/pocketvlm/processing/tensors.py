"""PyTorch and its tensors, for code that does not import it, which takes seconds.

A caller may hand in tensors all the same, and where PyTorch is there anyway its kernels may be used.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from torch import Tensor


def imported_torch() -> Any:
    """PyTorch if this process has imported it, and all of it; else None."""
    torch = sys.modules.get("torch")
    if torch is None or getattr(getattr(torch, "__spec__", None), "_initializing", False):  # another thread is at it
        return None
    has_all = hasattr(getattr(getattr(torch, "nn", None), "functional", None), "interpolate")
    return torch if has_all else None


def is_tensor(source: object) -> TypeGuard[Tensor]:
    """A tensor is only there if PyTorch is, which may still be in the middle of its import."""
    kind = getattr(sys.modules.get("torch"), "Tensor", None)
    return kind is not None and isinstance(source, kind)
