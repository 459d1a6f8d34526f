"""Muon on the matrices of the blocks and AdamW on the rest, as one optimiser."""

from __future__ import annotations

from typing import Any

import torch

from recipes.nano.muon import Muon
from recipes.nano.objective import Learner
from recipes.nano.settings import Optimiser


class Together:
    """Several optimisers, each of its own parameters, that take their steps together."""

    def __init__(self, *optimisers: torch.optim.Optimizer) -> None:
        self.optimisers = optimisers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for one in self.optimisers for group in one.param_groups]

    def step(self) -> None:
        for one in self.optimisers:
            one.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for one in self.optimisers:
            one.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"optimisers": [one.state_dict() for one in self.optimisers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for one, state in zip(self.optimisers, state_dict["optimisers"], strict=True):
            one.load_state_dict(state)


def make_optimiser(learner: Learner, settings: Optimiser, dtype: torch.dtype = torch.float32) -> Together:
    """The optimiser of all parameters of a learner; `dtype` is that of Muon's products."""
    named = list(learner.model.named_parameters())
    # The wide linear_1 of the compression would cost Muon as much as all other matrices together.
    matrices = [p for name, p in named if p.dim() == 2 and ".layers." in name]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen] + list(learner.reader.parameters())
    rate, decay = settings.learning_rate, settings.weight_decay
    return Together(
        Muon(matrices, rate, settings.momentum, decay, dtype),
        torch.optim.AdamW(rest, rate, betas=(0.9, 0.98), weight_decay=decay),
    )
