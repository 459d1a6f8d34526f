"""Samples → views: each picture cut as at inference, every view at a rate of compression that is drawn.

Shapes:  P patches of all views
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pocketvlm.config import DownsampleMode, ImageConfig
from pocketvlm.processing.patches.image import cut_patches
from pocketvlm.processing.patches.slicing import SlicePlan, plan_views
from pocketvlm.synthetic.sample import Picture
from pocketvlm.views import Size, View

SMALL = 200 * 200  # pictures below this many pixels may go in as they are


@dataclass(frozen=True, slots=True)
class Rates:
    """How the views of a sample are compressed: all 4x, all 16x, or (the rest) drawn view by view.

    Attributes:
        all_4x, all_16x: shares of the samples.
    """

    all_4x: float = 1.0
    all_16x: float = 0.0

    def draw(self, rng: np.random.Generator) -> DownsampleMode | None:
        """A rate for all views of a sample; None is one for each view."""
        share = rng.random()
        if share < self.all_4x:
            return "4x"
        return "16x" if share < self.all_4x + self.all_16x else None


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """One picture or frame, cut into views."""

    patches: Tensor  # uint8 [P, patch, patch, 3]
    plan: SlicePlan

    @property
    def views(self) -> tuple[View, ...]:
        return self.plan.views


def encode_picture(
    picture: Picture,
    config: ImageConfig,
    mode: DownsampleMode | None,
    rng: np.random.Generator,
    as_is: float = 0.0,
    max_slice_nums: int | None = None,
) -> EncodedPicture:
    """Cut a picture as inference does.

    Args:
        mode: of all views, or None for one drawn for each.
        as_is: chance that a small picture is not enlarged: the same print for a quarter of the money.
        max_slice_nums: most slices; `config`'s when None.
    """
    height, width = picture.shape[:2]
    size = Size(height=height, width=width)
    unit = 4 * config.patch_size
    if height * width < SMALL and not height % unit and not width % unit and rng.random() < as_is:
        patches = Size(height=height // config.patch_size, width=width // config.patch_size)
        plan = SlicePlan(image=size, grid=None, overview=size, refined=None, views=(View(patches, mode or "16x"),))
    else:
        # The sizes that 16x uses suit both rates.
        plan = plan_views(size, config, mode or "16x", max_slice_nums)
    if mode is None:
        views = tuple(View(view.size, "4x" if rng.random() < 0.5 else "16x") for view in plan.views)
        plan = dataclasses.replace(plan, views=views)
    patches = cut_patches(np.ascontiguousarray(picture), plan, config.patch_size)
    return EncodedPicture(torch.from_numpy(patches), plan)
