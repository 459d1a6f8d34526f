"""The processes of a run on several devices: one each, started by `torchrun`, which add their gradients up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pocketvlm.errors import ConfigError

V = TypeVar("V")


def device_of_process(device: torch.device) -> torch.device:
    """The CUDA device of this process, one for each that torchrun started here; the one given without torchrun, and
    where it has a number."""
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if int(os.environ["LOCAL_RANK"]) >= (there := torch.cuda.device_count()):
        raise ConfigError(f"process {own.index} has no CUDA device: there are {there}", hint="Start fewer processes.")
    torch.cuda.set_device(own)  # which NCCL asks for
    return own


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
        """Those of the group that has been made, or that torchrun's environment names; this one alone without them."""
        if not dist.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) == 1:
                return cls()
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def total(self, value: float) -> float:
        """The sum over all processes."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return float(tensor)

    def add(self, values: Tensor) -> None:
        """Put the sums over all processes into a tensor."""
        if self.world > 1:
            dist.all_reduce(values)

    def mean(self, value: float) -> float:
        """The mean over all processes."""
        return self.total(value) / self.world

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Every process gets the sums. One that has no gradient counts as zero, and where none has one, none gets one:
        optimisers then leave the parameter as it is, as they would with one process."""
        if self.world == 1:
            return
        # Asked first: a step in which a large part rests sends nothing for it.
        counts = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=self.device)
        dist.all_reduce(counts)
        learning = [p for p, count in zip(parameters, counts.tolist(), strict=True) if count]
        if not learning:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in learning]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        for p, grad in zip(learning, flat.split([grad.numel() for grad in grads]), strict=True):
            p.grad = grad.view_as(p)

    def united(self, found: dict[str, V]) -> dict[str, V]:
        """The entries of all processes."""
        if self.world == 1:
            return found
        every: list[dict[str, V]] = [{} for _ in range(self.world)]
        dist.all_gather_object(every, found)
        return {name: value for one in every for name, value in one.items()}

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1 and dist.is_initialized():
            dist.barrier()
