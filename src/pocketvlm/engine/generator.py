"""Prompts in, tokens out: prefill in chunks, then decode all running sequences together.

Sequences occupy the first slots of one cache, so that a decode step reads and writes its states in place; when one
finishes, the last takes its slot and a waiting request is admitted. A request with beams is prefilled once, as one
sequence; its beams then are sequences like others, which start as copies of that one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pocketvlm.engine.beam_search import BeamSearch, assign_slots
from pocketvlm.engine.prompt_lookup import PromptLookup
from pocketvlm.engine.runner import Runner
from pocketvlm.engine.sampler import Sampler
from pocketvlm.engine.sampling_params import SamplingParams
from pocketvlm.errors import ConfigError, PromptError
from pocketvlm.model.cache import Cache
from pocketvlm.model.packing import PackedBatch, Segment
from pocketvlm.views import View

FinishReason = Literal["stop", "length"]
Progress = Callable[[int, int], None]


@dataclass(eq=False)
class Request:
    """One prompt and what has become of it.

    Attributes:
        input_ids: int64 [S].
        patches, views: the pictures, in order of their placeholders.
        stop_ids: tokens that end the answer and are not part of it.
        output_ids: tokens generated so far.
        finish_reason: None while running.
        timing: seconds by stage (encode, prefill, decode), filled in on the way.
        score: of the answer among the beams (`beam_search.Hypothesis`); None without beams.
    """

    input_ids: Tensor
    params: SamplingParams
    stop_ids: frozenset[int]
    patches: Tensor | None = None
    views: Sequence[View] = ()
    output_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    timing: dict[str, float] = field(default_factory=dict)
    score: float | None = None

    def finish(self, reason: FinishReason) -> None:
        """End this request; also for a caller that saw a stop string."""
        self.finish_reason = self.finish_reason or reason


@dataclass(frozen=True)
class TokenEvent:
    """New tokens of a request: one, or none when it ended on a stop id; with beams, the whole answer at its end."""

    request: int
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class _Row:
    """Who is in a slot of the cache: a request, or one of its beams."""

    request: int
    beam: int = 0


@dataclass(frozen=True)
class _Running:
    """What one `stream` works on; the sequence in slot s is `rows[s]`.

    Attributes:
        searches: of the requests with beams.
        lookup: of a request that runs alone and asks for it.
    """

    requests: Sequence[Request]
    sampler: Sampler
    searches: dict[int, BeamSearch]
    cache: Cache
    lookup: PromptLookup | None = None
    rows: list[_Row] = field(default_factory=list)

    def last_token(self, row: _Row) -> int:
        search = self.searches.get(row.request)
        return (search.beams[row.beam].ids if search else self.requests[row.request].output_ids)[-1]

    def admit(self, waiting: deque[int]) -> range:
        """Rows for the next waiting requests, as many as there are slots for them and all their beams."""
        first = len(self.rows)
        free = self.cache.slots - first  # requests that run have branched into all their beams
        while waiting and (wide := self.requests[waiting[0]].params.num_beams) <= free:
            free -= wide
            self.rows.append(_Row(waiting.popleft()))
        return range(first, len(self.rows))

    def drop_finished(self) -> None:
        """Free the slots of finished requests; the last row moves into each gap."""
        slot = 0
        while slot < len(self.rows):
            if self.requests[self.rows[slot].request].finish_reason is None:
                slot += 1
                continue
            last = self.rows.pop()
            if slot < len(self.rows):
                self.cache.copy_slot(len(self.rows), slot)
                self.rows[slot] = last

    def branch(self, request: int, slots: Sequence[int], parents: Sequence[int]) -> None:
        """Give a request's new beams their slots.

        Args:
            slots: of its beams before.
            parents: of each new beam, the index of the one it continues.
        """
        unused, prompt = len(self.rows), len(self.requests[request].input_ids)
        taken, copies = assign_slots(parents, slots, unused)
        for source, target in copies:
            self.cache.copy_slot(source, target, start=0 if target >= unused else prompt)
        self.rows.extend([_Row(request)] * (len(parents) - len(slots)))
        for beam, slot in enumerate(taken):
            self.rows[slot] = _Row(request, beam)


class Generator:
    """Runs requests.

    Args:
        max_batch: sequences that decode together.
        prefill_chunk: prompt tokens of one forward; the runner's own number when None.
    """

    def __init__(self, runner: Runner, *, max_batch: int = 16, prefill_chunk: int | None = None) -> None:
        self.runner, self.max_batch = runner, max_batch
        self.prefill_chunk = runner.prefill_chunk if prefill_chunk is None else prefill_chunk

    def check(self, request: Request) -> None:
        """`PromptError` when a request cannot fit the model's context."""
        context = self.runner.config.text.max_position_embeddings
        if not len(request.input_ids):
            raise PromptError("the prompt is empty")
        if len(request.input_ids) >= context:
            raise PromptError(
                f"the prompt has {len(request.input_ids)} tokens, the model's context is {context}",
                hint="Use a smaller picture, a lower max_slice_nums, downsample_mode='16x' or a shorter text.",
            )

    @torch.inference_mode()
    def stream(self, requests: Sequence[Request], progress: Progress | None = None) -> Iterator[TokenEvent]:
        """Run all requests, yielding each token as it is chosen.

        Args:
            progress: called with (tokens done, tokens in all) during prefill.
        """
        if not requests:
            return
        for request in requests:
            self.check(request)
            if request.params.prompt_lookup_num_tokens and len(requests) > 1:
                raise ConfigError(
                    f"prompt_lookup_num_tokens speeds up single answers, here are {len(requests)} together",
                    hint="Leave it out in a batch.",
                )
        running = self._start(requests)
        waiting = deque(range(len(requests)))
        while waiting or running.rows:
            running.drop_finished()
            slots = running.admit(waiting)
            if not running.rows:
                continue
            if running.lookup is not None and not slots:
                yield from self._look_ahead(running, running.lookup)
                continue
            with self.runner.working():
                if slots:
                    admitted = [requests[running.rows[slot].request] for slot in slots]
                    logits = self._prefill(admitted, slots.start, running.cache, progress)
                else:
                    slots = range(len(running.rows))
                    logits = self._decode(running)
                events = list(self._choose(running, slots, logits))
            yield from events

    def _start(self, requests: Sequence[Request]) -> _Running:
        text = self.runner.config.text
        sampler = Sampler([r.params for r in requests], [r.input_ids for r in requests], text.vocab_size)
        searches = {
            i: BeamSearch(r.params, r.input_ids, r.stop_ids, self._most_tokens(r), text.vocab_size)
            for i, r in enumerate(requests)
            if r.params.num_beams > 1
        }
        widths = [r.params.num_beams for r in requests]
        longest = max(len(r.input_ids) + min(r.params.max_tokens, 256) for r in requests)
        slots = max(*widths, min(self.max_batch, sum(widths)))
        lookup = None
        if most := requests[0].params.prompt_lookup_num_tokens:
            lookup = PromptLookup(requests[0].input_ids.tolist(), most)
        return _Running(requests, sampler, searches, self.runner.make_cache(slots, longest), lookup)

    def _most_tokens(self, request: Request) -> int:
        context = self.runner.config.text.max_position_embeddings
        return min(request.params.max_tokens, context - len(request.input_ids))

    def _choose(self, running: _Running, slots: range, logits: Tensor) -> Iterator[TokenEvent]:
        """Go one token further with the sequences in `slots`, and tell the world."""
        rows = [running.rows[slot] for slot in slots]
        plain = [b for b, row in enumerate(rows) if row.request not in running.searches]
        if plain:
            sampled = logits if len(plain) == len(rows) else logits[plain]
            yield from self._sample(running, [rows[b].request for b in plain], sampled)
        for i in dict.fromkeys(row.request for row in rows if row.request in running.searches):
            best_first = sorted((row.beam, b) for b, row in enumerate(rows) if row.request == i)
            own = [b for _, b in best_first]
            yield from self._search(running, i, [slots[b] for b in own], logits[own])

    def _sample(self, running: _Running, rows: Sequence[int], logits: Tensor) -> Iterator[TokenEvent]:
        """One token for each of these requests."""
        for i, token in zip(rows, running.sampler(logits, rows), strict=True):
            request, shown = running.requests[i], list[int]()
            if token in request.stop_ids:
                request.finish("stop")
            else:
                shown.append(token)
                request.output_ids.append(token)
                if running.lookup is not None:
                    running.lookup.add(token)
                if len(request.output_ids) >= self._most_tokens(request):
                    request.finish("length")
            yield TokenEvent(i, tuple(shown), request.finish_reason)

    def _look_ahead(self, running: _Running, lookup: PromptLookup) -> Iterator[TokenEvent]:
        """One step of the only sequence: the next token, and more as long as they were drafted."""
        request, began = running.requests[0], time.perf_counter()
        with self.runner.working():
            most = self._most_tokens(request) - len(request.output_ids) - 1
            scores, drafted = lookup.forward(self.runner, running.cache, most)
        for score, expected in zip(scores.split(1), [*drafted, None], strict=True):
            request.timing["decode"] += time.perf_counter() - began
            (event,) = self._sample(running, [0], score)
            yield event
            began = time.perf_counter()
            # Its reader may have ended it at a stop string.
            if request.finish_reason is not None or event.tokens != (expected,):
                break
        lookup.settle(running.cache)

    def _search(self, running: _Running, i: int, slots: Sequence[int], logits: Tensor) -> Iterator[TokenEvent]:
        """One token for each beam of request `i`, or its answer."""
        request, search = running.requests[i], running.searches[i]
        if request.finish_reason is not None:
            return  # given up by its reader
        parents = search.advance(logits)
        if not search.done:
            running.branch(i, slots, parents)
            return
        request.output_ids += search.best.ids
        request.score = search.best.score
        request.finish(search.best.finish_reason)
        yield TokenEvent(i, search.best.ids, request.finish_reason)

    def _prefill(self, requests: list[Request], first_slot: int, cache: Cache, progress: Progress | None) -> Tensor:
        """Logits [B, V] of each prompt's last token. Short prompts share a forward, long ones are cut into chunks."""
        began = time.perf_counter()
        features = self._encode(requests)
        encoded = time.perf_counter()
        embeddings = [self.runner.embed(r.input_ids, f) for r, f in zip(requests, features, strict=True)]
        lengths = [len(e) for e in embeddings]
        for slot in range(first_slot, first_slot + len(requests)):
            cache.reset(slot)
        cache.reserve(max(lengths))
        logits: dict[int, Tensor] = {}
        done, total = [0] * len(requests), sum(lengths)
        while any(d < n for d, n in zip(done, lengths, strict=True)):
            room, parts, segments = self.prefill_chunk, [], []
            for b, (d, n) in enumerate(zip(done, lengths, strict=True)):
                take = min(n - d, room)
                if take > 0:
                    parts.append(b)
                    segments.append(Segment(take, d, first_slot + b))
                    room -= take
            batch = PackedBatch.of(segments, self.runner.device)
            x = torch.cat([embeddings[b][s.start : s.start + s.length] for b, s in zip(parts, segments, strict=True)])
            for b, s in zip(parts, segments, strict=True):
                done[b] = s.start + s.length
            ended = [i for i, b in enumerate(parts) if done[b] == lengths[b]]
            scores = self.runner.forward(x, batch, cache, batch.last_rows[ended])
            logits |= {parts[i]: row for i, row in zip(ended, scores, strict=True)}
            if progress is not None:
                progress(sum(done), total)
        spent = time.perf_counter() - encoded
        for r in requests:
            r.timing |= {"encode": encoded - began, "prefill": spent, "decode": 0.0}
        return torch.stack([logits[b] for b in range(len(requests))])

    def _encode(self, requests: list[Request]) -> list[Tensor | None]:
        """Features of each request's pictures; all views of all requests in one pass."""
        views = [v for r in requests for v in r.views]
        if not views:
            return [None] * len(requests)
        patches = torch.cat([r.patches for r in requests if r.patches is not None and len(r.patches)])
        counts = [sum(v.visual_tokens for v in r.views) for r in requests]
        return list(self.runner.encode_views(patches, views).split(counts))

    def _decode(self, running: _Running) -> Tensor:
        """Logits [B, V] after each sequence's newest token."""
        rows, cache = running.rows, running.cache
        if len(rows) > 1:
            self.runner.prepare_batches()
        began = time.perf_counter()
        starts = cache.lengths[: len(rows)]
        cache.reserve(max(starts) + 1)
        batch = PackedBatch.of([Segment(1, s, slot) for slot, s in enumerate(starts)], self.runner.device)
        ids = torch.tensor([running.last_token(row) for row in rows])
        logits = self.runner.forward(self.runner.embed(ids, None), batch, cache, batch.last_rows)
        spent = time.perf_counter() - began
        for i in {row.request for row in rows}:
            running.requests[i].timing["decode"] += spent
        return logits
