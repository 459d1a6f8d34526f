"""The reference implementation (`transformers`), imported so that its Python code runs beside any CPU build of torch.

`import reference` before anything of transformers; then use `reference.transformers`, or the two factories below.

torchvision registers shape functions for its compiled operators when it is imported, and fails if those operators did
not load (a torchvision wheel beside a torch of another build). Nothing here needs the operators: resizing is done by
torch itself. So registrations for the `torchvision::` namespace that find no operator are left out during the import.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Nothing in the tests may reach for the network, whatever the library would like to look up.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch


@contextmanager
def _lenient_registrations() -> Iterator[None]:
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


# The suite turns warnings into errors; what other libraries say while they are imported is not ours to fix.
with warnings.catch_warnings(), _lenient_registrations():
    warnings.simplefilter("ignore")
    import torchvision
    import torchvision.transforms.v2.functional as tv_functional
    import transformers
    from transformers.models.minicpmv4_6.image_processing_minicpmv4_6 import MiniCPMV4_6ImageProcessor
    from transformers.models.minicpmv4_6.video_processing_minicpmv4_6 import MiniCPMV4_6VideoProcessor

transformers.logging.set_verbosity_error()

# What the published preprocessor_config.json holds.
PUBLISHED = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "scale_resolution": 448, "patch_size": 14}


def image_processor(**options: Any) -> MiniCPMV4_6ImageProcessor:
    """The reference's image processor with the published settings, `options` on top."""
    return MiniCPMV4_6ImageProcessor(**(PUBLISHED | options))


def video_processor(**options: Any) -> MiniCPMV4_6VideoProcessor:
    """The reference's video processor with the published settings, `options` on top."""
    return MiniCPMV4_6VideoProcessor(**(PUBLISHED | options))


__all__ = [
    "PUBLISHED",
    "MiniCPMV4_6ImageProcessor",
    "MiniCPMV4_6VideoProcessor",
    "image_processor",
    "torchvision",
    "transformers",
    "tv_functional",
    "video_processor",
]
