"""What becomes of sequences that have scores: a token, an end, or a failure of their own.

Choices are drawn by their own parameters and grammars, beams by `beam_search`; a request that runs alone may draft
tokens (`prompt_lookup`).

Shapes:  B sequences that are scored · V vocabulary · W words of a bit mask
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence as Series
from dataclasses import dataclass

import torch
from torch import Tensor

from pocketvlm.engine.caches.pool import CachePool
from pocketvlm.engine.metrics import Metrics
from pocketvlm.engine.request import FinishReason, Output, Request, Sequence
from pocketvlm.engine.runners.base import Runner
from pocketvlm.engine.sampling.beam_search import BeamSearch
from pocketvlm.engine.sampling.prompt_lookup import PromptLookup
from pocketvlm.engine.sampling.sampler import Sampled, Sampler, SamplingState
from pocketvlm.engine.scheduler import Scheduler


@dataclass(frozen=True)
class Scored:
    """What a forward says of one sequence: row `row` of its scores."""

    sequence: Sequence
    row: int


class Answering:
    """Takes answers further and ends them.

    Attributes:
        requests: by their ids, those that are not finished.
        closed: requests that have finished since somebody set it to 0.
    """

    def __init__(self, scheduler: Scheduler, metrics: Metrics, vocab_size: int) -> None:
        self.scheduler, self.metrics, self.vocab_size = scheduler, metrics, vocab_size
        self.sampler = Sampler(vocab_size)
        self.requests: dict[str, Request] = {}
        self.closed = 0

    @property
    def pool(self) -> CachePool:
        return self.scheduler.pool

    def update(self, scored: Series[Scored], scores: Series[Tensor]) -> Iterator[Output]:
        """A token for every sequence that has scores."""
        if not scored:
            return
        scores_BV = torch.cat(list(scores)) if len(scores) > 1 else scores[0]
        plain = list[Scored]()
        beams: dict[Request, list[Scored]] = {}
        for each in scored:
            request = each.sequence.request
            if request.width > 1:
                beams.setdefault(request, []).append(each)
                continue
            plain.append(each)
            if not each.sequence.output_ids and request.params.n > len(request.sequences):
                plain += [Scored(sequence, each.row) for sequence in self._branch_choices(each.sequence)]
        for each in scored:
            self._begin_decoding(each.sequence)
        if plain:
            yield from self._choose(plain, scores_BV)
        for request, rows in beams.items():
            yield from self._search(request, rows, scores_BV)

    def _begin_decoding(self, sequence: Sequence) -> None:
        """The prompt is read: into the rows that decode, and its pictures are needed no more."""
        if sequence.row is not None and sequence.row >= self.pool.decoding:
            self.pool.promote(sequence)
            self.scheduler.features.unpin(self.scheduler.pinned.pop(sequence, ()))

    def _branch_choices(self, first: Sequence) -> list[Sequence]:
        """The other answers to a prompt that has just been read."""
        request = first.request
        others = [Sequence(request, index) for index in range(1, request.params.n)]
        request.sequences += others
        return others

    def _choose(self, scored: Series[Scored], scores_BV: Tensor) -> Iterator[Output]:
        """Draw a token for each; failures are outputs too."""
        rows = [each.row for each in scored]
        chosen = scores_BV if rows == list(range(len(scores_BV))) else scores_BV[rows]
        states = [self._state(each.sequence) for each in scored]
        for each, sampled in zip(scored, self.sampler(chosen, states, self._masks(scored)), strict=True):
            yield self._take(each.sequence, sampled)

    def _state(self, sequence: Sequence) -> SamplingState:
        if sequence.sampling is None:
            request = sequence.request
            sequence.sampling = SamplingState(request.params, request.input_ids, request.stop_ids, sequence.index)
        return sequence.sampling

    def _masks(self, scored: Series[Scored]) -> Tensor | None:
        """int32 [B, W] of what each may say next; None where nobody is restricted."""
        if all(each.sequence.request.grammar is None for each in scored):
            return None
        words = -(-self.vocab_size // 32)
        masks_BW = torch.full((len(scored), words), -1, dtype=torch.int32)
        for each, mask_W in zip(scored, masks_BW, strict=True):
            sequence = each.sequence
            if sequence.request.grammar is None:
                continue
            if sequence.grammar is None:
                sequence.grammar = sequence.request.grammar.start()
            sequence.grammar.fill_mask(mask_W)
        return masks_BW

    def _take(self, sequence: Sequence, sampled: Sampled) -> Output:
        """One more token of an answer, or its end."""
        request, token = sequence.request, sampled.token
        if token < 0:
            return self.fail_sequence(sequence, "the model gave no usable scores", erase=True)
        if sequence.grammar is not None and not sequence.grammar.accept(token):
            return self.fail_sequence(sequence, "the answer left its grammar")
        shown: tuple[int, ...] = (token,)
        reason: FinishReason | None = None
        if token in self._state(sequence).stop_ids:
            shown, reason = (), "stop"
        else:
            sequence.output_ids.append(token)
            self.metrics.token(sequence, time.monotonic())
            self._state(sequence).append(token)
            if sequence.lookup is not None:
                sequence.lookup.add(token)
            if sequence.grammar is not None and sequence.grammar.is_finished:
                reason = "stop"  # nothing but a stop id could follow, which min_tokens and ignore_eos might even forbid
            elif len(sequence.output_ids) >= self._most_tokens(request):
                reason = "length"
        logprobs = ((sampled.logprob, sampled.top_logprobs),) if shown and sampled.logprob is not None else ()
        if reason is not None:
            self.end(sequence, reason)
        elif sequence.row is None:
            self._find_row(sequence)
        return Output(request, sequence.index, shown, logprobs, reason)

    def _find_row(self, sequence: Sequence) -> None:
        """A further answer to a prompt goes on in a copy of the first one's row, or is computed when there is room."""
        first = next((s for s in sequence.request.sequences if s.row is not None), None)
        if first is not None and first.computed == sequence.request.prompt_tokens:
            more = [*self.scheduler.promised(), self.pool.forked(first, sequence.tokens)]
            if self.pool.fits(more):
                self.pool.reserve(more)
                self.pool.fork(first, sequence)
                return
        self.scheduler.add(sequence)

    def _most_tokens(self, request: Request) -> int:
        return min(request.params.max_tokens, self.pool.room(request.width) - request.prompt_tokens)

    def _search(self, request: Request, scored: Series[Scored], scores_BV: Tensor) -> list[Output]:
        """One token for each beam of a request, or its answer."""
        if request.search is None:
            most, vocabulary = self._most_tokens(request), self.vocab_size
            request.search = BeamSearch(
                request.params, request.input_ids, self._state(request.sequences[0]).stop_ids, most, vocabulary
            )
        search = request.search
        row_of = {each.sequence: each.row for each in scored}
        parents = search.advance(scores_BV[[row_of[beam] for beam in request.sequences]])
        if not search.done:
            self._branch_beams(request, parents)
            return []
        for beam in request.sequences[1:]:
            self.scheduler.forget(beam)
        request.sequences = request.sequences[:1]
        request.sequences[0].output_ids = list(search.best.ids)
        request.score = search.best.score
        self.end(request.sequences[0], search.best.finish_reason)
        return [Output(request, 0, search.best.ids, (), search.best.finish_reason)]

    def _branch_beams(self, request: Request, parents: Series[int]) -> None:
        """Give new beams their rows: the first continuation of a beam stays in its row, others go where a beam ended,
        then to new rows. Beams share their prompt, so over an old beam only what is behind it is copied."""
        assert request.search is not None
        old, stayed, new = request.sequences, set[int](), list[Sequence]()
        unused = [beam for i, beam in enumerate(old) if i not in parents]
        for parent in parents:
            source = old[parent]
            if parent not in stayed:
                stayed.add(parent)
                new.append(source)
                continue
            if unused:
                target = unused.pop()
                assert source.row is not None
                assert target.row is not None
                self.pool.copy(source.row, target.row, start=request.prompt_tokens)
                target.computed = source.computed
            else:
                target = Sequence(request, 0)
                self.pool.fork(source, target)
            new.append(target)
        for beam in unused:
            self.pool.remove(beam)
        request.sequences = new
        for i, (beam, found) in enumerate(zip(new, request.search.beams, strict=True)):
            beam.index, beam.output_ids = i, list(found.ids)

    def lone_lookup(self) -> Sequence | None:
        """The only sequence there is, where it drafts tokens from what was there before."""
        pool = self.pool
        if len(pool.rows) != 1 or pool.decoding != 1:
            return None
        sequence = pool.rows[0]
        most = sequence.request.params.prompt_lookup_num_tokens
        if sequence.lookup is None:
            if not most or self.scheduler.waiting:
                return None
            sequence.lookup = PromptLookup([*sequence.request.input_ids.tolist(), *sequence.output_ids], most)
            sequence.lookup.pending.append(sequence.output_ids[-1])
        # Others wait: what a failed draft left behind goes through the decoder first, and then there is company.
        if self.scheduler.waiting and sequence.pending == 1:
            sequence.lookup = None
            return None
        return sequence

    def look_ahead(self, sequence: Sequence, runner: Runner) -> list[Output]:
        """One step of the only sequence: the next token, and more as long as they were drafted."""
        lookup, request, began = sequence.lookup, sequence.request, time.perf_counter()
        assert lookup is not None
        most = self._most_tokens(request) - len(sequence.output_ids) - 1
        longest = min(sequence.tokens + most, sequence.tokens + lookup.most)
        self.pool.lengthen(longest)
        scores, drafted = lookup.forward(runner, self.pool.cache, 0 if self.scheduler.waiting else most)
        request.timing["decode"] += time.perf_counter() - began
        outputs = list[Output]()
        for row, expected in enumerate([*drafted, None]):
            outputs += self._choose([Scored(sequence, 0)], scores[row : row + 1])
            # Its reader may have ended it at a stop string.
            if sequence.finish_reason is not None or outputs[-1].tokens != (expected,):
                break
        if sequence.row is not None:
            lookup.settle(self.pool.cache)
            sequence.computed = self.pool.cache.lengths[sequence.row]
        return outputs

    def end(self, sequence: Sequence, reason: FinishReason, *, erase: bool = False) -> None:
        """An answer is complete or given up; a request whose answers all are is forgotten."""
        if sequence.finish_reason is not None:
            return
        sequence.finish_reason = reason
        self.scheduler.forget(sequence, erase=erase)
        # A request and its sequences name each other: whatever waits for the collector should be small.
        sequence.prefix = sequence.lookup = sequence.sampling = sequence.grammar = None
        request = sequence.request
        self.metrics.finished(reason)
        if request.is_finished:
            self.requests.pop(request.request_id, None)
            request.patches = request.search = None
            self.closed += 1
            self.metrics.closed(request)

    def fail_sequence(self, sequence: Sequence, error: str, *, erase: bool = False) -> Output:
        sequence.error = error
        self.end(sequence, "error", erase=erase)
        return Output(sequence.request, sequence.index, finish_reason="error", error=error)

    def fail(self, request: Request, error: str) -> list[Output]:
        return [self.fail_sequence(s, error) for s in list(request.sequences) if s.finish_reason is None]
