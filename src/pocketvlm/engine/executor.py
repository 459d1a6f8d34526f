"""A plan → scores: views to features, one forward of all that decode, one of all chunks of prompts.

Shapes:  T tokens of a chunk · N visual tokens · D hidden · R rows of scores · V vocabulary
"""

from __future__ import annotations

import logging
import time
from collections import abc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from pocketvlm.engine.caches.encoder_cache import EncoderCache
from pocketvlm.engine.caches.prefix_cache import PrefixCache
from pocketvlm.engine.metrics import Metrics
from pocketvlm.engine.request import Request, Sequence
from pocketvlm.engine.runners.base import Runner
from pocketvlm.engine.scheduler import Chunk, Plan
from pocketvlm.model.adapters.placed import PlacedAdapter
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.cache.memory import Array
from pocketvlm.model.segments import Segment

logger = logging.getLogger(__name__)


@dataclass
class StepScores:
    """Says what became of a plan.

    Attributes:
        sequences: those that have scores for their next token, one for each row.
        scores_RV: their scores, [R, V]; None where nobody has any.
        drafted: tokens that were drafted for the only sequence; the rows of `scores_RV` are then those after its newest
            token and after each of these. None where it drafts nothing.
        failed: requests whose pictures could not be encoded, and why, for people.
    """

    sequences: list[Sequence] = field(default_factory=list)
    scores_RV: Array | None = None
    drafted: list[int] | None = None
    failed: dict[Request, str] = field(default_factory=dict)


