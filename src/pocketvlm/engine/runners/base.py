"""What the engine asks of a runtime: pictures to features, tokens to scores. `torch_runner` and `onnx_runner` do it.

Shapes:  P patches of all views · N visual tokens · T tokens of all sequences, packed · D hidden · R rows · V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import torch
from torch import Tensor

from pocketvlm.config import ModelConfig
from pocketvlm.model.adapters.lora import Adapter
from pocketvlm.model.adapters.placed import PlacedAdapter
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.packing import PackedBatch
from pocketvlm.views import View

CacheLayout = Literal["contiguous", "paged"]


class Runner(Protocol):
    """A model that is ready to run.

    Attributes:
        config: all shapes.
        prefill_chunk: prompt tokens of one forward at most; more would not pay.
        encode_patches: patches of one call of `encode_views` at most; more would not pay.
        cache_layouts: layouts of the caches that `forward` takes, the better one first.
    """

    config: ModelConfig
    prefill_chunk: int
    encode_patches: int
    cache_layouts: tuple[CacheLayout, ...]

    @property
    def device(self) -> torch.device:
        """The device on which tensors go in and come out."""
        ...

    def working(self) -> AbstractContextManager[None]:
        """Return what is held during each step, so that PyTorch's own work does not get in the runtime's way."""
        ...

    def describe(self) -> str:
        """Name the runtime and its number formats, for people."""
        ...

    def make_cache(self, slots: int, capacity: int) -> Cache:
        """Make an empty contiguous cache for `slots` sequences of `capacity` tokens (it grows)."""
        ...

    def place_adapter(self, adapter: Adapter) -> PlacedAdapter:
        """Make segments of batches able to follow an adapter; safe in any thread, also while a step is under way.

        Raises:
            ConfigError: this runtime cannot.
        """
        ...

    def encode_views(self, patches: Tensor, views: Sequence[View], adapter: PlacedAdapter | None = None) -> Tensor:
        """Turn uint8 patches [P, patch, patch, 3] of these views into features [N, D], in the order of the views; all
        of them follow `adapter`."""
        ...

    def embed(self, input_ids: Tensor, features: Tensor | None) -> Tensor:
        """Turn token ids [T] into embeddings [T, D], with the features where the placeholders are."""
        ...

    def forward(self, x_TD: Tensor, batch: PackedBatch, cache: Cache, rows: Tensor) -> Tensor:
        """Return scores [R, V] of the packed `rows`; `cache` goes on to the end of each segment and must hold it."""
        ...

    def prepare_batches(self) -> None:
        """Get ready for batches; called when several sequences decode together."""
        ...

    def enforce_eager(self) -> None:
        """Launch all work anew from now on: no CUDA graphs."""
        ...
