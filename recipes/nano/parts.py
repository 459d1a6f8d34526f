"""Dense supervision inside the tower: what stands under each of its own tokens, four of which become a visual token.

The visual tokens alone must sort out up to ten characters each; under a patch of a view at 4x stand one or two. Asked
for those as well, the tower reads 38 to 40 instead of 27 % after the same minutes from nothing (docs/log.md). Training
only: the heads are not published.

Shapes:  N visual tokens of all views · D hidden size of the tower
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pocketvlm.processing.patches.slicing import SlicePlan
from pocketvlm.synthetic import CharacterBox
from recipes.nano.cells import CLASSES, PARTS, SLOTS, characters_in, grids, print_loss

PATCH_SLOTS = 4  # characters of a patch that are asked for; nothing is asked where there are more


class PartTargets(NamedTuple):
    """What the tower's tokens should say, four for each visual token: at 4x they are patches, at 16x windows of four.

    Attributes:
        characters, optional: [N, PARTS, LONGEST] as in `CellTargets`, in the order in which they are merged.
        compressed: bool, [N], whether the visual token is one at 16x.
    """

    characters: Tensor
    optional: Tensor
    compressed: Tensor

    def to(self, device: torch.device | str) -> PartTargets:
        return PartTargets(*(part.to(device) for part in self))


def part_targets(characters: Iterable[CharacterBox], plan: SlicePlan, patch: int) -> PartTargets:
    """Targets of the tower's tokens of a picture."""
    characters = tuple(characters)
    found = []
    for view, grid in zip(plan.views, grids(plan, patch), strict=True):
        is_compressed = view.downsample_mode == "16x"
        texts, optional = characters_in(characters, grid, 2, SLOTS if is_compressed else PATCH_SLOTS)
        found.append((texts, optional, torch.full((grid.rows * grid.columns,), is_compressed)))
    return PartTargets(*(torch.cat(part) for part in zip(*found, strict=True)))


class PartReader(nn.Module):
    """Heads on the tower's tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Linear(width, PATCH_SLOTS * CLASSES)
        self.windows = nn.Linear(width, SLOTS * CLASSES)

    def forward(self, tokens: Tensor, targets: PartTargets) -> Tensor:
        """The mean loss of [N, PARTS, D] tokens, of patches and windows apart and weighted by how many there are."""
        total, count = tokens.sum() * 0, 0
        for head, slots, some in (
            (self.patches, PATCH_SLOTS, ~targets.compressed),
            (self.windows, SLOTS, targets.compressed),
        ):
            number = int(some.sum())
            if number:
                scores = head(tokens[some].flatten(0, 1)).view(number * PARTS, slots, CLASSES).float()
                asked = targets.characters[some].flatten(0, 1), targets.optional[some].flatten(0, 1)
                total = total + number * print_loss(scores, *asked)
                count += number
        return total / max(count, 1)
