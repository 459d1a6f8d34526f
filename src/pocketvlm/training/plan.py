"""How much memory a run needs, by part, without running it.

One step is traced with tensors that have shapes and no memory (`FakeTensorMode`), on the device it would run on and in
the dtype of its products, so that the operators are those that would run; for a card that is not here those of the CPU.
`training.traced` counts what is alive at a time, what the backward pass keeps, and what the C library's heap loses
between blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from pocketvlm.config import ImageConfig, ModelConfig, check_device_name
from pocketvlm.errors import PromptError
from pocketvlm.machine import resident_bytes
from pocketvlm.model.vlm import MiniCPMV, forget_constants
from pocketvlm.training.batches import Batch, micro_batches
from pocketvlm.training.data.sample import SampleError
from pocketvlm.training.feed import Found
from pocketvlm.training.lora import import_peft
from pocketvlm.training.memory import import_bitsandbytes
from pocketvlm.training.objectives import Objective, Preferences
from pocketvlm.training.optimisers import make_optimiser, state_bytes, step_bytes
from pocketvlm.training.precision import HalfLinear, autocast_dtype
from pocketvlm.training.run import objective_of, prepare
from pocketvlm.training.settings import TuneSettings
from pocketvlm.training.traced import Alive, Heap, Saved, nf4_bytes, stand_in_for_4bit

_BEFORE = 2  # batches that are traced before the largest one; each takes its time, and more change little


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, at the moment of most memory: in the backward pass, in the optimiser's step, or while weights are read.

    Attributes:
        weights: of the model, without what was put beside it; in 4 bits with their scales where the method says so.
        adapters: of low-rank adapters.
        reference: of the model before, which preferences with full fine-tuning keep.
        gradients: of what learns, as far as they are there at that moment.
        optimiser: AdamW's two moments of what learns, and its moving average.
        views: what the forward of tower and merger keeps for its backward.
        tokens: what the forward of the decoder and the losses keep.
        temporary: what operators need beside, such as the scores of the head, or a layer of 4 bits in full.
        lost: between the blocks of the C library's heap, too small for what is asked; on a CPU with glibc alone.
        process: of Python and its libraries; on a CPU alone.
    """

    weights: int
    adapters: int
    reference: int
    gradients: int
    optimiser: int
    views: int
    tokens: int
    temporary: int
    lost: int
    process: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    @property
    def by_batch(self) -> int:
        """Those that grow with what one forward works on."""
        return self.views + self.tokens + self.temporary + self.lost

    def samples_in(self, memory: int, samples: int) -> int:
        """How many samples of this size one forward can have in so many bytes; the plan is for `samples` of them.
        Rather too few: some of what is temporary does not grow."""
        return max(0, int((memory - self.total + self.by_batch) * samples / max(1, self.by_batch)))


@dataclass(frozen=True)
class Largest:
    """Attributes:
    batch: the largest that one forward works on.
    is_alone: it is all that a step works on, so that no gradients of an earlier batch are there.
    before: some that come before it: where sizes differ, blocks that were freed fit less often.
    """

    batch: Batch
    is_alone: bool
    before: Sequence[Batch] = ()


def largest_batch(found: Iterable[Found], settings: TuneSettings, most: int = 64) -> Largest:
    """The batch of the longest among the first samples, filled as far as the settings let it be.

    Raises:
        PromptError: none of them can be learnt from.
    """
    good = [item for item in itertools.islice(found, most) if not isinstance(item, SampleError)]
    if not good:
        raise PromptError("none of the first samples can be learnt from", hint="See --check.")
    longest = max(good, key=lambda item: sum(len(one.input_ids) + len(one.patches) for one in item))
    first, *others = micro_batches([longest] * settings.batch_size, settings.micro_tokens, settings.micro_patches)
    before = micro_batches(good[: settings.batch_size], settings.micro_tokens, settings.micro_patches)
    return Largest(first, not others, tuple(itertools.islice(before, _BEFORE)))


