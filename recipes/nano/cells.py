"""Dense supervision: what stands in the cell of each visual token, and the heads that ask the tower for it.

Reading comes several times sooner when each token must say which characters its cell shows, and finding things when it
must say what covers its cell, in which colour and how far it reaches. Training only: the heads are not published.

Shapes:  N visual tokens of all views · D hidden size
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketvlm.processing.patches.slicing import SlicePlan
from pocketvlm.synthetic import CharacterBox
from pocketvlm.synthetic.drawing.figures import COLOURS, SHAPES
from pocketvlm.synthetic.sample import ObjectBox

SLOTS = 10  # characters of one part of a cell that are asked for; nothing is asked where there are more
LONGEST = 16  # of a target, with the characters that may be left out
HALO = 0.18  # of a part's side: what has its middle so close outside may be said or left out
PARTS = 4  # of a cell at 16x: each is as large as a cell at 4x, which is asked about as a whole
CLASSES = 96  # printable ASCII, and 0 for "no more characters"
KINDS = ("", *SHAPES, "button", "field", "box", "bar", "point")  # "" is no object
COLOUR_NAMES = ("", *COLOURS)  # "" is none with a name
STEPS = 100  # places of an edge: parts of the picture's side
SPREAD = 2.0  # standard deviation of the place that is asked for, in steps: near is nearly right
COVERED = 0.3  # share of the cell, or of the object, that lies in the other
UNKNOWN = -1


class CellTargets(NamedTuple):
    """What each visual token should say.

    Attributes:
        characters: [N, PARTS, LONGEST] the printed characters whose middle falls into each part of its cell or into its
            halo, in reading order, then zeros; `UNKNOWN` where they are too many. A cell at 4x is its own first part,
            its others are `UNKNOWN`.
        optional: bool, [N, PARTS, LONGEST], which of them have their middle in the halo.
        compressed: bool, [N], whether the token is one at 16x.
        objects: [N, 6] kind, colour, and left, top, right, bottom edge of the object that covers most of its cell;
            `UNKNOWN` where nothing is known. Edges are places in the whole picture: asked of the overview.
    """

    characters: Tensor
    optional: Tensor
    compressed: Tensor
    objects: Tensor

    def to(self, device: torch.device | str) -> CellTargets:
        return CellTargets(*(part.to(device) for part in self))


class Grid(NamedTuple):
    """The cells of a view, as [rows, columns] over the resized picture, and the cells of a pixel of the original."""

    rows: int
    columns: int
    first_row: int
    first_column: int
    down: float
    across: float


def grids(plan: SlicePlan, patch: int) -> Iterator[Grid]:
    """The cells of each view of `plan`."""
    slices_across = plan.grid[1] if plan.grid else 0
    for number, view in enumerate(plan.views):
        side = 4 if view.downsample_mode == "16x" else 2
        rows, columns = view.size.height // side, view.size.width // side
        first_row, first_column, size = 0, 0, plan.overview
        if number:
            first_row, first_column = (number - 1) // slices_across * rows, (number - 1) % slices_across * columns
            size = plan.refined or plan.overview
        down = size.height / plan.image.height / (patch * side)
        across = size.width / plan.image.width / (patch * side)
        yield Grid(rows, columns, first_row, first_column, down, across)


def cell_targets(
    characters: Iterable[CharacterBox], objects: Sequence[ObjectBox], plan: SlicePlan, patch: int
) -> CellTargets:
    """Targets of every visual token of a picture. Without `objects` nothing is said about them."""
    characters = tuple(characters)
    read, optional, compressed, found = [], [], [], []
    for number, (view, grid) in enumerate(zip(plan.views, grids(plan, patch), strict=True)):
        is_compressed = view.downsample_mode == "16x"
        texts, may_lack = characters_in(characters, grid, 2 if is_compressed else 1)
        read.append(texts)
        optional.append(may_lack)
        compressed.append(torch.full((grid.rows * grid.columns,), is_compressed))
        found.append(_objects(objects, grid, plan, whole=number == 0))
    return CellTargets(torch.cat(read), torch.cat(optional), torch.cat(compressed), torch.cat(found))


def characters_in(
    characters: Iterable[CharacterBox], grid: Grid, parts: int, slots: int = SLOTS
) -> tuple[Tensor, Tensor]:
    """`CellTargets.characters` and `CellTargets.optional` of a view, with `parts` parts of a cell in each direction, of
    which none is asked for more than `slots` characters."""
    height, width = grid.rows * parts, grid.columns * parts
    found: dict[tuple[int, int], list[tuple[int, bool]]] = {}
    for box in characters:
        y = ((box.top + box.bottom) / 2 * grid.down - grid.first_row) * parts
        x = ((box.left + box.right) / 2 * grid.across - grid.first_column) * parts
        if not (-1 <= y <= height + 1 and -1 <= x <= width + 1):
            continue
        middle, number = (math.floor(y), math.floor(x)), ord(box.character) - 31
        for row in {math.floor(y - HALO), middle[0], math.floor(y + HALO)}:
            for column in {math.floor(x - HALO), middle[1], math.floor(x + HALO)}:
                if 0 <= row < height and 0 <= column < width:
                    found.setdefault((row, column), []).append((number, (row, column) != middle))
    target = np.full((grid.rows, grid.columns, PARTS, LONGEST), UNKNOWN)
    target[:, :, : parts * parts] = 0
    optional = np.zeros(target.shape, bool)
    for (y, x), some in found.items():
        place = y // parts, x // parts, y % parts * parts + x % parts
        numbers, left_out = zip(*some, strict=True)
        if len(some) > LONGEST or len(some) - sum(left_out) > slots:
            target[place] = UNKNOWN  # such small print is beyond a token: what cannot be learnt is not asked
        else:
            target[place][: len(some)] = numbers
            optional[place][: len(some)] = left_out
    return torch.from_numpy(target).flatten(0, 1), torch.from_numpy(optional).flatten(0, 1)


def _objects(objects: Sequence[ObjectBox], grid: Grid, plan: SlicePlan, whole: bool) -> Tensor:
    target = torch.full((grid.rows, grid.columns, 6), UNKNOWN)
    if objects:
        target[..., :2] = 0
    most = torch.zeros(grid.rows, grid.columns)
    for box in objects:
        tall = _overlap(box.top * grid.down - grid.first_row, box.bottom * grid.down - grid.first_row, grid.rows)
        wide = _overlap(
            box.left * grid.across - grid.first_column, box.right * grid.across - grid.first_column, grid.columns
        )
        covered = tall[:, None] * wide[None]
        area = (box.bottom - box.top) * grid.down * (box.right - box.left) * grid.across
        mine = (covered >= COVERED * min(1.0, area)) & (covered > most)
        most = torch.where(mine, covered, most)
        edges = [UNKNOWN] * 4
        if whole:
            height, width = plan.image.height, plan.image.width
            shares = (box.left / width, box.top / height, box.right / width, box.bottom / height)
            edges = [min(STEPS, max(0, round(STEPS * share))) for share in shares]
        target[mine] = torch.tensor([KINDS.index(box.kind), COLOUR_NAMES.index(box.colour), *edges])
    return target.flatten(0, 1)


def _overlap(start: float, end: float, cells: int) -> Tensor:
    """[cells] share of each unit cell that lies between `start` and `end`."""
    low = torch.arange(cells, dtype=torch.float)
    return (low + 1).clamp(max=end).sub(low.clamp(min=start)).clamp(min=0)


class CellReader(nn.Module):
    """Heads on the visual tokens [N, D] and their losses."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.characters = nn.Linear(hidden, SLOTS * CLASSES)
        self.compressed_characters = nn.Linear(hidden, PARTS * SLOTS * CLASSES)
        self.parts = (len(KINDS), len(COLOUR_NAMES), 4 * (STEPS + 1))
        self.objects = nn.Linear(hidden, sum(self.parts))
        places = torch.arange(STEPS + 1.0)
        near = torch.exp(-((places[:, None] - places[None]) ** 2) / (2 * SPREAD**2))
        self.register_buffer("near", near / near.sum(1, keepdim=True), persistent=False)

    def forward(self, features: Tensor, targets: CellTargets) -> dict[str, Tensor]:
        return {
            "characters": self.character_loss(features, targets),
            "objects": self.object_loss(features, targets.objects),
        }

    def character_loss(self, features: Tensor, targets: CellTargets) -> Tensor:
        """`print_loss` of all parts."""
        compressed = targets.compressed

        def chosen(part: Tensor) -> Tensor:
            return torch.cat([part[~compressed, 0], part[compressed].flatten(0, 1)])

        plain = self.characters(features[~compressed]).view(-1, SLOTS, CLASSES).float()
        parts = self.compressed_characters(features[compressed]).view(-1, SLOTS, CLASSES).float()
        scores, characters, optional = torch.cat([plain, parts]), chosen(targets.characters), chosen(targets.optional)
        return print_loss(scores, characters, optional)

    def object_loss(self, features: Tensor, objects: Tensor) -> Tensor:
        """Mean over the cells of pictures with objects: kind and colour, and the edges where they are known."""
        known = objects[:, 0] != UNKNOWN
        if not known.any():
            return features.sum() * 0
        objects = objects[known]
        kinds, colours, edges = self.objects(features[known]).float().split(self.parts, dim=1)
        weight = (objects[:, 0] > 0).float() * 0.9 + 0.1
        each = F.cross_entropy(kinds, objects[:, 0], reduction="none")
        each = each + F.cross_entropy(colours, objects[:, 1], reduction="none")
        placed = (objects[:, 2] != UNKNOWN).float()
        wanted = self.get_buffer("near")[objects[:, 2:].clamp(min=0)]
        off = -(wanted * edges.view(-1, 4, STEPS + 1).log_softmax(-1)).sum(-1).mean(1)
        return ((each + off * placed) * weight).sum() / weight.sum()


