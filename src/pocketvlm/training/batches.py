"""Examples → packed batches: several samples one after the other, between which nothing passes.

Packing is exact: attention, convolution and the state of linear attention stop at the borders of `PackedBatch`, and
views are encoded each for itself. So a packed batch has the losses and gradients of its samples one by one, without
padding.

Shapes: T tokens of all samples · R of them that are learnt from · P patches of all their views, p patch_size
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment
from pocketvlm.training.examples import IGNORED, Example
from pocketvlm.views import View


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one forward and backward work on.

    Attributes:
        input_ids: int64 [T].
        rows: int64 [R], places in [T] of what is learnt from.
        targets: int64 [R], the tokens that are learnt there.
        patches: uint8 [P, p, p, 3].
        views: of all samples, in order.
        lengths: tokens of each sample.
        sources: of each sample.
    """

    input_ids: Tensor
    rows: Tensor
    targets: Tensor
    patches: Tensor
    views: list[View]
    lengths: list[int]
    sources: list[str]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Batch:
        """Pack examples, at least one."""
        targets = torch.cat([one.targets for one in examples])
        rows = (targets != IGNORED).nonzero().squeeze(1)
        return cls(
            torch.cat([one.input_ids for one in examples]),
            rows,
            targets[rows],
            torch.cat([one.patches for one in examples]),
            [view for one in examples for view in one.views],
            [len(one.input_ids) for one in examples],
            [one.source for one in examples],
        )

    def packed(self, device: torch.device | str) -> PackedBatch:
        return PackedBatch.of([Segment(length) for length in self.lengths], device)

    @property
    def samples(self) -> Tensor:
        """int64 [R], the number of the sample that each row belongs to."""
        return torch.bucketize(self.rows, torch.tensor(self.lengths).cumsum(0), right=True)


def micro_batches(items: Iterable[Sequence[Example]], max_tokens: int, max_patches: int) -> Iterator[Batch]:
    """Cut what a step works on, in order, into batches that fit into memory.

    Args:
        items: each an example, or the examples of a pair, which stay together. One that is larger alone stands alone.
    """
    kept: list[Example] = []
    tokens = patches = 0
    for item in items:
        more_tokens, more_patches = sum(len(one.input_ids) for one in item), sum(len(one.patches) for one in item)
        if kept and (tokens + more_tokens > max_tokens or patches + more_patches > max_patches):
            yield Batch.of(kept)
            kept, tokens, patches = [], 0, 0
        kept.extend(item)
        tokens += more_tokens
        patches += more_patches
    if kept:
        yield Batch.of(kept)


def bucketed(items: Sequence[Sequence[Example]], max_tokens: int, max_patches: int) -> list[Batch]:
    """As `micro_batches`, for the items of one step, whose order does not matter: the longest first, each into the
    first batch with room for it, which makes the fewest batches (first-fit decreasing).
    """
    sizes = [(sum(len(one.input_ids) for one in item), sum(len(one.patches) for one in item)) for item in items]
    order = sorted(range(len(items)), key=lambda i: -max(sizes[i][0] / max_tokens, sizes[i][1] / max_patches))
    filled: list[tuple[int, int, list[Example]]] = []
    for i in order:
        for place, (tokens, patches, kept) in enumerate(filled):
            if tokens + sizes[i][0] <= max_tokens and patches + sizes[i][1] <= max_patches:
                kept.extend(items[i])
                filled[place] = (tokens + sizes[i][0], patches + sizes[i][1], kept)
                break
        else:
            filled.append((*sizes[i], list(items[i])))
    return [Batch.of(kept) for _, _, kept in filled]
