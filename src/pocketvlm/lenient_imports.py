"""Imports of packages that bring torchvision, beside any CPU build of torch.

torchvision registers shape functions for its compiled operators when it is imported, and fails if those operators did
not load (a torchvision wheel beside a torch of another build). Nothing here needs the operators. So registrations for
the `torchvision::` namespace that find no operator are left out during the import.
And bitsandbytes is imported without its downloads.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def lenient_registrations() -> Iterator[None]:
    """Within this block, fake kernels for `torchvision::` operators that do not exist are skipped."""
    strict = torch.library.register_fake

    def lenient(op: Any, func: Callable[..., Any] | None = None, /, **kwargs: Any) -> Any:
        if not (isinstance(op, str) and op.startswith("torchvision::")):
            return strict(op, func, **kwargs)

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            try:
                strict(op, function, **kwargs)
            except RuntimeError as error:
                if "does not exist" not in str(error):
                    raise
            return function

        return register if func is None else register(func)

    torch.library.register_fake = lenient
    try:
        yield
    finally:
        torch.library.register_fake = strict


@contextmanager
def without_hub_kernels() -> Iterator[None]:
    """Within this block there is no package `kernels`: on a CPU with bfloat16 bitsandbytes has it download a product
    of 4-bit layers when it is imported, and warns where it cannot. Its own product is used instead."""
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, there = log.level, "kernels" in sys.modules
    before = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]  # what makes an import fail
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        if there:
            sys.modules["kernels"] = before  # type: ignore[assignment]
        else:
            del sys.modules["kernels"]
