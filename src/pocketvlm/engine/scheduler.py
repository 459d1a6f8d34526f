"""Who runs next: slots for waiting requests, views to encode, tokens of prompts to read, sequences to take a step.

Sequences that decode always take their step. What is left of a step's budgets goes to prompts in the order of their
precedence: arrival, moved by priority, so that nobody waits forever. Where the cache is too small for all that run, the
last in that order gives its slot up and is computed again later.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from pocketvlm.engine.caches.encoder_cache import EncoderCache
from pocketvlm.engine.caches.pool import CachePool
from pocketvlm.engine.caches.prefix_cache import PrefixCache
from pocketvlm.engine.metrics import Metrics
from pocketvlm.engine.prompt_layout import PromptLayout
from pocketvlm.engine.request import Request, Sequence
from pocketvlm.engine.sampling.prompt_lookup import PromptLookup


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits what one step may take up.

    Attributes:
        max_num_batched_tokens: tokens of prompts in one step.
        max_patches: patches of views in one step; a larger view goes alone.
        aging_seconds: seconds of waiting that outweigh one step of priority.
        min_cut: tokens between two prefixes of a prompt that are kept: each costs a forward of its own.
        max_cuts: prefixes of a prompt that are kept, about.
    """

    max_num_batched_tokens: int = 1024
    max_patches: int = 4096
    aging_seconds: float = 10.0
    min_cut: int = 32
    max_cuts: int = 8


@dataclass(frozen=True)
class Chunk:
    """Stands for `length` tokens of a sequence behind its first `start`."""

    sequence: Sequence
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass
class Plan:
    """Says what one step does.

    Attributes:
        views: to encode, as (request, index of its view).
        decode: sequences that take a step, by slot.
        chunks: of prompts.
        draft: tokens that may be drafted (`prompt_lookup`) for the only sequence of `decode`; None where it drafts
            nothing.
    """

    views: list[tuple[Request, int]] = field(default_factory=list)
    decode: list[Sequence] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    draft: int | None = None


