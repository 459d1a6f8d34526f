"""Who runs next: rows for waiting requests, views to encode, tokens of prompts to read, sequences to take a step.

Sequences that decode always take their step. What is left of a step's budgets goes to prompts in the order of their
precedence: arrival, moved by priority, so that nobody waits forever. Where the cache is too small for all that run, the
last in that order gives its row up and is computed again later.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pocketvlm.engine.caches.encoder_cache import EncoderCache
from pocketvlm.engine.caches.pool import CachePool
from pocketvlm.engine.caches.prefix_cache import Digest, PrefixCache
from pocketvlm.engine.metrics import Metrics
from pocketvlm.engine.prompt_layout import prefix_digests, view_starts
from pocketvlm.engine.request import Request, Sequence


@dataclass(frozen=True)
class SchedulerConfig:
    """Budgets of a step.

    Attributes:
        max_num_batched_tokens: of prompts in one step.
        max_patches: of views in one step; a larger view goes alone.
        aging_seconds: of waiting that outweigh one step of priority.
        min_cut: tokens between two beginnings of a prompt that are kept: each costs a forward of its own.
        most_cuts: of a prompt, about.
    """

    max_num_batched_tokens: int = 1024
    max_patches: int = 4096
    aging_seconds: float = 10.0
    min_cut: int = 32
    most_cuts: int = 8


@dataclass(frozen=True)
class Chunk:
    """`length` tokens of a sequence behind its first `start`."""

    sequence: Sequence
    start: int
    length: int


@dataclass
class Plan:
    """One step.

    Attributes:
        views: to encode, as (request, index of its view).
        decode: sequences that take a step, by row.
        chunks: of prompts.
    """

    views: list[tuple[Request, int]] = field(default_factory=list)
    decode: list[Sequence] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)


@dataclass
class Outline:
    """What the scheduler knows of a request's prompt: where its views stand and where it may be cut."""

    starts: list[int]
    ends: list[int]
    points: tuple[int, ...]
    digests: list[Digest]
    cuts: dict[int, Digest]


