"""AdamW (Loshchilov and Hutter, arXiv 1711.05101), with its two moments in 32 or in 8 bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import nn, optim

from pocketvlm.training.memory import import_bitsandbytes
from pocketvlm.training.settings import TuneSettings

_LEAST, _BLOCK = 4096, 256  # of bitsandbytes: values of a tensor that is kept in 8 bits, and of those with one scale


class Optimiser(Protocol):
    """What the trainer and its checkpoints need of one; those of torch are such."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The trainer sets the "lr" of each."""

    def step(self) -> Any:
        """Change parameters that have a gradient."""

    def zero_grad(self, set_to_none: bool) -> None:
        """Forget the gradients."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and texts, in lists and dictionaries."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with such a state."""


def make_optimiser(parameters: Iterable[nn.Parameter], settings: TuneSettings, rate: float) -> optim.Optimizer:
    """The optimiser that the settings name. Tensors of one axis do not decay, as norms and biases in transformers: zero
    is nothing that they should come to.

    With "adamw8bit" the moments of tensors from 4,096 values on are kept in 8 bits with a scale for each 256 of them
    (Dettmers et al., arXiv 2110.02861): 2 bytes a parameter instead of 8.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    parameters = _groups(list(parameters), settings.weight_decay)
    if settings.optimiser == "adamw8bit":
        made = import_bitsandbytes().optim.AdamW8bit(list(parameters), rate, weight_decay=settings.weight_decay)
        assert isinstance(made, optim.Optimizer)
        return made
    return optim.AdamW(parameters, rate, weight_decay=settings.weight_decay)


def _groups(parameters: list[nn.Parameter], weight_decay: float) -> list[Any]:
    """All that learns; what does not decay is a group of its own, where there is some and the rest does."""
    if not weight_decay:
        return parameters
    decaying, other = ([p for p in parameters if (p.ndim > 1) == decays] for decays in (True, False))
    groups: list[dict[str, Any]] = [{"params": decaying}, {"params": other, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def step_bytes(learns: Sequence[nn.Parameter], settings: TuneSettings, device: torch.device) -> int:
    """What a step of the optimiser needs beside moments and gradients: the largest tensor once more; on a GPU, where
    torch takes all of them together, each of them; nothing with moments in 8 bits, whose kernels work in place."""
    if settings.optimiser == "adamw8bit":
        return 0
    sizes = [p.numel() * p.element_size() for p in learns]
    return sum(sizes) if device.type == "cuda" else max(sizes, default=0)


def state_bytes(learns: Sequence[nn.Parameter], settings: TuneSettings) -> int:
    """What is kept beside the weights that learn from step to step: moments, and the moving average."""
    averages = sum(p.numel() * p.element_size() for p in learns) if settings.ema else 0
    if settings.optimiser == "adamw":
        return averages + 2 * sum(p.numel() * p.element_size() for p in learns)
    small = sum(p.numel() for p in learns if p.numel() < _LEAST)
    large = sum(p.numel() for p in learns) - small
    return averages + 2 * (4 * small + large + 4 * large // _BLOCK)
