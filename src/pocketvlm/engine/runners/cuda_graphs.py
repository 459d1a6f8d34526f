"""Work of the device, recorded once and replayed, so that a step costs the host one launch instead of a thousand.

A decode step is recorded for a few batch sizes; a smaller batch is padded, with sequences that touch nothing. The tower
is recorded for the views of small calls, once they have come twice: in large calls the device is slower than the host
that launches its work, and nothing would be won.

On a CPU nothing is recorded and "replay" runs the same work again on the same buffers: tests need no GPU.

Shapes:  B sequences · S size of a recorded batch · D hidden · V vocabulary · P patches · N visual tokens
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pocketvlm.model.cache.base import RecordableCache
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment
from pocketvlm.model.vision.view_packing import pack_views
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.views import View

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
TOWER_PATCHES = 16 * 1024  # of a recorded call: sixteen full slices, some ten milliseconds of work
MAX_TOWERS = 16  # recorded calls that are kept
MAX_SEEN = 1000  # calls that are remembered to have come once


class Recorder:
    """Records on one device; all recordings share their memory, so they are replayed one at a time.

    Replaying one in the middle of another's work is not possible, and results stay until the next replay of their own.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Return what does `work` again, and where its result then is. `work` runs a few times here."""
        if self.device.type != "cuda":
            result = work()

            def again() -> None:
                result.copy_(work())

            return again, result
        # PyTorch records and replays on the current device, which need not be this one.
        with torch.cuda.device(self.device):
            here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                for _ in range(2):  # kernels are compiled and chosen, libraries make their workspaces
                    work()
            here.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = work()

        def replay() -> None:
            with torch.cuda.device(self.device):
                graph.replay()

        return replay, result


@dataclass(frozen=True, eq=False)
class RecordedStep:
    """A decode step of a fixed size: its inputs, and its scores [S, V] after `replay`."""

    x_SD: Tensor
    indices: Tensor  # as from `RecordableCache.decode_indices`
    scores: Tensor
    replay: Callable[[], None]


class DecodeGraphs:
    """Records and replays decode steps of a model.

    Args:
        sizes: batches that are recorded, when they are first needed; larger ones are not.
    """

    def __init__(self, model: MiniCPMV, recorder: Recorder, sizes: Sequence[int] = SIZES) -> None:
        self.model, self.record, self.sizes = model, recorder, tuple(sizes)
        self.steps: dict[int, RecordedStep] = {}
        self._made_for: tuple[weakref.ref[RecordableCache], Any] | None = None

    def forward(self, x_BD: Tensor, batch: PackedBatch, cache: RecordableCache) -> Tensor | None:
        """Return scores [B, V] of a decode batch; None where it is too large."""
        count = len(batch.segments)
        size = next((size for size in self.sizes if size >= count), None)
        if size is None:
            return None
        cache.extend(batch)
        indices = cache.decode_indices(batch, size)
        step = self._step(size, cache)
        step.x_SD[:count].copy_(x_BD)
        step.indices.copy_(indices)
        step.replay()
        cache.advance(batch)
        return step.scores[:count].clone()

    def _step(self, size: int, cache: RecordableCache) -> RecordedStep:
        # A recording knows addresses: a cache that was made anew, or that has grown, has others.
        made_for = self._made_for
        if made_for is None or made_for[0]() is not cache or made_for[1] != cache.allocated:
            self.steps.clear()
            self._made_for = weakref.ref(cache), cache.allocated
        if size not in self.steps:
            self.steps[size] = self._recorded(size, cache)
        return self.steps[size]

    def _recorded(self, size: int, cache: RecordableCache) -> RecordedStep:
        device, decoder = cache.device, self.model.language_model
        x_SD = torch.zeros(size, decoder.config.hidden_size, dtype=self.model.dtype, device=device)
        indices = cache.decode_indices(PackedBatch.of([], device), size).to(device)  # all padding
        batch = PackedBatch.of([Segment(1)] * size, device)

        def work() -> Tensor:
            step = cache.decode_step(batch, indices)
            return self.model.logits(decoder.run_layers(x_SD, indices[3].long(), batch, step))

        replay, scores = self.record(work)
        return RecordedStep(x_SD, indices, scores, replay)


@dataclass(frozen=True, eq=False)
class RecordedTower:
    """A call of the tower for certain views: its pixels, and its features [N, D] after `replay`."""

    patches: Tensor
    features: Tensor
    replay: Callable[[], None]


class TowerGraphs:
    """Records and replays small calls of a model's tower that come more than once.

    Args:
        max_towers: calls that are kept.
    """

    def __init__(self, model: MiniCPMV, recorder: Recorder, max_towers: int = MAX_TOWERS) -> None:
        self.model, self.record, self.max_towers = model, recorder, max_towers
        self.towers: OrderedDict[tuple[View, ...], RecordedTower] = OrderedDict()
        self._seen: OrderedDict[tuple[View, ...], None] = OrderedDict()

    def encode_views(self, patches: Tensor, views: Sequence[View]) -> Tensor | None:
        """Do as `MiniCPMV.encode_views` does, from uint8 patches; None where the call is not worth recording (yet)."""
        key = tuple(views)
        count = sum(view.patches for view in views)
        if not views or count > TOWER_PATCHES or len(patches) != count or patches.dtype != torch.uint8:
            return None
        if key not in self.towers:
            if key not in self._seen:
                self._seen[key] = None
                if len(self._seen) > MAX_SEEN:
                    self._seen.popitem(last=False)
                return None
            self.towers[key] = self._recorded(patches, views)
            if len(self.towers) > self.max_towers:
                self.towers.popitem(last=False)
        self.towers.move_to_end(key)
        tower = self.towers[key]
        tower.patches.copy_(patches)
        tower.replay()
        return tower.features.clone()

    def _recorded(self, patches: Tensor, views: Sequence[View]) -> RecordedTower:
        device = self.model.device
        packing = pack_views(views, self.model.config.vision.positions_per_side, device)
        pixels = torch.empty_like(patches, device=device)
        pixels.copy_(patches)
        replay, features = self.record(lambda: self.model.encode_packed(pixels, packing))
        return RecordedTower(pixels, features, replay)