class Scheduler:
    """Args:
    pool, prefixes, features: what sequences need.
    metrics: what is counted.
    config: budgets.
    """

    def __init__(
        self,
        pool: CachePool,
        prefixes: PrefixCache,
        features: EncoderCache,
        metrics: Metrics,
        config: SchedulerConfig | None = None,
    ) -> None:
        self.pool, self.prefixes, self.features = pool, prefixes, features
        self.config = config or SchedulerConfig()
        self.waiting: list[tuple[float, int, Sequence]] = []
        self.outlines: dict[Request, Outline] = {}
        self.pinned: dict[Sequence, list[bytes]] = {}
        self.metrics = metrics
        self._ticket = itertools.count()

    def add(self, sequence: Sequence) -> None:
        """Into the queue: a new request's first sequence, or one that must be computed again."""
        heapq.heappush(self.waiting, (self._precedence(sequence), next(self._ticket), sequence))

    def in_order(self) -> Iterator[Sequence]:
        """Those that wait, first come first."""
        return (sequence for *_, sequence in sorted(self.waiting, key=lambda entry: entry[:2]))

    def forget(self, sequence: Sequence, *, erase: bool = False) -> None:
        """A sequence has ended: its row, its pins and its place in the queue are free."""
        if sequence.row is not None:
            self.pool.remove(sequence, erase=erase)
        elif any(entry[2] is sequence for entry in self.waiting):
            self.waiting = [entry for entry in self.waiting if entry[2] is not sequence]
            heapq.heapify(self.waiting)
        self.features.unpin(self.pinned.pop(sequence, ()))
        if sequence.request.is_finished:
            self.outlines.pop(sequence.request, None)

    def schedule(self) -> Plan:
        """What the next step does; admitted sequences have their rows afterwards."""
        self._make_room()
        plan = Plan(decode=list(self.pool.rows[: self.pool.decoding]))
        tokens, patches = self.config.max_num_batched_tokens, self.config.max_patches
        planned: set[bytes] = set()
        reading = sorted(self.pool.rows[self.pool.decoding :], key=self._precedence)
        for sequence in itertools.chain(reading, self._admitted()):
            patches -= self._plan_views(sequence, plan, planned, patches)
            length = self._chunk(sequence, tokens, planned)
            if length and (length >= min(sequence.pending, self.config.min_cut) or not plan.chunks):
                plan.chunks.append(Chunk(sequence, sequence.computed, length))
                tokens -= length
            if tokens <= 0 or patches <= 0:
                break
        return plan

    def _precedence(self, sequence: Sequence) -> float:
        request = sequence.request
        return request.arrival + request.priority * self.config.aging_seconds

    def _admitted(self) -> Iterator[Sequence]:
        """Sequences from the queue, each given a row, as long as there is room."""
        while self.waiting:
            sequence = self.waiting[0][2]
            more = self.promised() + [sequence.tokens + 1] * sequence.request.width
            if not self.pool.fits(more):
                return
            heapq.heappop(self.waiting)
            self.pool.reserve(more)
            self.pool.admit(sequence)
            self._start(sequence)
            yield sequence

    def promised(self) -> list[int]:
        """Tokens of each row that requests with beams do not have yet but will need."""
        held: dict[Request, list[int]] = {}
        for sequence in self.pool.rows:
            if sequence.request.width > 1:
                held.setdefault(sequence.request, []).append(sequence.tokens)
        return [max(tokens) for request, tokens in held.items() for _ in range(request.width - len(tokens))]

    def _start(self, sequence: Sequence) -> None:
        """Take up the longest beginning of the prompt that is kept, and pin the views that are needed behind it."""
        request = sequence.request
        outline, is_new = self._outline(request), sequence.index == 0 and not sequence.preemptions
        if (prefix := self.prefixes.find(outline.digests)) is not None:
            assert sequence.row is not None
            self.prefixes.restore(prefix, self.pool.cache, sequence.row)
            sequence.computed, sequence.prefix = prefix.length, prefix
            if is_new:
                request.cached_tokens = prefix.length
        keys = [key for key, end in zip(request.view_keys, outline.ends, strict=True) if end > sequence.computed]
        self.features.pin(keys)
        self.pinned[sequence] = keys
        if is_new:
            request.timing["queue"] = time.monotonic() - request.arrival
            self.metrics.started(request, len(keys), sum(key in self.features for key in keys))

    def _outline(self, request: Request) -> Outline:
        if (outline := self.outlines.get(request)) is None:
            starts = view_starts(request)
            ends = [start + view.visual_tokens for start, view in zip(starts, request.views, strict=True)]
            points = tuple(point for point in request.branch_points if 0 < point < request.prompt_tokens)
            digests = prefix_digests(request, points) if self.prefixes.budget else []
            outline = Outline(starts, ends, points, digests, self._cuts(points, digests, request.prompt_tokens))
            self.outlines[request] = outline
        return outline

    def _cuts(self, points: tuple[int, ...], digests: list[Digest], tokens: int) -> dict[int, Digest]:
        """The beginnings that will be kept: the last one always, others at some distance from each other."""
        cuts: dict[int, Digest] = {}
        last, distance = 0, max(self.config.min_cut, tokens // self.config.most_cuts)
        for point, digest in zip(points, digests, strict=False):
            if point - last >= distance or point == points[-1]:
                cuts[point] = digest
                last = point
        return cuts

    def cut_at(self, sequence: Sequence) -> Digest | None:
        """The digest of the beginning that a sequence has just reached the end of, where it is to be kept."""
        return self._outline(sequence.request).cuts.get(sequence.computed)

    def visual_tokens(self, chunk: Chunk) -> Tensor | None:
        """[N, D]: features of the placeholders among a chunk's tokens, in order; None where there are none."""
        request, first, last = chunk.sequence.request, chunk.start, chunk.start + chunk.length
        outline = self._outline(request)
        parts = [
            self.features[key][max(0, first - start) : last - start]
            for key, start, end in zip(request.view_keys, outline.starts, outline.ends, strict=True)
            if start < last and end > first
        ]
        return torch.cat(parts) if parts else None

    def _plan_views(self, sequence: Sequence, plan: Plan, planned: set[bytes], patches: int) -> int:
        """Views of a prompt that are not encoded yet, in order, as far as the budget goes; returns the patches."""
        request, spent = sequence.request, 0
        for i, (key, end) in enumerate(zip(request.view_keys, self._outline(request).ends, strict=True)):
            if end <= sequence.computed or key in planned or key in self.features:
                continue
            size = request.views[i].patches
            if spent + size > patches and plan.views:
                break
            plan.views.append((request, i))
            planned.add(key)
            spent += size
        return spent

    def _chunk(self, sequence: Sequence, tokens: int, planned: set[bytes]) -> int:
        """Tokens of a prompt that can go next: up to a cut, and only where all views among them are encoded. A part of
        what would fit is not worth a forward of its own."""
        outline = self._outline(sequence.request)
        start = sequence.computed
        end = min(sequence.tokens, start + tokens)
        end = min((cut for cut in outline.cuts if start < cut < end), default=end)
        for key, first, last in zip(sequence.request.view_keys, outline.starts, outline.ends, strict=True):
            if first < end and last > start and key not in planned and key not in self.features:
                return 0
        return end - start

    def _make_room(self) -> None:
        """Every sequence that runs has a place for its next token, or the last of them give up their rows."""
        while self.pool.rows:
            promised = self.promised()
            if self.pool.fits(promised):
                self.pool.reserve(promised)
                return
            self.preempt(max(self.pool.rows, key=self._precedence))
        self.pool.shrink()

    def preempt(self, sequence: Sequence) -> None:
        """Take a sequence's row; it will be computed again. Beams begin again from their prompt."""
        request = sequence.request
        losers = list(request.sequences) if request.width > 1 else [sequence]
        for loser in losers:
            if loser.row is not None:
                self.pool.remove(loser)
            self.features.unpin(self.pinned.pop(loser, ()))
            loser.preemptions += 1
            loser.prefix = loser.lookup = None
        self.metrics.preemptions.inc()
        if request.width > 1:
            request.search = None
            request.sequences = [losers[0]]
            losers[0].output_ids = []
        self.add(losers[0])

    def check_integrity(self) -> None:
        """Rows, blocks, pins and the queue agree with each other."""
        self.pool.check_integrity()
        self.prefixes.check_integrity(self.pool.cache)
        self.features.check_integrity()
        counts: dict[bytes, int] = {}
        for sequence, keys in self.pinned.items():
            assert sequence.row is not None, "a sequence without a row pins views"
            for key in keys:
                counts[key] = counts.get(key, 0) + 1
        assert counts == self.features.pins, "pins do not match the sequences that run"
        for *_, sequence in self.waiting:
            assert sequence.row is None, "a sequence waits and runs"
            assert sequence.finish_reason is None, "a finished sequence waits"
        known = {sequence.request for sequence in self.pool.rows} | {entry[2].request for entry in self.waiting}
        assert set(self.outlines) <= known, "a finished request is remembered"
