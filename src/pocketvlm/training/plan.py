"""How much memory a run needs, by part, without running it.

One step is traced with tensors that have shapes and no memory (`FakeTensorMode`), on the device it would run on, so
that the operators are those that would run. What is alive at a time is counted from what each operator makes and
frees; what the backward pass keeps, from what autograd saves.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pocketvlm.config import ImageConfig, ModelConfig
from pocketvlm.errors import ConfigError, PromptError
from pocketvlm.model.vlm import MiniCPMV, forget_constants
from pocketvlm.training.batches import Batch, micro_batches
from pocketvlm.training.data.sample import SampleError
from pocketvlm.training.feed import Found
from pocketvlm.training.lora import import_peft
from pocketvlm.training.losses import answer_losses
from pocketvlm.training.optimisers import state_bytes
from pocketvlm.training.run import prepare
from pocketvlm.training.settings import TuneSettings
from pocketvlm.training.trainer import autocast_dtype


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, at the moment of most memory.

    Attributes:
        weights: of the model, without what was put beside it, and of the copy of it that full fine-tuning on
            preferences compares with.
        adapters: of low-rank adapters.
        gradients: of what learns.
        optimiser: AdamW's two moments of what learns, and its moving average.
        activations: what one forward keeps for its backward.
        temporary: what operators need beside, such as the scores of the head.
        process: of Python and its libraries; on a CPU alone.
    """

    weights: int
    adapters: int
    gradients: int
    optimiser: int
    activations: int
    temporary: int
    process: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    def samples_in(self, memory: int, samples: int) -> int:
        """How many samples of this size one forward can have in so many bytes; the plan is for `samples` of them."""
        fixed = self.total - self.activations - self.temporary
        return max(0, int((memory - fixed) * samples / max(1, self.activations + self.temporary)))


def largest_batch(found: Iterable[Found], settings: TuneSettings, most: int = 64) -> Batch:
    """The batch of the longest among the first samples, filled as far as the settings let it be.

    Raises:
        PromptError: none of them can be learnt from.
    """
    good = [item for item in itertools.islice(found, most) if not isinstance(item, SampleError)]
    if not good:
        raise PromptError("none of the first samples can be learnt from", hint="See --check.")
    longest = max(good, key=lambda item: sum(len(one.input_ids) + len(one.patches) for one in item))
    return next(micro_batches([longest] * settings.batch_size, settings.micro_tokens, settings.micro_patches))


def plan_memory(
    config: ModelConfig, image: ImageConfig, settings: TuneSettings, batch: Batch, device: torch.device, process: int
) -> MemoryPlan:
    """The memory of a step on batches such as this one.

    Args:
        batch: the largest that one forward works on.
        process: bytes that the process has without a model.

    Raises:
        ConfigError: for the base in 4 bits, whose operators have no shapes to trace.
    """
    if settings.method == "qlora":
        raise ConfigError(
            "the memory of qlora cannot be traced", hint="Plan lora, and take three quarters of its weights."
        )
    with torch.device("meta"):
        model = MiniCPMV(config, image.image_mean, image.image_std)
        weights = _bytes(model.parameters())
        prepare(model, settings)
    # Values of the batch are looked at on the host, so they stay real. The device need not be there.
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, one in module.named_parameters(recurse=False):
                made = torch.empty(one.shape, dtype=one.dtype, device=device)
                setattr(module, name, nn.Parameter(made, requires_grad=one.requires_grad))
        saved = _Saved(model)
        try:
            with _Alive() as alive, torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda tensor: tensor):
                dtype = autocast_dtype(model)
                is_there = device.type != "cuda" or torch.cuda.is_available()  # where not, torch cannot do as if
                with torch.autocast(device.type, dtype, enabled=is_there and dtype != torch.float32):
                    losses = answer_losses(model, batch)
                losses.sum().backward()
        finally:
            forget_constants()  # a model that runs in this process later needs values
    copies = 2 if settings.method == "full" and settings.objective == "dpo" else 1
    gradients = _bytes(p for p in model.parameters() if p.requires_grad)
    return MemoryPlan(
        weights=copies * weights,
        adapters=_bytes(model.parameters()) - weights,
        gradients=gradients,  # of the batches before this one: all are there at its peak
        optimiser=state_bytes(model, settings),
        activations=saved.bytes,
        temporary=max(0, alive.peak - saved.bytes),
        process=process,
    )


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Saved:
    """Bytes that autograd keeps, each storage once, without the weights."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = {id(p.untyped_storage()): None for p in model.parameters()}
        self._kept: list[Any] = []
        self.bytes = 0

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self._seen:
            self._seen[id(storage)] = None
            self._kept.append(storage)  # an id is another's once it is gone
            self.bytes += storage.nbytes()
        return tensor


class _Alive(TorchDispatchMode):
    """Most bytes at a time of what operators made within the block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {id(t.untyped_storage()) for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self._seen and id(storage) not in inputs:
                    self._add(storage)
        return result

    def _add(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def process_bytes(device: torch.device) -> int:
    """What this process takes before a model is loaded, with what a run imports; nothing of a GPU's memory."""
    if device.type != "cpu":
        return 0
    import_peft()
    import psutil  # comes with accelerate

    return int(psutil.Process().memory_info().rss)
