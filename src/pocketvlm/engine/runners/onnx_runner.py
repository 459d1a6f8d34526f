"""A bundle behind the engine's interface: ONNX Runtime for every product, our cache bound to its inputs and outputs.

Prompts run one sequence at a time, steps all sequences at once. Caches are written where they lie: keys and values
behind those of before, states over the old ones; nothing is copied from one step to the next.

Shapes:  P patches of all views · N visual tokens · T tokens of all sequences, packed · D hidden · R rows · V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketvlm.bundle import OLDEST_RUNTIME, Manifest
from pocketvlm.config import ModelConfig
from pocketvlm.engine.runners.base import CacheLayout
from pocketvlm.engine.runners.embedding_table import EmbeddingTable
from pocketvlm.engine.runners.exact_scores import rescore_best
from pocketvlm.engine.runners.onnx_binding import DecoderBinding
from pocketvlm.errors import CheckpointError, ConfigError, MissingExtraError, PromptError
from pocketvlm.kernels.onnx_ops import library
from pocketvlm.lenient_imports import quiet_discovery
from pocketvlm.machine import CACHE_VARIABLE, memory_bytes, usable_cores
from pocketvlm.model.adapters.lora import Adapter
from pocketvlm.model.adapters.placed import PlacedAdapter
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.cache.contiguous import ContiguousCache
from pocketvlm.model.cache.memory import HostMemory
from pocketvlm.model.segments import Batch, Segment
from pocketvlm.model.vision.view_order import nearest_positions, window_order
from pocketvlm.text_files import read_json
from pocketvlm.views import View

Floats = NDArray[np.float32]

PATCHES_AT_ONCE = 1024  # of one run of the tower: more would only take memory, which the runtime keeps


def import_onnxruntime() -> ModuleType:
    """ONNX Runtime, if it is there and new enough."""
    try:
        with quiet_discovery():
            import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", "onnx") from None
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if version < OLDEST_RUNTIME:
        needed = ".".join(map(str, OLDEST_RUNTIME))
        raise ConfigError(
            f"onnxruntime {onnxruntime.__version__} is installed, {needed} or newer is needed",
            hint="Install it with: pip install -U 'pocketvlm[onnx]'",
        )
    return onnxruntime


_one_at_a_time = Lock()  # a second arena of the same kind would be refused


@cache
def _share_arena(runtime: ModuleType) -> None:
    """Register the arena of all sessions, once in a process. It grows by doubling: growing by what is asked for takes
    more in the end, since prompts of other lengths find no place in what was left."""
    place = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
    by_doubling = {"max_mem": 0, "arena_extend_strategy": 0, "initial_chunk_size_bytes": -1}
    runtime.create_and_register_allocator(place, runtime.OrtArenaCfg(by_doubling | {"max_dead_bytes_per_chunk": -1}))


def _options(runtime: ModuleType, threads: int) -> Any:
    """Options of every session."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    # On x86 without VNNI the fast product of uint8 and int8 adds pairs in 16 bits, which overflow: errors of 4 % where
    # rounding to int8 makes 1 %. The exact one takes up to a seventh longer; elsewhere this changes nothing.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def product_session(graph: bytes, operators: Path | None = None, *, threads: int | None = None) -> Any:
    """A session of a graph in memory.

    Args:
        operators: the library of compiled ones, if there are any in it.
        threads: as many as a runner has when None.
    """
    runtime = import_onnxruntime()
    options = _options(runtime, threads or usable_cores())
    if operators:
        options.register_custom_ops_library(str(operators))
    return runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class ONNXRunner:
    """Runs the bundle in `directory` on the CPU.

    Args:
        threads: of each product; None is one for each core that this process may use.
        config: the model's, where it has been read already.
    """

    prefill_chunk = 256  # 512 tokens at once are no faster, and take 0.2 GB more
    encode_patches = PATCHES_AT_ONCE
    cache_layouts: tuple[CacheLayout, ...] = ("contiguous",)

    def __init__(self, directory: Path, *, threads: int | None = None, config: ModelConfig | None = None) -> None:
        self.runtime = import_onnxruntime()
        self.manifest = Manifest.read(directory)
        self.config = config or ModelConfig.from_dict(read_json(directory / "config.json"))
        self.directory = directory
        self.threads = threads or usable_cores()
        self.operators = self._compiled_operators()
        with ThreadPoolExecutor(1) as beside:  # each takes 70 ms of a core
            decoder = beside.submit(self._session, "decoder")
            self.vision = self._session("vision")
            self.decoder = DecoderBinding(decoder.result())
        # The table is the only weight of its graph: no session for that.
        kind = np.float32 if self.manifest.quantization.head == "fp32" else np.float16
        text = self.config.text
        self.embeddings = EmbeddingTable(directory / "embedding.data", kind, text.vocab_size, text.hidden_size)
        # An int8 tower has one scale for all that it is given: a view's features would depend on those beside it.
        self.views_together = self.manifest.quantization.vision == "fp32"
        self.rescores = self.manifest.quantization.head == "int4" and text.tie_word_embeddings

    def _compiled_operators(self) -> Path | None:
        if not self.manifest.operators.has_compiled:
            return None
        found = library.compiled()
        if found is None and library.is_named():
            raise ConfigError(
                f"the bundle {self.directory} needs compiled operators, and {library.INSTRUCTIONS_VARIABLE} is "
                f"{library.STANDARD}",
                hint="Unset it.",
            )
        if found is None:
            raise ConfigError(
                f"the bundle {self.directory} needs compiled operators, which cannot be made on this machine",
                hint="Export it again, with --operators standard, or see the warning before this line.",
            )
        return found

    def _session(self, name: str) -> Any:
        options = _options(self.runtime, self.threads)
        options.log_severity_level = 3
        # Tower and decoder take turns, so they share an arena; and a plan of memory for every length of prompt would be
        # kept for good. Together a fifth of a gigabyte.
        with _one_at_a_time:
            _share_arena(self.runtime)
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.enable_mem_pattern = False
        try:
            if self.operators:
                options.register_custom_ops_library(str(self.operators))
        except Exception as error:  # its exceptions share no base of their own
            reason = str(error).splitlines()[0][:200]
            raise ConfigError(
                f"the compiled operators {self.operators} cannot be loaded: {reason}",
                hint=f"Remove them to have them made again, or name another folder in {CACHE_VARIABLE}.",
            ) from None
        try:
            return self.runtime.InferenceSession(
                str(self.directory / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base of their own
            reason = str(error).splitlines()[0][:200]
            raise CheckpointError(
                f"ONNX Runtime cannot load {self.directory / name}.onnx: {reason}", hint="Export the bundle again."
            ) from None

    device_type = "cpu"
    memory = HostMemory()

    def memory_bytes(self) -> int:
        return memory_bytes()

    def working(self) -> AbstractContextManager[None]:
        return nullcontext()

    def describe(self) -> str:
        kind = f" ({library.kind_of(self.operators)})" if self.operators else ""
        made_of = f"{self.manifest.quantization}, {self.manifest.operators}{kind}"
        return f"ONNX Runtime on {self.threads} threads, {made_of}"

    def make_cache(self, slots: int, capacity: int) -> Cache:
        return ContiguousCache(self.config.text, slots, capacity, memory=self.memory)

    def check_adapter(self, folder: Path) -> None:
        raise ConfigError(
            f"the onnx runtime cannot take {folder} beside its weights",
            hint="Use runtime='torch', or load the model with this adapter alone: adapter=…",
        )

    def place_adapter(self, adapter: Adapter) -> PlacedAdapter:
        self.check_adapter(adapter.path)
        raise AssertionError

    def encode_views(
        self, patches: NDArray[np.uint8], views: Sequence[View], adapter: PlacedAdapter | None = None
    ) -> Floats:
        assert adapter is None, "there are no adapters here"
        if len(patches) != sum(v.patches for v in views):
            raise PromptError(f"{len(patches)} patches were given for views of {sum(v.patches for v in views)}")
        if not views:
            return np.empty((0, self.config.text.hidden_size), np.float32)
        ends = np.cumsum([v.patches for v in views])
        pieces = np.split(patches.reshape(len(patches), -1), ends[:-1])
        by_shape: dict[tuple[str, int, int], list[int]] = {}
        for i, view in enumerate(views):
            by_shape.setdefault((view.downsample_mode, view.size.height, view.size.width), []).append(i)
        features: list[Floats] = [np.empty(0, np.float32)] * len(views)
        for members in by_shape.values():
            at_once = max(1, PATCHES_AT_ONCE // views[members[0]].patches) if self.views_together else 1
            for first in range(0, len(members), at_once):
                some = members[first : first + at_once]
                for i, out in zip(some, self._encode_alike([pieces[i] for i in some], views[some[0]]), strict=True):
                    features[i] = out
        return np.concatenate(features)

    def _encode_alike(self, pieces: Sequence[NDArray[np.uint8]], view: View) -> Floats:
        """Views of one shape and rate: [V, visual tokens, D]."""
        height, width = view.size.height, view.size.width
        order = window_order(height, width, view.downsample_mode)
        buckets = self.config.vision.positions_per_side
        feeds = {
            "patches": np.stack([piece[order] for piece in pieces]),
            "position_ids": nearest_positions(height, width, buckets)[order],
            "compress": np.array(view.downsample_mode == "16x"),
        }
        features: Floats = self.vision.run(["features"], feeds)[0]
        return features

    def embed(self, input_ids: NDArray[np.int64], features: Floats | None) -> Floats:
        x_TD = self.embeddings(input_ids)
        if features is None or not len(features):
            return x_TD
        is_visual = (input_ids == self.config.image_token_id) | (input_ids == self.config.video_token_id)
        if np.count_nonzero(is_visual) != len(features):  # one alone would be copied to all places
            raise ValueError(f"{len(features)} features for {np.count_nonzero(is_visual)} placeholders")
        x_TD[is_visual] = features
        return x_TD

    def join(self, parts: Sequence[Floats]) -> Floats:
        return np.concatenate(parts)

    def copy(self, array: Floats) -> Floats:
        return array.copy()

    def batch(self, segments: Sequence[Segment]) -> Batch:
        return Batch(tuple(segments))

    def forward(self, x_TD: Floats, batch: Batch, cache: Cache, rows: Sequence[int]) -> Floats:
        scores, hidden = self._outputs(len(rows))
        if batch.is_decode and batch.slot_range is not None:
            starts = [s.start for s in batch.segments]
            self._run(x_TD[:, None], starts, batch.slot_range, cache, np.array(rows, np.int64), (scores, hidden))
        else:
            for first, s in zip(batch.firsts, batch.segments, strict=True):
                mine = [i for i, row in enumerate(rows) if first <= row < first + s.length]
                own = np.array([rows[i] - first for i in mine], np.int64)
                out = self._outputs(len(mine))
                x = x_TD[first : first + s.length][None]
                self._run(x, [s.start], slice(s.slot, s.slot + 1), cache, own, out)
                scores[mine], hidden[mine] = out
        cache.advance(batch)
        if self.rescores:
            rescore_best(scores, hidden, self.embeddings)
        return scores

    def _outputs(self, rows: int) -> tuple[Floats, Floats]:
        """Memory for scores [R, V] and hidden states [R, D]."""
        text = self.config.text
        return np.empty((rows, text.vocab_size), np.float32), np.empty((rows, text.hidden_size), np.float32)

    def _run(
        self,
        x_BSD: Floats,
        starts: list[int],
        slots: slice,
        cache: Cache,
        rows: NDArray[np.int64],
        out: tuple[Floats, Floats],
    ) -> None:
        """The new tokens of the sequences in `slots`, behind their first `starts` tokens; `out` is what becomes of
        `rows`: scores [R, V] and hidden states [R, D]."""
        new = x_BSD.shape[1]
        begins = np.array(starts, np.int64)
        inputs: dict[str, NDArray[Any]] = {
            "embeddings": np.ascontiguousarray(x_BSD),
            "positions": begins[:, None] + np.arange(new),
            "rows": rows,
            "seqlens_k": (begins + (new - 1)).astype(np.int32),
            "total_sequence_length": np.array(max(starts) + new, np.int32),
        }
        scores_RV, hidden_RD = out
        self.decoder.run(inputs, {"logits": scores_RV, "hidden": hidden_RD}, cache, slots)

    def prepare_batches(self) -> None:
        pass

    def enforce_eager(self) -> None:
        pass
