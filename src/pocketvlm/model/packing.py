"""What one forward of the decoder works on: tokens of several sequences, one after the other, without padding.

`PackedBatch` is made on the host once a forward and holds every index that the layers need, so that no layer looks at
a tensor's values. Shapes: T tokens of all sequences · B sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pocketvlm.kernels.causal_conv1d import ConvPlan, plan_conv
from pocketvlm.kernels.gated_delta_rule import ChunkPlan, plan_chunks
from pocketvlm.kernels.prompt_delta_rule import PromptPlan, plan_prompts
from pocketvlm.model.segments import Batch, Segment

if TYPE_CHECKING:
    from pocketvlm.model.adapters.placed import PlacedAdapter


@dataclass(frozen=True)
class PackedBatch(Batch):
    """Segments of different sequences, in packed order, and every index that the layers need, on `device`."""

    device: torch.device

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device | str = "cpu") -> PackedBatch:
        return cls(tuple(segments), torch.device(device))

    @cached_property
    def slots(self) -> slice | Tensor:
        """The segments' cache slots, as a slice (a view, no copy) when they are consecutive."""
        if self.slot_range is not None:
            return self.slot_range
        return torch.tensor([s.slot for s in self.segments], device=self.device)

    @cached_property
    def positions(self) -> Tensor:
        """[T] plain 1-D positions: each sequence counts from its own start."""
        return torch.cat([torch.arange(s.start, s.start + s.length) for s in self.segments]).to(self.device)

    @cached_property
    def token_slots(self) -> Tensor:
        """[T] cache slot of each token."""
        slots = torch.tensor([s.slot for s in self.segments])
        return slots.repeat_interleave(torch.tensor(self.lengths)).to(self.device)

    @cached_property
    def adapter_rows(self) -> dict[PlacedAdapter, slice | Tensor]:
        """Packed rows of the tokens that follow each adapter; none for the model as it is."""
        rows: dict[PlacedAdapter, list[int]] = {}
        for first, s in zip(self.firsts, self.segments, strict=True):
            if s.adapter is not None:
                rows.setdefault(s.adapter, []).extend(range(first, first + s.length))
        return {adapter: self._as_rows(own) for adapter, own in rows.items()}

    def _as_rows(self, rows: list[int]) -> slice | Tensor:
        """A slice (a view, no copy) where they are neighbours."""
        if rows[-1] - rows[0] + 1 == len(rows):
            return slice(rows[0], rows[-1] + 1)
        return torch.tensor(rows, device=self.device)

    def chosen_adapter_rows(self, rows: Sequence[int]) -> dict[PlacedAdapter, slice | Tensor]:
        """The same for a selection of packed rows, by their places in it."""
        owners = [s.adapter for s in self.segments for _ in range(s.length)]
        chosen: dict[PlacedAdapter, list[int]] = {}
        for place, row in enumerate(rows):
            if (adapter := owners[row]) is not None:
                chosen.setdefault(adapter, []).append(place)
        return {adapter: self._as_rows(own) for adapter, own in chosen.items()}

    @cached_property
    def padded_groups(self) -> tuple[list[tuple[int, Tensor]], Tensor]:
        """Sequences of like lengths, to be laid out as [count, longest of the group]: a (count, packed rows) for each
        group; and, for each packed row, its row in all groups one after the other.

        A group's longest sequence is at most a quarter longer than its shortest, so that one long prompt does not make
        all others as expensive as itself. Padding points at row 0: it sits behind every real token, where causal
        attention never looks.
        """
        groups: list[list[int]] = []
        for b in sorted(range(len(self.segments)), key=lambda b: -self.lengths[b]):
            if groups and self.lengths[b] * 5 >= self.lengths[groups[-1][0]] * 4:
                groups[-1].append(b)
            else:
                groups.append([b])
        back = torch.empty(self.tokens, dtype=torch.long)
        laid_out, start = [], 0
        for group in groups:
            longest = self.lengths[group[0]]
            index = torch.zeros(len(group), longest, dtype=torch.long)
            for row, b in enumerate(group):
                first, length = self.firsts[b], self.lengths[b]
                index[row, :length] = torch.arange(first, first + length)
                back[first : first + length] = torch.arange(start, start + length)
                start += longest
            laid_out.append((len(group), index.flatten().to(self.device)))
        return laid_out, back.to(self.device)

    @cached_property
    def decode_mask(self) -> Tensor | None:
        """[B, 1, 1, longest] of what each single new token may see; None when all sequences are equally long."""
        ends = torch.tensor([s.start + 1 for s in self.segments], device=self.device)
        longest = max(s.start + 1 for s in self.segments)
        if all(s.start + 1 == longest for s in self.segments):
            return None
        return (torch.arange(longest, device=self.device) < ends[:, None])[:, None, None, :]

    @cached_property
    def chunks(self) -> ChunkPlan:
        return plan_chunks(self.lengths, self.device)

    def prompts(self, dtype: torch.dtype) -> PromptPlan:
        """For the delta rule over queries of this dtype; one object for all layers."""
        if dtype not in self._prompt_plans:
            self._prompt_plans[dtype] = plan_prompts(self.lengths, self.device, dtype)
        return self._prompt_plans[dtype]

    @cached_property
    def _prompt_plans(self) -> dict[torch.dtype, PromptPlan]:
        return {}

    def conv(self, taps: int) -> ConvPlan:
        if taps not in self._conv_plans:
            self._conv_plans[taps] = plan_conv(self.lengths, taps, self.device)
        return self._conv_plans[taps]

    @cached_property
    def _conv_plans(self) -> dict[int, ConvPlan]:
        return {}
