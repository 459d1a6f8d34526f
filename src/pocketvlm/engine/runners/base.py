"""What the engine asks of a runtime: pictures to features, tokens to scores. `torch_runner` and `onnx_runner` do it.

What goes in is NumPy's and plain numbers. Features, embeddings and scores are the runner's own `Array`s, tensors on a
GPU; the engine slices and keeps them, and has the runner join them.

Shapes:  P patches of all views · N visual tokens · T tokens of all sequences, packed · D hidden · R rows · V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketvlm.config import ModelConfig
from pocketvlm.model.adapters.lora import Adapter
from pocketvlm.model.adapters.placed import PlacedAdapter
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.cache.memory import Array
from pocketvlm.model.segments import Batch, Segment
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
    def device_type(self) -> str:
        """Where it runs: "cpu" or "cuda"."""
        ...

    @property
    def memory(self) -> Any:
        """Where its caches are (`model.cache.memory.Memory`)."""
        ...

    def memory_bytes(self) -> int:
        """Return the bytes of memory that this process may have, or those that are free on its GPU."""
        ...

    def working(self) -> AbstractContextManager[Any]:
        """Return what is held while the engine does something with the runner's arrays."""
        ...

    def describe(self) -> str:
        """Name the runtime and its number formats, for people."""
        ...

    def make_cache(self, slots: int, capacity: int) -> Cache:
        """Make an empty contiguous cache for `slots` sequences of `capacity` tokens (it grows)."""
        ...

    def check_adapter(self, folder: Path) -> None:
        """Raise `ConfigError` where this runtime takes no adapters beside its weights, before one is read."""
        ...

    def place_adapter(self, adapter: Adapter) -> PlacedAdapter:
        """Make segments of batches able to follow an adapter; safe in any thread, also while a step is under way.

        Raises:
            ConfigError: this runtime cannot.
        """
        ...

    def encode_views(
        self, patches: NDArray[np.uint8], views: Sequence[View], adapter: PlacedAdapter | None = None
    ) -> Array:
        """Turn patches [P, patch, patch, 3] of these views into features [N, D], in the order of the views; all of them
        follow `adapter`."""
        ...

    def embed(self, input_ids: NDArray[np.int64], features: Array | None) -> Array:
        """Turn token ids [T] into embeddings [T, D], with the features where the placeholders are."""
        ...

    def join(self, parts: Sequence[Array]) -> Array:
        """Return one array of the rows of all of them, of which there is one at least."""
        ...

    def copy(self, array: Array) -> Array:
        """Return a copy, in memory of its own."""
        ...

    def batch(self, segments: Sequence[Segment]) -> Batch:
        """Return what `forward` takes for these segments."""
        ...

    def forward(self, x_TD: Array, batch: Batch, cache: Cache, rows: Sequence[int]) -> Array:
        """Return scores [R, V] of the packed `rows`, on a CPU as fp32 of NumPy; `cache` goes on to the end of each
        segment and must hold it."""
        ...

    def prepare_batches(self) -> None:
        """Get ready for batches; called when several sequences decode together."""
        ...

    def enforce_eager(self) -> None:
        """Launch all work anew from now on: no CUDA graphs."""
        ...
