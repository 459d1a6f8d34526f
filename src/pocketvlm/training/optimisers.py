"""AdamW (Loshchilov and Hutter, arXiv 1711.05101), with its two moments in 32 or in 8 bits."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn, optim

from pocketvlm.training.memory import import_bitsandbytes
from pocketvlm.training.settings import TuneSettings

_LEAST, _BLOCK = 4096, 256  # of bitsandbytes: values of a tensor that is kept in 8 bits, and of those with one scale


def make_optimiser(parameters: Iterable[nn.Parameter], settings: TuneSettings, rate: float) -> optim.Optimizer:
    """The optimiser that the settings name.

    With "adamw8bit" the moments of tensors from 4,096 values on are kept in 8 bits with a scale for each 256 of them
    (Dettmers et al., arXiv 2110.02861): 2 bytes a parameter instead of 8.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    if settings.optimiser == "adamw8bit":
        made = import_bitsandbytes().optim.AdamW8bit(list(parameters), rate, weight_decay=settings.weight_decay)
        assert isinstance(made, optim.Optimizer)
        return made
    return optim.AdamW(parameters, rate, weight_decay=settings.weight_decay)


def state_bytes(model: nn.Module, settings: TuneSettings) -> int:
    """What is kept beside the weights that learn from step to step: moments, and the moving average."""
    learns = [p for p in model.parameters() if p.requires_grad]
    averages = sum(p.numel() * p.element_size() for p in learns) if settings.ema else 0
    if settings.optimiser == "adamw":
        return averages + 2 * sum(p.numel() * p.element_size() for p in learns)
    small = sum(p.numel() for p in learns if p.numel() < _LEAST)
    large = sum(p.numel() for p in learns) - small
    return averages + 2 * (4 * small + large + 4 * large // _BLOCK)
