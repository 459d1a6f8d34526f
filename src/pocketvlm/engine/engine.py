"""Many requests → tokens: `Engine.step` is schedule → run → update, and the place to start reading.

The engine knows ids, patches and tensors, never strings. One thread drives it: `add`, `abort` and `finish` between
steps, `step` as long as `has_work`. `async_engine` puts it into a thread of its own.

Shapes:  B sequences that are scored · V vocabulary · W words of a bit mask
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as Series

import torch
from torch import Tensor

from pocketvlm.engine.caches.encoder_cache import EncoderCache
from pocketvlm.engine.caches.pool import CachePool, make_pool
from pocketvlm.engine.caches.prefix_cache import PrefixCache
from pocketvlm.engine.config import EngineConfig, Sizes
from pocketvlm.engine.metrics import Metrics
from pocketvlm.engine.request import Output, Request, Sequence
from pocketvlm.engine.runners.base import Runner
from pocketvlm.engine.scheduler import Chunk, Plan, Scheduler, SchedulerConfig
from pocketvlm.engine.updater import Answering, Scored
from pocketvlm.errors import ConfigError, QueueFullError
from pocketvlm.machine import release_free_memory
from pocketvlm.model.packing import PackedBatch, Segment

logger = logging.getLogger(__name__)

REQUESTS_BETWEEN_TRIMS = 256  # giving free memory back takes some milliseconds


class Engine:
    """Runs requests on `runner`.

    Args:
        config: budgets; what is None there is chosen for the runner and the machine.
    """

    def __init__(self, runner: Runner, config: EngineConfig | None = None) -> None:
        self.runner = runner
        self.config = config or EngineConfig()
        self.sizes = sizes = Sizes.of(runner, self.config)
        if self.config.enforce_eager:
            runner.enforce_eager()
        self.metrics = Metrics()
        self.features = EncoderCache(sizes.encoder_bytes)
        budgets = SchedulerConfig(max_num_batched_tokens=sizes.batched_tokens, max_patches=sizes.patches)
        pool = make_pool(runner, sizes)
        self.prefixes = PrefixCache(runner.config.text, sizes, pool.cache)
        self.scheduler = Scheduler(pool, self.prefixes, self.features, self.metrics, budgets)
        self.answering = Answering(self.scheduler, self.metrics, runner.config.text.vocab_size)
        self.requests = self.answering.requests
        self._lost: list[Output] = []  # told with the next step

    @property
    def pool(self) -> CachePool:
        return self.scheduler.pool

    @property
    def has_work(self) -> bool:
        return bool(self.requests or self._lost)

    @property
    def has_room(self) -> bool:
        """Whether the queue takes one more request."""
        return len(self.scheduler.waiting) < self.config.max_waiting

    def check(self, request: Request) -> None:
        """The request's user's mistakes, as an error: a prompt that cannot fit, or more beams than there are rows."""
        params = request.params
        if params.num_beams > self.sizes.max_num_seqs:
            raise ConfigError(
                f"num_beams={params.num_beams}, the engine runs {self.sizes.max_num_seqs} sequences at a time",
                hint="Use fewer, or a larger max_num_seqs.",
            )
        params.check_vocabulary(self.runner.config.text.vocab_size)
        self.pool.check_fits(request.prompt_tokens, request.width)

    def add(self, request: Request) -> None:
        """Take a request; its news come with `step`. `QueueFullError` when too many wait."""
        self.check(request)
        if request.request_id in self.requests:
            raise ConfigError(f"a request {request.request_id!r} is already here")
        if not self.has_room:
            self.metrics.rejections.labels("queue_full").inc()
            raise QueueFullError(f"{self.config.max_waiting} requests are waiting", hint="Try again later.")
        self.requests[request.request_id] = request
        self.scheduler.add(request.sequences[0])
        self.metrics.received(request)

    @torch.inference_mode()
    def abort(self, request: Request) -> None:
        """Give a request up, whatever it is doing. Nothing more is told of it."""
        if self.requests.get(request.request_id) is request:
            for sequence in list(request.sequences):
                self.answering.end(sequence, "abort")

    @torch.inference_mode()
    def finish(self, request: Request, index: int) -> None:
        """End one answer whose reader saw a stop string."""
        for sequence in request.sequences:
            if sequence.index == index and sequence.finish_reason is None:
                self.answering.end(sequence, "stop")

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Schedule → run → update; returns what is new. A request that fails is news too, and no other's concern."""
        outputs, self._lost = self._lost + self._expire(), []
        try:
            with self.runner.working():
                if (alone := self.answering.lone_lookup()) is not None:
                    outputs += self.answering.look_ahead(alone, self.runner)
                else:
                    plan = self.scheduler.schedule()
                    outputs += self._encode(plan)
                    # One by one: what was said before a fault is not lost with it.
                    for output in self.answering.update(*self._run(plan)):
                        outputs.append(output)
        except Exception as error:  # ours, or out of memory: all that ran is lost, what waits is not
            logger.exception("a step failed")
            outputs += self._fail_running(error)
        except BaseException:  # an interrupt in the middle: rows and caches may disagree
            self._lost += outputs + self._fail_running(None)
            raise
        if self.answering.closed >= REQUESTS_BETWEEN_TRIMS:
            self.answering.closed = 0
            release_free_memory()
        self.metrics.stepped(
            running=len({sequence.request for sequence in self.pool.rows}),
            waiting=len(self.scheduler.waiting),
            cache_usage=self.pool.usage,
            prefix_bytes=self.prefixes.used_bytes,
        )
        return outputs

    def _encode(self, plan: Plan) -> list[Output]:
        """Views to features, all in one call; where that fails, one by one, and only whose own fails is lost."""
        if not plan.views:
            return []
        began = time.perf_counter()
        try:
            self._encode_views(plan.views)
        except Exception:
            logger.warning("pictures could not be encoded together; one by one now", exc_info=True)
            lost = [output for view in plan.views for output in self._encode_alone(view, plan)]
        else:
            lost = []
        spent = time.perf_counter() - began
        for request in dict.fromkeys(request for request, _ in plan.views):
            request.timing["encode"] += spent
        return lost

    def _encode_views(self, chosen: Series[tuple[Request, int]]) -> None:
        views, patches = [], []
        for request, i in chosen:
            assert request.patches is not None
            first = sum(view.patches for view in request.views[:i])
            views.append(request.views[i])
            patches.append(request.patches[first : first + views[-1].patches])
        features = self.runner.encode_views(torch.cat(patches) if len(patches) > 1 else patches[0], views)
        parts = features.split([view.visual_tokens for view in views])
        for (request, i), part in zip(chosen, parts, strict=True):
            # A view of its own memory: a slice would keep all views of the step alive.
            self.features.add(request.view_keys[i], part.clone() if len(parts) > 1 else part)
        self.metrics.encoded_views.inc(len(views))

    def _encode_alone(self, view: tuple[Request, int], plan: Plan) -> list[Output]:
        request = view[0]
        if request.is_finished:
            return []
        try:
            self._encode_views([view])
        except Exception as error:
            logger.exception("a picture could not be encoded")
            plan.chunks = [chunk for chunk in plan.chunks if chunk.sequence.request is not request]
            return self.answering.fail(request, f"a picture could not be encoded: {_reason(error)}")
        return []

    def _run(self, plan: Plan) -> tuple[list[Scored], list[Tensor]]:
        """One forward of all that decode, one of all chunks: who has scores now, and the scores [B, V] of each."""
        scored, scores = list[Scored](), list[Tensor]()
        if plan.decode:
            began = time.perf_counter()
            scores.append(self._decode(plan.decode))
            scored += [Scored(sequence, row) for row, sequence in enumerate(plan.decode)]
            spent = time.perf_counter() - began
            for request in dict.fromkeys(sequence.request for sequence in plan.decode):
                request.timing["decode"] += spent
        # A view that could not be encoded has taken its request's row.
        chunks = [chunk for chunk in plan.chunks if chunk.sequence.row is not None]
        if chunks:
            began = time.perf_counter()
            ended, found = self._prefill(chunks)
            scored += [Scored(sequence, len(plan.decode) + row) for row, sequence in enumerate(ended)]
            scores.append(found)
            spent = time.perf_counter() - began
            for request in dict.fromkeys(chunk.sequence.request for chunk in chunks):
                request.timing["prefill"] += spent
        return scored, scores

    def _decode(self, sequences: Series[Sequence]) -> Tensor:
        """Scores [B, V] after each sequence's newest token; they are in the first rows."""
        if len(sequences) > 1:
            self.runner.prepare_batches()
        segments = [Segment(1, sequence.computed, row) for row, sequence in enumerate(sequences)]
        batch = PackedBatch.of(segments, self.runner.device)
        ids = torch.tensor([sequence.output_ids[-1] for sequence in sequences])
        scores = self.runner.forward(self.runner.embed(ids, None), batch, self.pool.cache, batch.last_rows)
        for sequence in sequences:
            sequence.computed += 1
        return scores

    def _prefill(self, chunks: Series[Chunk]) -> tuple[list[Sequence], Tensor]:
        """Read chunks of prompts; returns those whose last token is read, and their scores."""
        segments, parts = [], []
        for chunk in chunks:
            row = chunk.sequence.row
            assert row is not None
            segments.append(Segment(chunk.length, chunk.start, row))
            parts.append(self._embed(chunk))
        batch = PackedBatch.of(segments, self.runner.device)
        ended = [i for i, chunk in enumerate(chunks) if chunk.start + chunk.length == chunk.sequence.tokens]
        x_TD = torch.cat(parts) if len(parts) > 1 else parts[0]
        scores = self.runner.forward(x_TD, batch, self.pool.cache, batch.last_rows[ended])
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.computed += chunk.length
            if (digest := self.scheduler.cut_at(sequence)) is not None:
                assert sequence.row is not None
                sequence.prefix = self.prefixes.store(digest, self.pool.cache, sequence.row, sequence.prefix)
        self.metrics.prompt_tokens_computed.inc(sum(chunk.length for chunk in chunks))
        return [chunks[i].sequence for i in ended], scores

    def _embed(self, chunk: Chunk) -> Tensor:
        """[T, D] of a chunk's tokens, visual ones in their places."""
        request, end = chunk.sequence.request, chunk.start + chunk.length
        prompt = request.input_ids[chunk.start : end]
        features = self.scheduler.visual_tokens(chunk)
        x_TD = self.runner.embed(prompt, features) if len(prompt) else None
        # What was generated holds no places for features, even where it spells them.
        answer = chunk.sequence.output_ids[
            max(0, chunk.start - request.prompt_tokens) : max(0, end - request.prompt_tokens)
        ]
        if not answer:
            assert x_TD is not None
            return x_TD
        more = self.runner.embed(torch.tensor(answer), None)
        return more if x_TD is None else torch.cat([x_TD, more])

    def _expire(self) -> list[Output]:
        """Requests whose time is over."""
        now, outputs = time.monotonic(), []
        for request in list(self.requests.values()):
            if request.deadline is not None and now >= request.deadline:
                for sequence in list(request.sequences):
                    if sequence.finish_reason is None:
                        self.answering.end(sequence, "abort")
                        error = "the deadline has passed"
                        outputs.append(Output(request, sequence.index, finish_reason="abort", error=error))
        return outputs

    def _fail_running(self, error: Exception | None) -> list[Output]:
        """Everything that has a row is lost, and what is in the caches too: nobody knows what is in it."""
        reason = f"the engine failed: {_reason(error)}" if error is not None else "interrupted"
        lost = list(dict.fromkeys(sequence.request for sequence in self.pool.rows))
        if not lost and self.scheduler.waiting:  # it was not even admitted, and would fail for ever
            lost = [next(self.scheduler.in_order()).request]
        outputs = [output for request in lost for output in self.answering.fail(request, reason)]
        assert not self.pool.rows
        self.pool.clear()
        self.prefixes.forget()
        self.features.clear()
        return outputs

    def describe(self) -> str:
        """Sizes, for people."""
        return f"{self.runner.describe()}; {self.sizes.describe()}"

    def check_integrity(self) -> None:
        """Everything that is counted, counted again; after each step of tests."""
        self.scheduler.check_integrity()
        for sequence in self.pool.rows:
            assert self.requests.get(sequence.request.request_id) is sequence.request, "a row of an unknown request"
        if not self.requests:
            assert not self.pool.rows, "rows without requests"
            assert not self.scheduler.waiting, "a queue without requests"


def _reason(error: Exception) -> str:
    """In one line, for a log or a user: what kind of failure, without insides of a library."""
    return "out of memory" if isinstance(error, MemoryError | torch.OutOfMemoryError) else type(error).__name__
