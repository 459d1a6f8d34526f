"""How much an engine may take, and what that comes to on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, get_args

from pocketvlm.config_ranges import ENGINE
from pocketvlm.engine.runners.base import CacheLayout, Runner
from pocketvlm.errors import ConfigError
from pocketvlm.model.cache.base import state_bytes, token_bytes
from pocketvlm.model.cache.block_pool import BLOCK, blocks_for
from pocketvlm.ranges import check_all, show

MAX_SEQS = {"cpu": 16, "cuda": 256}
CACHE_SHARE = {"cpu": 0.25, "cuda": 0.5}  # of a CPU's memory, of a GPU's free memory
PREFIX_SHARE, MAX_PREFIX = 0.05, {"cpu": 2**30, "cuda": 2**32}
ENCODER_SHARE, MAX_ENCODER = 0.01, 2**28
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The budgets of an engine, by vLLM's names where it has one; None means that the engine chooses.

    Attributes:
        max_num_seqs: sequences that run at the same time; 16 on a CPU, 256 on CUDA.
        max_num_batched_tokens: tokens of prompts in one step; the runner's own chunk.
        cache_memory: bytes for keys, values and states of sequences that run; a quarter of a CPU's memory, half of
            what is free on a GPU. Taken as it is needed.
        prefix_cache_memory: bytes for prefixes of prompts that are kept; a twentieth, up to 1 GiB, on CUDA 4; 0
            keeps none.
        encoder_cache_memory: bytes for features of pictures; a hundredth, up to 256 MiB.
        max_waiting: requests in the queue; the engine refuses one more, callers of `VLM` and `AsyncVLM` wait for room.
        cache_layout: "paged": keys and values in blocks that sequences share; "contiguous": a part of one buffer for
            each. On CUDA paged; ONNX Runtime has the other only.
        enforce_eager: no CUDA graphs.
    """

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    cache_memory: int | None = None
    prefix_cache_memory: int | None = None
    encoder_cache_memory: int | None = None
    max_waiting: int = 10_000
    cache_layout: CacheLayout | None = None
    enforce_eager: bool = False

    def __post_init__(self) -> None:
        check_all(ENGINE, self)
        layout = self.cache_layout
        if layout is not None and not (isinstance(layout, str) and layout in get_args(CacheLayout)):
            raise ConfigError(f"cache_layout={show(layout)} is neither 'paged' nor 'contiguous'")


@dataclass(frozen=True)
class Sizes:
    """Says what a configuration comes to for one runner."""

    max_num_seqs: int
    batched_tokens: int
    patches: int
    cache_tokens: int
    cache_bytes: int
    prefix_bytes: int
    encoder_bytes: int
    layout: CacheLayout

    @classmethod
    def of(cls, runner: Runner, config: EngineConfig) -> Self:
        """Work them out; `ConfigError` for a cache of no short sequence, or of a layout that the runner has not."""
        text, kind = runner.config.text, runner.device_type
        layout = config.cache_layout or runner.cache_layouts[0]
        if layout not in runner.cache_layouts:
            raise ConfigError(
                f"cache_layout={layout!r}, this runtime has {' and '.join(map(repr, runner.cache_layouts))}",
                hint="Leave it out.",
            )
        memory = runner.memory_bytes()
        max_seqs = config.max_num_seqs or MAX_SEQS.get(kind, MAX_SEQS["cpu"])
        budget = config.cache_memory if config.cache_memory is not None else int(memory * CACHE_SHARE.get(kind, 0.25))
        state, token = state_bytes(text, runner.memory), token_bytes(text, runner.memory)
        # States come first, one for each sequence; half of the budget is for tokens all the same.
        seqs = max(1, min(max_seqs, budget // 2 // max(state, 1)))
        tokens = (budget - seqs * state) // max(token, 1) if token else seqs * text.max_position_embeddings
        max_tokens = seqs * text.max_position_embeddings
        if layout == "paged":  # whole blocks, also for the last tokens of a context
            tokens, max_tokens = tokens // BLOCK * BLOCK, seqs * blocks_for(text.max_position_embeddings) * BLOCK
        if tokens < 2:
            raise ConfigError(
                f"cache_memory={budget} holds no sequence: the states of one take {state} bytes, a token {token}",
                hint=f"Give at least {state + 1024 * token} bytes.",
            )
        prefix = config.prefix_cache_memory
        encoder = config.encoder_cache_memory
        return cls(
            max_num_seqs=seqs,
            batched_tokens=config.max_num_batched_tokens or runner.prefill_chunk,
            patches=runner.encode_patches,
            cache_tokens=min(tokens, max_tokens),
            cache_bytes=budget,
            prefix_bytes=min(int(memory * PREFIX_SHARE), MAX_PREFIX[kind]) if prefix is None else prefix,
            encoder_bytes=min(int(memory * ENCODER_SHARE), MAX_ENCODER) if encoder is None else encoder,
            layout=layout,
        )

    def describe(self) -> str:
        blocks = f", in blocks of {BLOCK}" if self.layout == "paged" else ""
        return (
            f"{self.max_num_seqs} sequences and {self.cache_tokens:,} tokens in {self.cache_bytes // MIB:,} MiB "
            f"at most{blocks}, prefixes in {self.prefix_bytes // MIB:,}, "
            f"features in {self.encoder_bytes // MIB:,}"
        )
