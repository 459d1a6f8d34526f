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

import numpy as np
import torch
from torch import Tensor

from pocketvlm.model.vision.view_order import nearest_positions, window_order
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
    outputs = [np.arange(f, f + v.visual_tokens) for f, v in zip(first_feature, views, strict=True)]
    patch_index, position_ids, output_index = (
        torch.from_numpy(np.concatenate(index)).to(device) for index in (patches, positions, outputs)
    )
    return ViewPacking(patch_index, position_ids, output_index, tuple(groups[False]), tuple(groups[True]))
