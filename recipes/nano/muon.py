"""Muon (Jordan et al., 2024) with its Newton-Schulz iteration in the dtype that the machine multiplies fastest, shared
by the processes.

torch.optim.Muon iterates in bfloat16, which is several times slower than fp32 on CPUs without bfloat16 units (and takes
half the time on those with them), and every process would repeat all of it; those are the only reasons for this file.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

# Quintic coefficients of the reference implementation.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values land between about 0.7 and 1.2."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; scaled so that an update is as large as AdamW's at the same learning rate.

    With several processes (gradients already averaged) each orthogonalises its share of the matrices, and the updates
    are added up.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float, dtype: torch.dtype
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            updates = self._updates(learning, group["momentum"])
            for p, update in zip(learning, updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)

    def _updates(self, learning: list[Tensor], momentum: float) -> list[Tensor]:
        updates = []
        for number, p in enumerate(learning):
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p)
            assert p.grad is not None
            state["momentum"].lerp_(p.grad, 1 - momentum)
            mine = number % self.world == self.rank
            updates.append(self._update(p.grad.lerp(state["momentum"], momentum)) if mine else torch.zeros_like(p))
        if self.world > 1 and updates:
            flat = torch.cat([update.flatten() for update in updates])
            dist.all_reduce(flat)
            parts = flat.split([p.numel() for p in learning])
            updates = [part.view_as(p) for part, p in zip(parts, learning, strict=True)]
        return updates

    def _update(self, momentum: Tensor) -> Tensor:
        """Scaled in fp32: the norm of a gradient may be no number of the other dtype."""
        scaled = momentum / (momentum.norm() + 1e-7)
        return orthogonalise(scaled.to(self.dtype)).to(momentum.dtype).contiguous()
