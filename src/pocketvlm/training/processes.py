"""The processes of a run on several devices: one each, started by `torchrun`, which add their gradients up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """Attributes:
    rank: of this one; the first writes.
    world: how many there are.
    device: of this one.
    """

    rank: int = 0
    world: int = 1
    device: torch.device | str = "cpu"

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Those that torchrun's environment names; this one alone without it."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), world, device)

    def total(self, value: float) -> float:
        """The sum over all processes."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return float(tensor)

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Every process gets the sums; a parameter without a gradient counts as zero."""
        if self.world == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        for p, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = grad.view_as(p)

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()
