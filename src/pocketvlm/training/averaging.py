"""An exponential moving average of what learns (Polyak averaging): smoother weights than those of the last step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """decay · average + (1 - decay) · weights, after every step, in the dtype of the weights.

    In the first steps the decay is smaller, (1 + steps) / (10 + steps), or the weights of the start would weigh for
    long.

    Args:
        model: whose parameters that learn are averaged.
        decay: from 0 to below 1; 0 keeps no average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.values: dict[str, Tensor] = {}
        if decay:
            self.values = {name: p.detach().clone() for name, p in self._learns.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after a step in; the first step is 1."""
        new = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, average in self.values.items():
            average.lerp_(self._learns[name], new)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on with the averages of a checkpoint."""
        for name, average in self.values.items():
            average.copy_(values[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the averages as its weights; nothing changes without averages."""
        self.apply()
        try:
            yield
        finally:
            self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Exchange weights and averages."""
        for name, average in self.values.items():
            weights = self._learns[name]
            weights.data, self.values[name] = average, weights.data