def plan_memory(
    config: ModelConfig,
    image: ImageConfig,
    settings: TuneSettings,
    largest: Largest,
    device: torch.device,
    process: int,
) -> MemoryPlan:
    """The memory of a run whose steps are on batches such as this one, from its second step on.

    Nothing of the model is read or computed; the trace takes some seconds. What it cannot see: what kernels take inside
    an operator, what a GPU's allocator rounds up, and what the heap goes on to lose over many forwards.
    The first plan of a process is the right one: its heap keeps room for the next, which then seems to lose less.

    Args:
        config, image: of the model.
        largest: the largest batch that one forward works on.
        process: bytes that the process has without a model, see `process_bytes`.
    """
    in_4bit: list[str] = []

    def as_4bit(model: MiniCPMV, layers: Iterable[str]) -> None:
        in_4bit.extend(layers)
        stand_in_for_4bit(model, in_4bit)

    with torch.device("meta"):
        model = MiniCPMV(config, image.image_mean, image.image_std)
        sizes = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
        prepare(model, settings, quantize=as_4bit, device=device)
    weights = sum(sizes.values())
    for name in in_4bit:
        in_full = sizes[f"{name}.weight"]
        weights += nf4_bytes(in_full // 4) - in_full
    halved = [one for one in model.modules() if isinstance(one, HalfLinear)]
    weights -= sum(_bytes(one.parameters()) for one in halved)  # a half of what they were
    learns = [p for p in model.parameters() if p.requires_grad]
    adapters = 0 if settings.method == "full" else _bytes(learns)
    trace = _trace(model, settings, largest, device)
    backward, gradients = trace.peak, trace.gradients
    fixed = _bytes(learns)
    if not largest.is_alone:  # those of the batches before this one are there from the start
        gradients = fixed
        backward += fixed
    step = fixed + step_bytes(learns, settings, device)
    temporary = max(0, backward - trace.views - trace.tokens - gradients)
    common = {
        "weights": weights,
        "adapters": adapters,
        "reference": weights if settings.method == "full" and settings.objective == "dpo" else 0,
        "optimiser": state_bytes(learns, settings),
        "process": process,
    }
    if step > backward + trace.lost:
        return MemoryPlan(**common, gradients=fixed, views=0, tokens=0, temporary=step - fixed, lost=0)
    return MemoryPlan(
        **common, gradients=gradients, views=trace.views, tokens=trace.tokens, temporary=temporary, lost=trace.lost
    )


@dataclass(frozen=True)
class _Trace:
    """Bytes of one forward and backward: most at a time, the gradients among them, and what the forward keeps."""

    peak: int
    gradients: int
    views: int
    tokens: int
    lost: int


def _trace(model: MiniCPMV, settings: TuneSettings, largest: Largest, device: torch.device) -> _Trace:
    """Run a model of the meta device on a batch, with tensors of no values."""
    dtype = autocast_dtype(device, model.config.text.hidden_size)
    # torch traces nothing for a card that is not there: operators of the CPU stand in, in the card's dtype.
    place = device if is_here(device) else torch.device("cpu")
    # Values of the batch are looked at on the host, so they stay real. The device need not be there.
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, one in module.named_parameters(recurse=False):
                made = torch.empty(one.shape, dtype=one.dtype, device=place)
                setattr(module, name, nn.Parameter(made, requires_grad=one.requires_grad))
        learns = [p for p in model.parameters() if p.requires_grad]
        objective = _objective(settings, model)
        if not largest.is_alone:
            for p in learns:
                p.grad = torch.empty_like(p)
        model.train()
        saved = Saved(model.parameters())
        model.vision_tower.register_forward_pre_hook(lambda *_: saved.of("views"))
        model.language_model.register_forward_pre_hook(lambda *_: saved.of("tokens"))
        try:
            with (
                Alive(learns, Heap.of(device)) as alive,
                torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda tensor: tensor),
            ):
                for batch in (*largest.before, largest.batch):
                    saved.begin()
                    if largest.is_alone:
                        alive.begin()
                        model.zero_grad(set_to_none=True)
                    with torch.autocast(place.type, dtype, enabled=dtype != torch.float32):
                        losses = objective.losses(model, batch)
                    losses.sum().backward()
                    del losses
        finally:
            forget_constants()  # a model that runs in this process later needs values
    return _Trace(alive.peak, alive.gradients_at_peak, saved.bytes["views"], saved.bytes["tokens"], alive.lost)


def _objective(settings: TuneSettings, model: MiniCPMV) -> Objective:
    """That of the run; the copy of the model before, which is counted apart, takes the same as the model itself."""
    if settings.objective == "dpo" and settings.method == "full":
        return Preferences(settings.beta, nullcontext, settings.rpo_alpha)
    return objective_of(settings, model)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def is_here(device: torch.device) -> bool:
    """Whether this machine has it."""
    return device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()


def device_elsewhere(name: str) -> torch.device:
    """A device of that name, which need not be on this machine."""
    return torch.device("cuda" if check_device_name(name) == "auto" else name)


def process_bytes(device: torch.device, settings: TuneSettings) -> int:
    """What this process takes before a model is loaded, with what a run imports on its way; nothing of a GPU's memory.

    One step of a very small model is taken, as parts of torch are imported by their first use.
    """
    if device.type != "cpu":
        return 0
    if settings.method != "full":
        import_peft()
    if settings.method == "qlora":
        import_bitsandbytes()
    layer = nn.Linear(64, 64)
    optimiser = make_optimiser(layer.parameters(), settings, 0.0)
    checkpoint(layer, torch.zeros(64, 64), use_reentrant=False).sum().backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return resident_bytes()
