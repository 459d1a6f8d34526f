"""uint8 patches → what the tower takes, and what the reference does.

Shapes: P patches, p patch_size
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketvlm.config import ImageConfig


def normalise(patches: Tensor | NDArray[np.uint8], config: ImageConfig) -> Tensor:
    """uint8 [P, p, p, 3] → float32 [P, p*p*3], on the same device: the tower's input.

    The values inside a patch keep the order row, column, channel. Arithmetic in the reference's order: rescaling folded
    into mean and standard deviation, then subtract, then divide.
    """
    given = torch.as_tensor(patches)
    mean, std = _mean_and_std(config, given.device)
    return given.to(torch.float32).sub_(mean).div_(std).flatten(1)


def to_reference_layout(patches: Tensor | NDArray[np.uint8], config: ImageConfig) -> Tensor:
    """uint8 [P, p, p, 3] → float32 [1, 3, p, P*p]: the reference's `pixel_values`, patches side by side."""
    count, size = patches.shape[0], config.patch_size
    values = normalise(patches, config).view(count, size, size, 3)
    return values.permute(3, 1, 0, 2).reshape(1, 3, size, count * size)


def _mean_and_std(config: ImageConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation on the scale 0..255, float32 [3], rounded as the reference rounds them."""
    scale = 1.0 / (1 / 255)
    return (
        torch.tensor(config.image_mean, device=device) * scale,
        torch.tensor(config.image_std, device=device) * scale,
    )