class Executor:
    """Carries out plans on a model.

    Args:
        runner: the model.
        cache: of the sequences that run.
        prefixes: keeps prefixes that have been read.
        features: of views, filled here.
        metrics: what is counted.
    """

    def __init__(
        self, runner: Runner, cache: Cache, prefixes: PrefixCache, features: EncoderCache, metrics: Metrics
    ) -> None:
        self.runner, self.cache, self.prefixes = runner, cache, prefixes
        self.features, self.metrics = features, metrics

    def run(self, plan: Plan) -> StepScores:
        """Carry out a plan. All sequences of it stay in their slots."""
        if plan.draft is not None:
            return self._try_draft(plan.decode[0], plan.draft)
        result = StepScores(failed=self._encode(plan.views))
        scores = list[Array]()
        if plan.decode:
            with _timed("decode", (sequence.request for sequence in plan.decode)):
                scores.append(self._decode(plan.decode))
            result.sequences += plan.decode
        chunks = [chunk for chunk in plan.chunks if self._can_read(chunk, result.failed)]
        if chunks:
            with _timed("prefill", (chunk.sequence.request for chunk in chunks)):
                ended, found = self._prefill(chunks)
            scores.append(found)
            result.sequences += ended
        if scores:
            result.scores_RV = self._join(scores)
        return result

    def _can_read(self, chunk: Chunk, failed: abc.Container[Request]) -> bool:
        """Say whether the features of a chunk are there. Another request's failure may have left them out; then the
        next step tries again."""
        request = chunk.sequence.request
        keys = (request.view_keys[i] for i in request.layout.views_in(chunk.start, chunk.end))
        return request not in failed and all(key in self.features for key in keys)

    def _encode(self, views: abc.Sequence[tuple[Request, int]]) -> dict[Request, str]:
        """Encode views, those that follow one adapter in one call; where that fails, one by one, so that only whose own
        fails is lost.

        Returns:
            the requests that are lost, and why.
        """
        if not views:
            return {}
        failed: dict[Request, str] = {}
        by_adapter: dict[PlacedAdapter | None, list[tuple[Request, int]]] = {}
        for request, i in views:
            by_adapter.setdefault(request.vision_adapter, []).append((request, i))
        with _timed("encode", (request for request, _ in views)):
            for alike in by_adapter.values():
                try:
                    self._encode_together(alike)
                except Exception:
                    logger.warning("pictures could not be encoded together; one by one now", exc_info=True)
                    self._encode_singly(alike, failed)
        return failed

    def _encode_singly(self, views: abc.Sequence[tuple[Request, int]], failed: dict[Request, str]) -> None:
        """Encode views one by one; the requests that are lost go into `failed`, with the reason."""
        for request, i in views:
            if request in failed:
                continue
            try:
                self._encode_together([(request, i)])
            except Exception as error:
                logger.exception("a picture could not be encoded")
                failed[request] = f"a picture could not be encoded: {reason(error)}"

    def _encode_together(self, chosen: abc.Sequence[tuple[Request, int]]) -> None:
        """Encode views of requests whose tower is the same."""
        views, patches = [], []
        for request, i in chosen:
            assert request.patches is not None
            first = sum(view.patches for view in request.views[:i])
            views.append(request.views[i])
            patches.append(request.patches[first : first + views[-1].patches])
        features = self.runner.encode_views(
            np.concatenate(patches) if len(patches) > 1 else patches[0], views, chosen[0][0].vision_adapter
        )
        first, expected = 0, sum(view.visual_tokens for view in views)
        if len(features) != expected:
            raise RuntimeError(f"the tower gave {len(features)} features for views of {expected}")
        for (request, i), view in zip(chosen, views, strict=True):
            part = features[first : (first := first + view.visual_tokens)]
            # A view of its own memory: a slice would keep all views of the step alive.
            self.features.add(request.view_keys[i], self.runner.copy(part) if len(views) > 1 else part)
        self.metrics.encoded_views.inc(len(views))

    def _join(self, parts: abc.Sequence[Array]) -> Array:
        return self.runner.join(parts) if len(parts) > 1 else parts[0]

    def _decode(self, sequences: abc.Sequence[Sequence]) -> Array:
        """Return scores [B, V] after each sequence's newest token; the sequences are in the first slots."""
        if len(sequences) > 1:
            self.runner.prepare_batches()
        segments = [
            Segment(1, sequence.computed, slot, sequence.request.adapter) for slot, sequence in enumerate(sequences)
        ]
        batch = self.runner.batch(segments)
        ids = np.array([sequence.output_ids[-1] for sequence in sequences], np.int64)
        scores = self.runner.forward(self.runner.embed(ids, None), batch, self.cache, batch.lasts)
        for sequence in sequences:
            sequence.computed += 1
        return scores

    def _try_draft(self, sequence: Sequence, max_tokens: int) -> StepScores:
        """Read what `prompt_lookup` expects the only sequence to say, in one forward with its newest token."""
        assert sequence.lookup is not None
        with _timed("decode", [sequence.request]):
            scores, drafted = sequence.lookup.forward(self.runner, self.cache, max_tokens, sequence.request.adapter)
        return StepScores([sequence], scores, drafted)

    def _prefill(self, chunks: abc.Sequence[Chunk]) -> tuple[list[Sequence], Array]:
        """Read chunks of prompts; returns those whose last token is read, and their scores."""
        segments, parts = [], []
        for chunk in chunks:
            slot = chunk.sequence.slot
            assert slot is not None
            segments.append(Segment(chunk.length, chunk.start, slot, chunk.sequence.request.adapter))
            parts.append(self._embed(chunk))
        batch = self.runner.batch(segments)
        ended = [i for i, chunk in enumerate(chunks) if chunk.end == chunk.sequence.tokens]
        scores = self.runner.forward(self._join(parts), batch, self.cache, [batch.lasts[i] for i in ended])
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.computed += chunk.length
            if (digest := sequence.request.layout.cuts.get(sequence.computed)) is not None:
                assert sequence.slot is not None
                sequence.prefix = self.prefixes.store(digest, sequence.slot, sequence.prefix)
        self.metrics.prompt_tokens_computed.inc(sum(chunk.length for chunk in chunks))
        return [chunks[i].sequence for i in ended], scores

    def _embed(self, chunk: Chunk) -> Array:
        """Return the embeddings [T, D] of a chunk's tokens, features where its placeholders are."""
        sequence, request = chunk.sequence, chunk.sequence.request
        prompt = request.input_ids[chunk.start : chunk.end]
        x_TD = self.runner.embed(prompt, self._visual_tokens(chunk)) if len(prompt) else None
        # What was generated holds no placeholders, even where it spells them.
        answer = sequence.output_ids[
            max(0, chunk.start - request.prompt_tokens) : max(0, chunk.end - request.prompt_tokens)
        ]
        if not answer:
            assert x_TD is not None
            return x_TD
        more = self.runner.embed(np.array(answer, np.int64), None)
        return more if x_TD is None else self.runner.join([x_TD, more])

    def _visual_tokens(self, chunk: Chunk) -> Array | None:
        """Return the features [N, D] of a chunk's placeholders, in order; None where it has none."""
        request = chunk.sequence.request
        parts = []
        for i in request.layout.views_in(chunk.start, chunk.end):
            start = request.layout.starts[i]
            parts.append(self.features[request.view_keys[i]][max(0, chunk.start - start) : chunk.end - start])
        return self._join(parts) if parts else None


@contextmanager
def _timed(stage: str, requests: Iterable[Request]) -> Iterator[None]:
    """Count the seconds that this takes for the stage of each of these requests."""
    began, of = time.perf_counter(), dict.fromkeys(requests)
    yield
    spent = time.perf_counter() - began
    for request in of:
        request.timing[stage] += spent


def reason(error: Exception) -> str:
    """Say in one line, for a log or a user, what kind of failure it was, without insides of a library."""
    # PyTorch has a class of its own for memory of a GPU only, which is known by its name where PyTorch is not.
    is_gpu = type(error).__name__ == "OutOfMemoryError"
    is_memory = isinstance(error, MemoryError) or is_gpu or "can't allocate memory" in str(error)
    return "out of memory" if is_memory else type(error).__name__
