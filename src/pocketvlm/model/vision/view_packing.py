"""How the tower packs views: one order of patches in which attention, both merges and the projector need no shuffling.

Views of the same shape and rate stand next to each other (attention is then a dense product for each distinct shape,
without mask or padding), 16x views before 4x views. Within a view, patches stand window by window: in 16x mode the
4 x 4 patches of one visual token are neighbours, and in them each 2 x 2 window. Attention does not see the order of its
tokens (positions are added to the patches), so one permutation at the door replaces all later ones.

Shapes:  P patches of all views · N visual tokens of all views
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pocketvlm.config import DownsampleMode
from pocketvlm.errors import ConfigError
from pocketvlm.views import View


@dataclass(frozen=True)
class ViewGroup:
    """`count` neighbouring views of `tokens` tokens each."""

    count: int
    tokens: int

    def compressed(self) -> ViewGroup:
        """The same views after a 2 x 2 merge."""
        return ViewGroup(self.count, self.tokens // 4)


@dataclass(frozen=True)
class ViewPacking:
    """Everything the tower needs to know about a batch of views; made on the host."""

    patch_index: Tensor  # [P] rows of the incoming patches, in packed order
    position_ids: Tensor  # [P] rows of the position table, in packed order
    output_index: Tensor  # [N] rows of the packed features, in the order the views came
    groups_16x: tuple[ViewGroup, ...]
    groups_4x: tuple[ViewGroup, ...]

    @property
    def patches_16x(self) -> int:
        """Packed rows that go through early compression; they come first."""
        return sum(g.count * g.tokens for g in self.groups_16x)


@lru_cache(maxsize=512)
def window_order(height: int, width: int, mode: DownsampleMode) -> Tensor:
    """[h * w] row-major patch numbers in window order: 4 x 4 blocks of 2 x 2 windows (16x) or 2 x 2 windows (4x)."""
    side = 4 if mode == "16x" else 2
    if height % side or width % side:
        raise ConfigError(f"a {mode} view of {height} x {width} patches is no multiple of {side} on each side")
    numbers = torch.arange(height * width)
    if mode == "16x":
        blocks = numbers.view(height // 4, 2, 2, width // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    else:
        blocks = numbers.view(height // 2, 2, width // 2, 2).permute(0, 2, 1, 3)
    return blocks.reshape(-1)


@lru_cache(maxsize=512)
def nearest_positions(height: int, width: int, buckets: int) -> Tensor:
    """[h * w] rows of the square position table, nearest bucket on each axis.

    The boundaries are fp32 sums of the same step as in the reference: whether an edge case falls left or right of one
    decides exact parity, so this is not the place for tidier arithmetic.
    """
    boundaries = torch.arange(1 / buckets, 1.0, 1 / buckets)
    rows, columns = (torch.bucketize(torch.arange(n) / n, boundaries, right=True) for n in (height, width))
    return (rows[:, None] * buckets + columns).flatten()


def pack_views(views: Sequence[View], buckets: int, device: torch.device | str = "cpu") -> ViewPacking:
    """Plan the packed order of these views for a position table of `buckets` x `buckets`."""
    first_patch, patch = [], 0
    for view in views:
        first_patch.append(patch)
        patch += view.patches
    by_shape: dict[tuple[bool, int, int], list[int]] = {}
    for i, view in enumerate(views):
        by_shape.setdefault((view.downsample_mode == "4x", view.size.height, view.size.width), []).append(i)

    patches, positions = [], []
    groups: dict[bool, list[ViewGroup]] = {False: [], True: []}
    first_feature, feature = [0] * len(views), 0
    for (is_4x, height, width), members in sorted(by_shape.items()):
        order = window_order(height, width, "4x" if is_4x else "16x")
        position = nearest_positions(height, width, buckets)[order]
        for i in members:
            patches.append(order + first_patch[i])
            positions.append(position)
            first_feature[i] = feature
            feature += views[i].visual_tokens
        groups[is_4x].append(ViewGroup(len(members), height * width))
    outputs = [torch.arange(f, f + v.visual_tokens) for f, v in zip(first_feature, views, strict=True)]
    patch_index, position_ids, output_index = (torch.cat(index).to(device) for index in (patches, positions, outputs))
    return ViewPacking(patch_index, position_ids, output_index, tuple(groups[False]), tuple(groups[True]))
