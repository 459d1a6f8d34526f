"""A bundle behind the engine's interface: ONNX Runtime for every product, our cache bound to its inputs and outputs.

Prompts run one sequence at a time, steps all sequences at once. Caches are written where they lie: keys and values
behind those of before, states over the old ones; nothing is copied from one step to the next.

Shapes:  P patches of all views · N visual tokens · T tokens of all sequences, packed · D hidden · R rows · V vocabulary
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketvlm.bundle import OLDEST_RUNTIME, Manifest
from pocketvlm.config import ModelConfig
from pocketvlm.engine.runners.base import CacheLayout
from pocketvlm.engine.runners.embedding_table import EmbeddingTable
from pocketvlm.engine.runners.exact_scores import rescore_best
from pocketvlm.engine.runners.onnx_binding import DecoderBinding
from pocketvlm.errors import CheckpointError, ConfigError, MissingExtraError, PromptError
from pocketvlm.kernels.onnx_ops import library
from pocketvlm.machine import CACHE_VARIABLE, usable_cores
from pocketvlm.model.adapters.lora import Adapter
from pocketvlm.model.adapters.placed import PlacedAdapter
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.cache.contiguous import ContiguousCache
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.vision.view_packing import nearest_positions, window_order
from pocketvlm.text_files import read_json
from pocketvlm.views import View

PATCHES_AT_ONCE = 1024  # of one run of the tower: more would only take memory, which the runtime keeps


def import_onnxruntime() -> ModuleType:
    """ONNX Runtime, if it is there and new enough."""
    try:
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


class _Working:
    """Steps that are under way in this process, and the threads that PyTorch had before the first of them."""

    def __init__(self) -> None:
        self.lock, self.count, self.threads = threading.Lock(), 0, 0


_working = _Working()


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
        self.vision, self.decoder = self._session("vision"), DecoderBinding(self._session("decoder"))
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

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @contextmanager
    def working(self) -> Iterator[None]:
        """One thread for PyTorch's small operations: its others would wait for work on the cores where ONNX Runtime's
        threads wait for theirs, and a step of 21 ms becomes one of 31."""
        with _working.lock:
            # A thread begins with the number that was set last, by whichever thread: 1 within this block of another.
            before = _working.threads if _working.count else torch.get_num_threads()
            _working.count, _working.threads = _working.count + 1, before
        torch.set_num_threads(1)
        try:
            yield
        finally:
            with _working.lock:
                _working.count -= 1
            torch.set_num_threads(before)

    def describe(self) -> str:
        kind = f" ({library.kind_of(self.operators)})" if self.operators else ""
        made_of = f"{self.manifest.quantization}, {self.manifest.operators}{kind}"
        return f"ONNX Runtime on {self.threads} threads, {made_of}"

    def make_cache(self, slots: int, capacity: int) -> Cache:
        return ContiguousCache(self.config.text, slots, capacity)

    def place_adapter(self, adapter: Adapter) -> PlacedAdapter:
        raise ConfigError(
            f"the onnx runtime cannot take {adapter.path} beside its weights",
            hint="Use runtime='torch', or load the model with this adapter alone: adapter=…",
        )

    def encode_views(self, patches: Tensor, views: Sequence[View], adapter: PlacedAdapter | None = None) -> Tensor:
        assert adapter is None, "there are no adapters here"
        if len(patches) != sum(v.patches for v in views):
            raise PromptError(f"{len(patches)} patches were given for views of {sum(v.patches for v in views)}")
        pieces = patches.flatten(1).split([v.patches for v in views])
        by_shape: dict[tuple[str, int, int], list[int]] = {}
        for i, view in enumerate(views):
            by_shape.setdefault((view.downsample_mode, view.size.height, view.size.width), []).append(i)
        features: list[Tensor] = [torch.empty(0)] * len(views)
        for members in by_shape.values():
            at_once = max(1, PATCHES_AT_ONCE // views[members[0]].patches) if self.views_together else 1
            for first in range(0, len(members), at_once):
                some = members[first : first + at_once]
                for i, out in zip(some, self._encode_alike([pieces[i] for i in some], views[some[0]]), strict=True):
                    features[i] = out
        return torch.cat(features) if features else torch.empty(0, self.config.text.hidden_size)

    def _encode_alike(self, pieces: Sequence[Tensor], view: View) -> Tensor:
        """Views of one shape and rate: [V, visual tokens, D]."""
        height, width = view.size.height, view.size.width
        order = window_order(height, width, view.downsample_mode)
        buckets = self.config.vision.positions_per_side
        feeds = {
            "patches": torch.stack([piece[order] for piece in pieces]).numpy(),
            "position_ids": nearest_positions(height, width, buckets)[order].numpy(),
            "compress": np.array(view.downsample_mode == "16x"),
        }
        return torch.from_numpy(self.vision.run(["features"], feeds)[0])

    def embed(self, input_ids: Tensor, features: Tensor | None) -> Tensor:
        x_TD = self.embeddings(input_ids)
        if features is None or not len(features):
            return x_TD
        is_visual = (input_ids == self.config.image_token_id) | (input_ids == self.config.video_token_id)
        return x_TD.masked_scatter(is_visual.unsqueeze(-1), features)

    def forward(self, x_TD: Tensor, batch: PackedBatch, cache: Cache, rows: Tensor) -> Tensor:
        scores = torch.empty(len(rows), self.config.text.vocab_size)
        hidden = torch.empty(len(rows), self.config.text.hidden_size)
        if batch.is_decode and isinstance(batch.slots, slice):
            starts = [s.start for s in batch.segments]
            self._run(x_TD.unsqueeze(1), starts, batch.slots, cache, rows, (scores, hidden))
        else:
            wanted = rows.tolist()
            for first, s in zip(batch.firsts, batch.segments, strict=True):
                mine = [i for i, row in enumerate(wanted) if first <= row < first + s.length]
                own = torch.tensor([wanted[i] - first for i in mine], dtype=torch.int64)
                out = torch.empty(len(mine), scores.shape[1]), torch.empty(len(mine), hidden.shape[1])
                x = x_TD[first : first + s.length].unsqueeze(0)
                self._run(x, [s.start], slice(s.slot, s.slot + 1), cache, own, out)
                scores[mine], hidden[mine] = out
        cache.advance(batch)
        if self.rescores:
            rescore_best(scores, hidden, self.embeddings)
        return scores

    def _run(
        self,
        x_BSD: Tensor,
        starts: list[int],
        slots: slice,
        cache: Cache,
        rows: Tensor,
        out: tuple[Tensor, Tensor],
    ) -> None:
        """The new tokens of the sequences in `slots`, behind their first `starts` tokens; `out` is what becomes of
        `rows`: scores [R, V] and hidden states [R, D]."""
        new = x_BSD.shape[1]
        begins = torch.tensor(starts)
        inputs = {
            "embeddings": x_BSD.contiguous(),
            "positions": begins[:, None] + torch.arange(new),
            "rows": rows,
            "seqlens_k": (begins + new - 1).int(),
            "total_sequence_length": torch.tensor(max(starts) + new, dtype=torch.int32),
        }
        scores_RV, hidden_RD = out
        self.decoder.run(inputs, {"logits": scores_RV, "hidden": hidden_RD}, cache, slots)

    def prepare_batches(self) -> None:
        pass

    def enforce_eager(self) -> None:
        pass
