"""What the engine is asked, and how far it has come: requests, and the sequences that run for them.

Shapes:  S prompt tokens · P patches of all views
"""

from __future__ import annotations

import hashlib
import time
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pocketvlm.engine.prompt_layout import PromptLayout
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.machine import processor_flags
from pocketvlm.views import View

if TYPE_CHECKING:
    from pocketvlm.engine.caches.prefix_cache import Prefix
    from pocketvlm.engine.sampling.beam_search import BeamSearch
    from pocketvlm.engine.sampling.prompt_lookup import PromptLookup
    from pocketvlm.engine.sampling.sampler import SamplingState
    from pocketvlm.grammar.compiler import Grammar, GrammarState
    from pocketvlm.model.adapters.placed import PlacedAdapter

# "stop": a stop id or string; "length": max_tokens or the context; "abort": its reader or its deadline; "error": see
# `Output.error`.
FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(eq=False)
class Request:
    """One prompt and what has become of it.

    Attributes:
        input_ids: int64 [S].
        params: how answers are drawn, and how many.
        stop_ids: tokens that end an answer and are not part of it.
        patches, views: uint8 [P, patch, patch, 3], the pictures in order of their placeholders.
        placeholder_ids: ids that stand in the prompt where visual tokens will be.
        branch_points: lengths of prefixes of the prompt that other prompts are likely to share, rising.
        salt: whatever else decides an answer: prefixes are shared between equal ones only. It
            gets the content of `adapter` as well.
        adapter: the one that all of it follows; None for the model as it is.
        grammar: what answers must match.
        priority: lower goes first; a step of one is worth `SchedulerConfig.aging_seconds` of waiting.
        deadline: `time.monotonic()` at which it is given up.
        layout: what its prompt looks like, from the moment the scheduler takes it.
        timing: seconds by stage (queue, encode, prefill, decode), filled in on the way.
        cached_tokens: tokens of the prompt that came from the prefix cache.
        score: of the answer among the beams (`beam_search.Hypothesis`); None without beams.
        sequences: its answers; with beams the beams, and at the end the best of them alone.
    """

    request_id: str
    input_ids: NDArray[np.int64]
    params: SamplingParams
    stop_ids: frozenset[int]
    patches: NDArray[np.uint8] | None = field(default=None, repr=False)
    views: abc.Sequence[View] = ()
    placeholder_ids: tuple[int, ...] = ()
    branch_points: tuple[int, ...] = ()
    salt: bytes = b""
    adapter: PlacedAdapter | None = field(default=None, repr=False)
    grammar: Grammar | None = None
    priority: int = 0
    deadline: float | None = None
    arrival: float = field(default_factory=time.monotonic)
    timing: dict[str, float] = field(
        default_factory=lambda: {"queue": 0.0, "encode": 0.0, "prefill": 0.0, "decode": 0.0}
    )
    cached_tokens: int = 0
    score: float | None = None
    sequences: list[Sequence] = field(default_factory=list, repr=False)
    view_keys: tuple[bytes, ...] = ()
    layout: PromptLayout = field(init=False, repr=False)
    first_token_at: float | None = None
    search: BeamSearch | None = None

    def __post_init__(self) -> None:
        if not self.sequences:
            self.sequences = [Sequence(self, 0)]
        if self.adapter is not None:
            self.salt += self.adapter.digest.encode()
        if self.views and not self.view_keys:
            assert self.patches is not None
            ends = np.cumsum([view.patches for view in self.views])
            parts = np.split(self.patches, ends[:-1])
            tower = "" if self.vision_adapter is None else self.vision_adapter.digest
            self.view_keys = tuple(view_key(part, view, tower) for part, view in zip(parts, self.views, strict=True))

    @property
    def vision_adapter(self) -> PlacedAdapter | None:
        """The adapter, where features of pictures depend on it."""
        return self.adapter if self.adapter is not None and self.adapter.touches_vision else None

    @cached_property  # asked for several times a step for each sequence
    def prompt_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def is_finished(self) -> bool:
        return all(sequence.finish_reason is not None for sequence in self.sequences)

    @property
    def width(self) -> int:
        """How many slots of the cache it will need at once."""
        return max(self.params.num_beams, 1)


@dataclass(eq=False)
class Sequence:
    """One answer that grows: a choice of a request, or one of its beams.

    Attributes:
        index: among the request's.
        output_ids: tokens generated so far.
        computed: tokens, of the prompt and the answer so far, that its slot of the cache holds.
        slot: which slot of the cache is its own; None while it waits.
        pins: keys of the views whose features it still needs.
    """

    request: Request
    index: int
    output_ids: list[int] = field(default_factory=list)
    computed: int = 0
    slot: int | None = None
    pins: tuple[bytes, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    sampling: SamplingState | None = None
    grammar: GrammarState | None = None
    lookup: PromptLookup | None = None
    prefix: Prefix | None = None
    preemptions: int = 0
    last_token_at: float | None = None

    @property
    def tokens(self) -> int:
        """How many tokens the prompt and the answer so far have."""
        return self.request.prompt_tokens + len(self.output_ids)

    @property
    def pending(self) -> int:
        """How many tokens must go through the decoder before the next can be chosen."""
        return self.tokens - self.computed


@dataclass(frozen=True)
class Output:
    """Says what is new of one answer.

    Attributes:
        tokens: new ones; none when it ended on a stop id; with beams the whole answer at its end.
        logprobs: one for each of `tokens`, where they were asked for: (log probability, the best others).
        error: why it failed, for people.
    """

    request: Request
    index: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[tuple[float, tuple[tuple[int, float], ...]], ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None


def view_key(patches: NDArray[np.uint8], view: View, tower: str = "") -> bytes:
    """What decides the features of a view, hashed: its pixels, its shape and its rate. Each part with its length.

    Valid inside one process only: other processors use another hash.

    Args:
        tower: the digest of the adapter that the tower or the merger follows.
    """
    digest = _hash()()
    head = f"{view.size.height},{view.size.width},{view.downsample_mode},{patches.size};{tower}".encode()
    digest.update(len(head).to_bytes(4, "little") + head)
    digest.update(np.ascontiguousarray(patches).data)
    return digest.digest()[:24]


@cache
def _hash() -> Callable[[], Any]:
    """SHA-256 where the processor has instructions for it (4 ms instead of 14 ms for 6 MB), else BLAKE2."""
    return hashlib.sha256 if processor_flags() & {"sha_ni", "sha2"} else hashlib.blake2b
