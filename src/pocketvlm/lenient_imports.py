"""Imports of packages that bring torchvision, beside any CPU build of torch.

torchvision registers shape functions for its compiled operators when it is imported, and fails if those operators did
not load (a torchvision wheel beside a torch of another build). Nothing here needs the operators. So registrations for
the `torchvision::` namespace that find no operator are left out during the import.
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
def no_kernels_of_the_hub() -> Iterator[None]:
    """Within this block nothing finds the package `kernels`. On processors with bf16 instructions bitsandbytes asks it,
    when it is imported, for compiled code from a hub, and warns where it is not installed."""
    before, logger = sys.modules.get("kernels"), logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    sys.modules["kernels"] = None  # type: ignore[assignment]  # importing it fails
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        del sys.modules["kernels"]
        if before is not None:
            sys.modules["kernels"] = before
