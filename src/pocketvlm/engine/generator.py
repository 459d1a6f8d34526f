"""Prompts in, tokens out: prefill in chunks, then decode all running sequences together.

Sequences occupy the first slots of one cache, so that a decode step reads and writes its states in place; when one
finishes, the last takes its slot and a waiting request is admitted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pocketvlm.engine.sampler import Sampler
from pocketvlm.engine.sampling_params import SamplingParams
from pocketvlm.errors import PromptError
from pocketvlm.model.cache import Cache
from pocketvlm.model.packing import PackedBatch, Segment
from pocketvlm.model.vlm import MiniCPMV
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
    """

    input_ids: Tensor
    params: SamplingParams
    stop_ids: frozenset[int]
    patches: Tensor | None = None
    views: Sequence[View] = ()
    output_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    timing: dict[str, float] = field(default_factory=dict)

    def finish(self, reason: FinishReason) -> None:
        """End this request; also for a caller that saw a stop string."""
        self.finish_reason = self.finish_reason or reason


@dataclass(frozen=True)
class TokenEvent:
    """A new token of a request; `token` is None when the request ended on a stop id."""

    request: int
    token: int | None
    finish_reason: FinishReason | None


class Generator:
    """Runs requests on a PyTorch model.

    Args:
        max_batch: sequences that decode together.
        prefill_chunk: prompt tokens of one forward.
    """

    def __init__(self, model: MiniCPMV, *, max_batch: int = 16, prefill_chunk: int = 1024) -> None:
        self.model, self.max_batch, self.prefill_chunk = model, max_batch, prefill_chunk

    def check(self, request: Request) -> None:
        """`PromptError` when a request cannot fit the model's context."""
        context = self.model.config.text.max_position_embeddings
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
        text = self.model.config.text
        sampler = Sampler([r.params for r in requests], [r.input_ids for r in requests], text.vocab_size)
        waiting, running = deque(range(len(requests))), list[int]()
        slots = min(self.max_batch, len(requests))
        longest = max(len(r.input_ids) + min(r.params.max_tokens, 256) for r in requests)
        cache = Cache(text, slots, longest, dtype=self.model.dtype, device=self.model.device)
        while waiting or running:
            running = self._drop_finished(requests, running, cache)
            admitted = [waiting.popleft() for _ in range(min(len(waiting), slots - len(running)))]
            if admitted:
                first = len(running)
                running += admitted
                logits = self._prefill([requests[i] for i in admitted], first, cache, progress)
                yield from self._choose(requests, admitted, logits, sampler)
                continue
            if running:
                logits = self._decode([requests[i] for i in running], cache)
                yield from self._choose(requests, running, logits, sampler)

    def _choose(
        self, requests: Sequence[Request], rows: Sequence[int], logits: Tensor, sampler: Sampler
    ) -> Iterator[TokenEvent]:
        """Sample one token a row and tell the world."""
        for i, token in zip(rows, sampler(logits, rows), strict=True):
            request, shown = requests[i], None
            if token in request.stop_ids:
                request.finish("stop")
            else:
                shown = token
                request.output_ids.append(token)
                if len(request.output_ids) >= request.params.max_tokens or self._is_full(request):
                    request.finish("length")
            yield TokenEvent(i, shown, request.finish_reason)

    def _is_full(self, request: Request) -> bool:
        return len(request.input_ids) + len(request.output_ids) >= self.model.config.text.max_position_embeddings

    @staticmethod
    def _drop_finished(requests: Sequence[Request], running: list[int], cache: Cache) -> list[int]:
        """Free the slots of finished requests; the last running one moves into each gap."""
        slot = 0
        while slot < len(running):
            if requests[running[slot]].finish_reason is None:
                slot += 1
                continue
            last = len(running) - 1
            if slot != last:
                cache.copy_slot(last, slot)
                running[slot] = running[last]
            running.pop()
        return running

    def _prefill(self, requests: list[Request], first_slot: int, cache: Cache, progress: Progress | None) -> Tensor:
        """Logits [B, V] of each prompt's last token. Short prompts share a forward, long ones are cut into chunks."""
        began = time.perf_counter()
        features = self._encode(requests)
        encoded = time.perf_counter()
        embeddings = [
            self.model.embed(r.input_ids.to(self.model.device), f) for r, f in zip(requests, features, strict=True)
        ]
        lengths = [len(e) for e in embeddings]
        for slot in range(first_slot, first_slot + len(requests)):
            cache.reset(slot)
        cache.reserve(max(lengths))
        last_hidden: dict[int, Tensor] = {}
        done, total = [0] * len(requests), sum(lengths)
        while any(d < n for d, n in zip(done, lengths, strict=True)):
            room, parts, segments = self.prefill_chunk, [], []
            for b, (d, n) in enumerate(zip(done, lengths, strict=True)):
                take = min(n - d, room)
                if take > 0:
                    parts.append(b)
                    segments.append(Segment(take, d, first_slot + b))
                    room -= take
            batch = PackedBatch.of(segments, self.model.device)
            x = torch.cat([embeddings[b][s.start : s.start + s.length] for b, s in zip(parts, segments, strict=True)])
            hidden = self.model.language_model(x, batch.positions, batch, cache).index_select(0, batch.last_rows)
            for row, (b, s) in enumerate(zip(parts, segments, strict=True)):
                done[b] = s.start + s.length
                last_hidden[b] = hidden[row]
            if progress is not None:
                progress(sum(done), total)
        logits = self.model.logits(torch.stack([last_hidden[b] for b in range(len(requests))]))
        ended = time.perf_counter()
        for r in requests:
            r.timing |= {"encode": encoded - began, "prefill": ended - encoded, "decode": 0.0}
        return logits

    def _encode(self, requests: list[Request]) -> list[Tensor | None]:
        """Features of each request's pictures; all views of all requests in one pass."""
        views = [v for r in requests for v in r.views]
        if not views:
            return [None] * len(requests)
        patches = torch.cat([r.patches for r in requests if r.patches is not None and len(r.patches)])
        counts = [sum(v.visual_tokens for v in r.views) for r in requests]
        return list(self.model.encode_views(patches, views).split(counts))

    def _decode(self, requests: list[Request], cache: Cache) -> Tensor:
        """Logits [B, V] after each sequence's newest token."""
        if len(requests) > 1:
            self.model.prepare_batches()
        began = time.perf_counter()
        starts = [len(r.input_ids) + len(r.output_ids) - 1 for r in requests]
        cache.reserve(max(starts) + 1)
        batch = PackedBatch.of([Segment(1, s, slot) for slot, s in enumerate(starts)], self.model.device)
        ids = torch.tensor([r.output_ids[-1] for r in requests], device=self.model.device)
        logits = self.model.logits(self.model(ids, batch, None, cache))
        spent = time.perf_counter() - began
        for r in requests:
            r.timing["decode"] += spent
        return logits