def print_loss(scores: Tensor, characters: Tensor, optional: Tensor) -> Tensor:
    """Mean over the slots that matter of everything that is asked: every character, and the first "no more characters".

    Args:
        scores: fp32 [N, slots, CLASSES]; the others as for `missed`, with `UNKNOWN` where nothing is asked.
    """
    asked = characters[:, 0] != UNKNOWN
    scores, characters, optional = scores[asked], characters[asked], optional[asked]
    each = missed(scores.log_softmax(-1), characters, optional)
    slots = ((characters > 0) & ~optional).sum(1) + 1
    # Most cells are empty: they count a tenth, or the tower would learn emptiness first.
    weight = (slots > 1).float() * 0.9 + 0.1
    return (each * weight).sum() / (slots * weight).sum().clamp(min=1e-9)


def missed(said: Tensor, characters: Tensor, optional: Tensor) -> Tensor:
    """[N] minus the logarithm of the probability that the slots say the characters, with or without the optional ones.

    A character whose middle lies on the border of two cells belongs to neither more than to the other; what that costs
    stands in docs/log.md.

    Args:
        said: [N, slots, CLASSES] logarithms of probabilities; class 0 ends the characters.
        characters: [N, L], then zeros.
        optional: bool, [N, L].
    """
    impossible = said.new_full((len(said), 1), -1e4)
    # reached[n, s]: the first characters have been said in s slots.
    reached = torch.cat([torch.zeros_like(impossible), impossible.expand(-1, said.shape[1])], 1)
    longest = int((characters > 0).sum(1).max()) if len(characters) else 0
    for i in range(longest):
        one = characters[:, i].clamp(min=0)
        here = said.gather(2, one[:, None, None].expand(-1, said.shape[1], 1)).squeeze(2)
        is_said = torch.cat([impossible, reached[:, :-1] + here], 1)
        both = torch.logaddexp(is_said, torch.where(optional[:, i, None], reached, impossible))
        reached = torch.where(one[:, None] > 0, both, reached)
    ends = torch.cat([said[:, :, 0], torch.zeros_like(impossible)], 1)
    return -(reached + ends).logsumexp(1)
