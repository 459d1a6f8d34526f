"""The depthwise causal convolution in front of linear attention, over packed sequences.

Shapes:  T tokens of all sequences, packed · B sequences · C channels · W taps (4)
         x_TC · weight_CW · state_BSC with S = W - 1 (the inputs just before the first token of each sequence)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def naive_causal_conv1d(
    x_TC: Tensor, weight_CW: Tensor, lengths: Sequence[int], state_BSC: Tensor
) -> tuple[Tensor, Tensor]:
    """One library convolution a sequence, then SiLU: the plain twin. Returns [T, C] and the new states [B, S, C]."""
    outputs, states = [], []
    for x, state in zip(x_TC.split(list(lengths)), state_BSC, strict=True):
        extended = torch.cat([state.to(x.dtype), x])
        y = F.conv1d(extended.T.unsqueeze(0), weight_CW.unsqueeze(1), groups=weight_CW.shape[0])
        outputs.append(F.silu(y[0].T))
        states.append(extended[-state.shape[0] :])
    return torch.cat(outputs), torch.stack(states)


@dataclass(frozen=True)
class ConvPlan:
    """Rows of `[state; tokens]`, sequence after sequence; made once a batch, used by every linear layer."""

    extended_index: Tensor  # [T + B * S], row of cat([all states, all tokens])
    output_index: Tensor  # [T], first of the W extended rows that each token's output sums over
    state_index: Tensor  # [B * S], extended rows that become the new states


def plan_conv(lengths: Sequence[int], taps: int = 4, device: torch.device | str = "cpu") -> ConvPlan:
    """Plan the convolution of packed sequences with these lengths (host arithmetic only)."""
    keep = taps - 1
    extended: list[int] = []
    output: list[int] = []
    state: list[int] = []
    token, row, states = 0, 0, keep * len(lengths)
    for b, length in enumerate(lengths):
        extended += [*range(b * keep, (b + 1) * keep), *range(states + token, states + token + length)]
        output += range(row, row + length)
        row += keep + length
        state += range(row - keep, row)
        token += length
    return ConvPlan(*(torch.tensor(index, dtype=torch.long, device=device) for index in (extended, output, state)))


def packed_causal_conv1d(x_TC: Tensor, weight_CW: Tensor, plan: ConvPlan, state_BSC: Tensor) -> tuple[Tensor, Tensor]:
    """The same result as the plain twin without a loop over sequences: shifted multiply-adds, channels last."""
    batch, keep, channels = state_BSC.shape
    extended = torch.cat([state_BSC.to(x_TC.dtype).view(-1, channels), x_TC])
    if batch > 1:
        extended = extended.index_select(0, plan.extended_index)
    rows = extended.shape[0] - keep
    y = extended[:rows] * weight_CW[:, 0]
    for tap in range(1, keep + 1):
        y = torch.addcmul(y, extended[tap : tap + rows], weight_CW[:, tap])
    if batch > 1:
        y = y.index_select(0, plan.output_index)
    return F.silu(y), extended.index_select(0, plan.state_index).view(batch, keep, channels)


def step_causal_conv1d(x_BC: Tensor, weight_CW: Tensor, state_BSC: Tensor) -> Tensor:
    """One token of each sequence; shifts `state_BSC` in place and returns [B, C]."""
    window_BWC = torch.cat([state_BSC.to(x_BC.dtype), x_BC.unsqueeze(1)], dim=1)
    state_BSC.copy_(window_BWC[:, 1:])
    return F.silu((window_BWC * weight_CW.T).sum(1))