class Scheduler:
    """Keeps what waits; what runs is in the pool, by slot.

    Args:
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
        self.metrics = metrics
        self._ticket = itertools.count()
        self.on_admission: Callable[[Request], None] = lambda _: None  # called before anything of it changes

    def add_request(self, request: Request) -> None:
        """Find out what a new request's prompt looks like, which is done here only, and queue its first sequence."""
        request.layout = PromptLayout.of(
            request.input_ids,
            request.views,
            request.view_keys,
            placeholder_ids=request.placeholder_ids,
            branch_points=request.branch_points if self.prefixes.budget else (),
            salt=request.salt,
            min_cut=self.config.min_cut,
            max_cuts=self.config.max_cuts,
        )
        self.add(request.sequences[0])

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that must be computed, for the first time or again."""
        heapq.heappush(self.waiting, (self._precedence(sequence), next(self._ticket), sequence))

    def in_order(self) -> Iterator[Sequence]:
        """Iterate over those that wait, in the order in which they will be taken."""
        return (sequence for *_, sequence in sorted(self.waiting, key=lambda entry: entry[:2]))

    def forget(self, sequence: Sequence, *, erase: bool = False) -> None:
        """Let go of a sequence that has ended: its slot, its pins, its entry in the queue."""
        if sequence.slot is not None:
            self.pool.remove(sequence, erase=erase)
        elif any(entry[2] is sequence for entry in self.waiting):
            waiting = [entry for entry in self.waiting if entry[2] is not sequence]
            heapq.heapify(waiting)
            self.waiting = waiting
        self.unpin(sequence)

    def reset(self, lost: Collection[Sequence]) -> None:
        """Forget all that runs and these sequences, and empty the caches, whatever state an interrupt left them in."""
        pool = self.pool
        for sequence in (*lost, *pool.sequences):
            sequence.slot, sequence.computed, sequence.pins = None, 0, ()
        pool.sequences, pool.decoding = [], 0
        pool.cache.clear()
        self.prefixes.forget()
        self.features.clear()
        gone = {*lost}
        waiting = [entry for entry in self.waiting if entry[2] not in gone]
        heapq.heapify(waiting)
        self.waiting = waiting

    def unpin(self, sequence: Sequence) -> None:
        """Release the features of a sequence's views, which it needs no more."""
        self.features.unpin(sequence.pins)
        sequence.pins = ()

    def schedule(self) -> Plan:
        """Plan the next step; admitted sequences have their slots afterwards."""
        if (alone := self._alone()) is not None:
            return self._plan_draft(alone)
        self._make_room()
        plan = Plan(decode=self.pool.sequences[: self.pool.decoding])
        tokens, patches = self.config.max_num_batched_tokens, self.config.max_patches
        planned: set[bytes] = set()
        reading = sorted(self.pool.sequences[self.pool.decoding :], key=self._precedence)
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

    def _alone(self) -> Sequence | None:
        """Return the only sequence there is, where it drafts tokens from what was there before."""
        pool = self.pool
        if len(pool.sequences) != 1 or pool.decoding != 1:
            return None
        sequence = pool.sequences[0]
        max_tokens = sequence.request.params.prompt_lookup_num_tokens
        if sequence.lookup is None:
            if not max_tokens or self.waiting:
                return None
            sequence.lookup = PromptLookup([*sequence.request.input_ids.tolist(), *sequence.output_ids], max_tokens)
            sequence.lookup.pending.append(sequence.output_ids[-1])
        # Others wait: what a failed draft left behind goes through the decoder first, and then there is company.
        if self.waiting and sequence.pending == 1:
            sequence.lookup = None
            return None
        return sequence

    def _plan_draft(self, sequence: Sequence) -> Plan:
        """Plan a step of the only sequence: its next token, and more as long as they were drafted."""
        assert sequence.lookup is not None
        left = self.pool.max_new_tokens(sequence.request) - len(sequence.output_ids) - 1
        self.pool.cache.make_room([sequence.tokens + min(left, sequence.lookup.max_tokens)])
        return Plan(decode=[sequence], draft=0 if self.waiting else left)

    def _admitted(self) -> Iterator[Sequence]:
        """Take sequences from the queue and give each a slot, as long as there is room."""
        while self.waiting:
            sequence = self.waiting[0][2]
            more = self.promised() + [sequence.tokens + 1] * sequence.request.width
            if not self.pool.fits(more):
                return
            self.on_admission(sequence.request)
            heapq.heappop(self.waiting)
            self.pool.reserve(more)
            self.pool.admit(sequence)
            self._start(sequence)
            yield sequence

    def promised(self) -> list[int]:
        """Return the tokens of each slot that requests with beams do not have yet but will need."""
        held: dict[Request, list[int]] = {}
        for sequence in self.pool.sequences:
            if sequence.request.width > 1:
                held.setdefault(sequence.request, []).append(sequence.tokens)
        return [max(tokens) for request, tokens in held.items() for _ in range(request.width - len(tokens))]

    def _start(self, sequence: Sequence) -> None:
        """Take up the longest prefix of the prompt that is kept, and pin the views that are needed behind it."""
        request = sequence.request
        layout, is_new = request.layout, sequence.index == 0 and not sequence.preemptions
        if (prefix := self.prefixes.find(layout.digests)) is not None:
            assert sequence.slot is not None
            self.prefixes.restore(prefix, sequence.slot)
            sequence.computed, sequence.prefix = prefix.length, prefix
            if is_new:
                request.cached_tokens = prefix.length
        needed = layout.views_in(sequence.computed, request.prompt_tokens)
        sequence.pins = tuple(request.view_keys[i] for i in needed)
        self.features.pin(sequence.pins)
        if is_new:
            request.timing["queue"] = time.monotonic() - request.arrival
            self.metrics.started(request, len(sequence.pins), sum(key in self.features for key in sequence.pins))

    def _plan_views(self, sequence: Sequence, plan: Plan, planned: set[bytes], patches: int) -> int:
        """Plan views of a prompt that are not encoded yet, in order, as far as the budget goes; returns the patches."""
        request, spent = sequence.request, 0
        for i in request.layout.views_in(sequence.computed, request.prompt_tokens):
            key, size = request.view_keys[i], request.views[i].patches
            if key in planned or key in self.features:
                continue
            if spent + size > patches and plan.views:
                break
            plan.views.append((request, i))
            planned.add(key)
            spent += size
        return spent

    def _chunk(self, sequence: Sequence, tokens: int, planned: set[bytes]) -> int:
        """Return how many tokens of a prompt can go next: up to a cut, and only where all views among them are encoded.
        A part of what would fit is not worth a forward of its own."""
        request, start = sequence.request, sequence.computed
        end = request.layout.next_cut(start, min(sequence.tokens, start + tokens))
        keys = (request.view_keys[i] for i in request.layout.views_in(start, end))
        return end - start if all(key in planned or key in self.features for key in keys) else 0

    def _make_room(self) -> None:
        """Make room for the next token of every sequence that runs, or let the last of them give up their slots."""
        while self.pool.sequences:
            promised = self.promised()
            if self.pool.fits(promised):
                self.pool.reserve(promised)
                return
            self.preempt(max(self.pool.sequences, key=self._precedence))
        self.pool.cache.shrink()

    def preempt(self, sequence: Sequence) -> None:
        """Take a sequence's slot; it will be computed again. Beams begin again from their prompt."""
        request = sequence.request
        losers = list(request.sequences) if request.width > 1 else [sequence]
        for loser in losers:
            if loser.slot is not None:
                self.pool.remove(loser)
            self.unpin(loser)
            loser.preemptions += 1
            loser.prefix = loser.lookup = None
        self.metrics.preemptions.inc()
        if request.width > 1:
            request.search = None
            request.sequences = [losers[0]]
            losers[0].output_ids = []
        self.add(losers[0])

    def check_integrity(self) -> None:
        """Check that slots, blocks, pins and the queue agree with each other."""
        self.pool.check_integrity()
        self.prefixes.check_integrity()
        self.features.check_integrity()
        counts: dict[bytes, int] = {}
        for sequence in self.pool.sequences:
            for key in sequence.pins:
                counts[key] = counts.get(key, 0) + 1
        assert counts == self.features.pins, "pins do not match the sequences that run"
        for *_, sequence in self.waiting:
            assert sequence.slot is None, "a sequence waits and runs"
            assert not sequence.pins, "a sequence that waits pins views"
            assert sequence.finish_reason is None, "a finished sequence waits"
