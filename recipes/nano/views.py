"""Samples → views: each picture cut as at inference, every view at a rate of compression that is drawn.

Shapes:  P patches of all views · N visual tokens of all views
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pocketvlm.config import DownsampleMode, ImageConfig
from pocketvlm.processing.image import cut_patches
from pocketvlm.processing.slicing import SlicePlan, plan_views
from pocketvlm.synthetic import CharacterBox
from pocketvlm.synthetic.sample import Picture
from pocketvlm.views import Size, View

SLOTS = 8  # characters of one visual token that the tower's dense loss asks for
CLASSES = 96  # printable ASCII, and 0 for "no more characters"
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
    return EncodedPicture(cut_patches(torch.from_numpy(np.array(picture)), plan, config.patch_size), plan)


def character_targets(characters: tuple[CharacterBox, ...], plan: SlicePlan, patch: int) -> Tensor:
    """[N, SLOTS] the printed characters whose middle falls into each visual token's cell, in reading order."""
    columns = plan.grid[1] if plan.grid else 0
    targets = []
    for number, view in enumerate(plan.views):
        side = 4 if view.downsample_mode == "16x" else 2
        h, w = view.size.height // side, view.size.width // side
        # Cells of this view, counted over the whole resized picture.
        first_row, first_column, size = 0, 0, plan.overview
        if number:
            first_row, first_column = (number - 1) // columns * h, (number - 1) % columns * w
            size = plan.refined or plan.overview
        down = size.height / plan.image.height / (patch * side)
        across = size.width / plan.image.width / (patch * side)
        cells: dict[tuple[int, int], list[int]] = {}
        for box in characters:
            y = (box.top + box.bottom) / 2 * down - first_row
            x = (box.left + box.right) / 2 * across - first_column
            if 0 <= y < h and 0 <= x < w:
                cells.setdefault((int(y), int(x)), []).append(ord(box.character) - 31)
        target = torch.zeros(h, w, SLOTS, dtype=torch.long)
        for (y, x), classes in cells.items():
            kept = torch.tensor(classes[:SLOTS])
            target[y, x, : len(kept)] = kept
        targets.append(target.flatten(0, 1))
    return torch.cat(targets)
