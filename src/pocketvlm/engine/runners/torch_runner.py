"""The PyTorch model behind the engine's interface (`base.Runner`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketvlm.engine.runners.base import CacheLayout
from pocketvlm.engine.runners.cuda_graphs import DecodeGraphs, Recorder, TowerGraphs
from pocketvlm.machine import memory_bytes
from pocketvlm.model.adapters.layers import place
from pocketvlm.model.adapters.lora import Adapter
from pocketvlm.model.adapters.placed import ALL_ROWS, ActiveRows, PlacedAdapter
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.cache.contiguous import ContiguousCache
from pocketvlm.model.cache.torch_memory import TorchMemory
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Batch, Segment
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.views import View


class TorchRunner:
    """Runs `model` where it is.

    Args:
        graphs: record decode steps and small calls of the tower (`cuda_graphs`); on CUDA when None.
    """

    def __init__(self, model: MiniCPMV, *, graphs: bool | None = None) -> None:
        self.model, self.config = model, model.config
        self.active = ActiveRows()
        on_gpu = model.device.type == "cuda"
        # On a GPU so much that the work outlasts its launches; answers beside it wait for some tens of milliseconds.
        self.prefill_chunk = 4096 if on_gpu else 1024
        self.encode_patches = 16384 if on_gpu else 10240
        # On a CPU a step reads the slots of a contiguous cache where they are; blocks it would have to gather.
        self.decode_graphs: DecodeGraphs | None = None
        self.tower_graphs: TowerGraphs | None = None
        if on_gpu if graphs is None else graphs:
            recorder = Recorder(model.device)
            self.decode_graphs, self.tower_graphs = DecodeGraphs(model, recorder), TowerGraphs(model, recorder)
        self.cache_layouts: tuple[CacheLayout, ...] = ("paged", "contiguous") if on_gpu else ("contiguous", "paged")

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def device_type(self) -> str:
        return self.device.type

    @property
    def memory(self) -> TorchMemory:
        return TorchMemory(self.model.dtype, self.device)

    def memory_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self.device)[0]) if self.device.type == "cuda" else memory_bytes()

    def working(self) -> AbstractContextManager[Any]:
        return torch.inference_mode()

    def describe(self) -> str:
        return f"PyTorch on {self.device}, {str(self.model.dtype).removeprefix('torch.')}"

    def make_cache(self, slots: int, capacity: int) -> Cache:
        return ContiguousCache(self.config.text, slots, capacity, memory=self.memory)

    def check_adapter(self, folder: Path) -> None:
        del folder  # any

    def place_adapter(self, adapter: Adapter) -> PlacedAdapter:
        return place(adapter, self.model, self.active)

    def encode_views(
        self, patches: NDArray[np.uint8] | Tensor, views: Sequence[View], adapter: PlacedAdapter | None = None
    ) -> Tensor:
        patches = torch.as_tensor(patches)
        if adapter is not None:  # recorded work knows no adapters
            with self.active.follow([(adapter, ALL_ROWS)]):
                return self.model.encode_views(patches, views)
        if self.tower_graphs is not None and (found := self.tower_graphs.encode_views(patches, views)) is not None:
            return found
        return self.model.encode_views(patches, views)

    def embed(self, input_ids: NDArray[np.int64] | Tensor, features: Tensor | None) -> Tensor:
        return self.model.embed(input_ids, features)

    def join(self, parts: Sequence[Any]) -> Any:
        return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else torch.cat([*parts])

    def copy(self, array: Tensor) -> Tensor:
        return array.clone()

    def batch(self, segments: Sequence[Segment]) -> PackedBatch:
        return PackedBatch.of(segments, self.device)

    def forward(self, x_TD: Tensor, batch: Batch, cache: Cache, rows: Sequence[int]) -> Tensor | NDArray[np.float32]:
        assert isinstance(batch, PackedBatch)
        scores = self._scores(x_TD, batch, cache, rows)
        return scores.float().numpy() if self.device.type == "cpu" else scores

    def _scores(self, x_TD: Tensor, batch: PackedBatch, cache: Cache, rows: Sequence[int]) -> Tensor:
        if (
            self.decode_graphs is not None
            and not batch.adapter_rows
            and (recordable := cache.recordable) is not None
            and batch.is_decode
            and len(rows) == len(batch.segments)
            and (scores := self.decode_graphs.forward(x_TD, batch, recordable)) is not None
        ):
            return scores
        # Before the layers are queued: a copy behind them would wait until they are done.
        chosen_rows = torch.tensor([*rows], dtype=torch.long).to(self.device)
        with self.active.follow([*batch.adapter_rows.items()]):
            hidden = self.model.language_model(x_TD, batch.positions, batch, cache)
        if not len(rows):  # a chunk in the middle of a prompt
            return hidden.new_empty(0, self.config.text.vocab_size)
        chosen = hidden.index_select(0, chosen_rows)
        if not any(adapter.touches_head for adapter in batch.adapter_rows):
            return self.model.logits(chosen)
        with self.active.follow([*batch.chosen_adapter_rows(rows).items()]):
            return self.model.logits(chosen)

    def enforce_eager(self) -> None:
        self.decode_graphs = self.tower_graphs = None

    def prepare_batches(self) -> None:
        self.model.prepare_batches()
