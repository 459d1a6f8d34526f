"""The PyTorch model behind the engine's interface (`runner.Runner`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pocketvlm.model.cache import Cache
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.views import View


class TorchRunner:
    """Runs `model` where it is."""

    prefill_chunk = 1024

    def __init__(self, model: MiniCPMV) -> None:
        self.model, self.config = model, model.config
        self.encode_patches = 65536 if model.device.type == "cuda" else 10240

    @property
    def device(self) -> torch.device:
        return self.model.device

    def working(self) -> AbstractContextManager[None]:
        return nullcontext()

    def describe(self) -> str:
        return f"PyTorch on {self.device}, {str(self.model.dtype).removeprefix('torch.')}"

    def make_cache(self, slots: int, capacity: int) -> Cache:
        return Cache(self.config.text, slots, capacity, dtype=self.model.dtype, device=self.device)

    def encode_views(self, patches: Tensor, views: Sequence[View]) -> Tensor:
        return self.model.encode_views(patches, views)

    def embed(self, input_ids: Tensor, features: Tensor | None) -> Tensor:
        return self.model.embed(input_ids.to(self.device), features)

    def forward(self, x_TD: Tensor, batch: PackedBatch, cache: Cache, rows: Tensor) -> Tensor:
        hidden = self.model.language_model(x_TD, batch.positions, batch, cache)
        if not len(rows):  # a chunk in the middle of a prompt
            return hidden.new_empty(0, self.config.text.vocab_size)
        return self.model.logits(hidden.index_select(0, rows.to(self.device)))

    def prepare_batches(self) -> None:
        self.model.prepare_batches()
