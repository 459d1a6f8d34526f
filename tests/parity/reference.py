"""The reference implementation (`transformers`), imported so that its Python code runs beside any CPU build of torch.

`import reference` before anything of transformers; then use `reference.transformers`, or the two factories below.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

# Nothing in the tests may reach for the network, whatever the library would like to look up.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pocketvlm.benchmark.reference import lenient_registrations

# The suite turns warnings into errors; what other libraries say while they are imported is not ours to fix.
with warnings.catch_warnings(), lenient_registrations():
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
