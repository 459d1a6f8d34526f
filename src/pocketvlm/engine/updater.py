"""What becomes of sequences that have scores: a token, an end, or a failure of their own.

Choices are drawn by their own parameters and grammars, beams by `beam_search`; a request that runs alone may draft
tokens (`prompt_lookup`).

Shapes:  B sequences · R rows of scores · V vocabulary · W words of a bit mask
"""

from __future__ import annotations

import time
from collections import abc, deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketvlm.engine.executor import StepScores
from pocketvlm.engine.metrics import Metrics
from pocketvlm.engine.request import FinishReason, Output, Request, Sequence
from pocketvlm.engine.sampling.beam_search import BeamSearch
from pocketvlm.engine.sampling.sampler import Sampled, Sampler, SamplingState
from pocketvlm.engine.scheduler import Scheduler
from pocketvlm.model.cache.memory import Array

NO_SCORES = (
    "the model's scores are not numbers: its weights may be damaged, or too large for its dtype. "
    "Get the checkpoint anew, or load it with dtype float32"
)


class Scored(NamedTuple):
    """Pairs a sequence with the row of the scores that it goes on from."""

    sequence: Sequence
    row: int


class Updater:
    """Takes answers further and ends them.

    Attributes:
        requests: by their ids, those that are not finished.
        closed: requests that have finished since somebody set it to 0.
    """

    def __init__(self, scheduler: Scheduler, metrics: Metrics, vocab_size: int) -> None:
        self.scheduler, self.metrics, self.vocab_size = scheduler, metrics, vocab_size
        self.pool = scheduler.pool
        self.sampler = Sampler(vocab_size)
        self.requests: dict[str, Request] = {}
        self.closed = 0

    def update(self, step: StepScores, outputs: deque[Output]) -> None:
        """Give every sequence that has scores a token, and every request that failed its end.

        Args:
            outputs: what is new goes here, one by one: what was said before a fault is not lost with it.
        """
        for request, error in step.failed.items():
            outputs += self.end_all(request, "error", error)
        if step.scores_RV is None:
            return
        if step.drafted is not None:
            self._follow_draft(step.sequences[0], step.drafted, step.scores_RV, outputs)
            return
        choices, beams = list[Scored](), dict[Request, list[Scored]]()
        for row, sequence in enumerate(step.sequences):
            request = sequence.request
            if sequence.finish_reason is not None:  # its request has just failed
                continue
            if request.width > 1:
                beams.setdefault(request, []).append(Scored(sequence, row))
                continue
            choices.append(Scored(sequence, row))
            if not sequence.output_ids and request.params.n > len(request.sequences):
                choices += [Scored(other, row) for other in self._branch_choices(request)]
        for sequence in step.sequences:
            self._begin_decoding(sequence)
        if choices:
            self._choose(choices, step.scores_RV, outputs)
        for request, scored in beams.items():
            outputs += self._search(request, scored, step.scores_RV)

    def _begin_decoding(self, sequence: Sequence) -> None:
        """Let a sequence whose prompt has been read join those that decode; its pictures are needed no more."""
        if sequence.slot is not None and sequence.slot >= self.pool.decoding:
            self.pool.promote(sequence)
            self.scheduler.unpin(sequence)

    def _branch_choices(self, request: Request) -> list[Sequence]:
        """Return the other answers to a prompt that has just been read."""
        others = [Sequence(request, index) for index in range(1, request.params.n)]
        request.sequences += others
        return others

    def _choose(self, scored: abc.Sequence[Scored], scores_RV: Array, outputs: deque[Output]) -> None:
        """Draw a token for each of these; failures are outputs too."""
        rows = [each.row for each in scored]
        chosen_BV = scores_RV if rows == list(range(len(scores_RV))) else scores_RV[rows]
        sequences = [each.sequence for each in scored]
        states, masks = [self._state(sequence) for sequence in sequences], self._masks(sequences)
        for sequence, sampled in zip(sequences, self.sampler(chosen_BV, states, masks), strict=True):
            outputs.append(self._take(sequence, sampled))

    def _state(self, sequence: Sequence) -> SamplingState:
        if sequence.sampling is None:
            request = sequence.request
            sequence.sampling = SamplingState(request.params, request.input_ids, request.stop_ids, sequence.index)
        return sequence.sampling

    def _masks(self, sequences: abc.Sequence[Sequence]) -> NDArray[np.int32] | None:
        """Return int32 [B, W], what each may say next; None where nobody is restricted."""
        if all(sequence.request.grammar is None for sequence in sequences):
            return None
        words = -(-self.vocab_size // 32)
        masks_BW = np.full((len(sequences), words), -1, np.int32)
        for sequence, mask_W in zip(sequences, masks_BW, strict=True):
            if sequence.request.grammar is None:
                continue
            if sequence.grammar is None:
                sequence.grammar = sequence.request.grammar.start()
            sequence.grammar.fill_mask(mask_W)
        return masks_BW

    def _take(self, sequence: Sequence, sampled: Sampled) -> Output:
        """Add one more token to an answer, or end it."""
        request, token = sequence.request, sampled.token
        if token < 0:
            return self.fail_sequence(sequence, NO_SCORES, erase=True)
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
            elif len(sequence.output_ids) >= self.pool.max_new_tokens(request):
                reason = "length"
        logprobs = ((sampled.logprob, sampled.top_logprobs),) if shown and sampled.logprob is not None else ()
        if reason is not None:
            self.end(sequence, reason)
        elif sequence.slot is None:
            self._find_slot(sequence)
        return Output(request, sequence.index, shown, logprobs, reason)

    def _find_slot(self, sequence: Sequence) -> None:
        """Let a further answer go on from a copy of the first one, or queue it until there is room."""
        first = next((s for s in sequence.request.sequences if s.slot is not None), None)
        if first is not None and first.computed == sequence.request.prompt_tokens:
            more = [*self.scheduler.promised(), self.pool.tokens_of_fork(first, sequence.tokens)]
            if self.pool.fits(more):
                self.pool.reserve(more)
                self.pool.fork(first, sequence)
                return
        self.scheduler.add(sequence)

    def _search(self, request: Request, scored: abc.Sequence[Scored], scores_RV: Array) -> list[Output]:
        """Take each beam of a request one token further, or give its answer."""
        if request.search is None:
            stop_ids, max_tokens = self._state(request.sequences[0]).stop_ids, self.pool.max_new_tokens(request)
            request.search = BeamSearch(request.params, request.input_ids, stop_ids, max_tokens, self.vocab_size)
        search = request.search
        rows = dict(scored)
        parents = search.advance(scores_RV[[rows[beam] for beam in request.sequences]])
        if parents is not None and not search.done:
            self._branch_beams(request, parents)
            return []
        self._drop_beams(request, erase=parents is None)
        if parents is None:
            return [self.fail_sequence(request.sequences[0], NO_SCORES, erase=True)]
        request.sequences[0].output_ids = list(search.best.ids)
        self.metrics.generation_tokens.inc(len(search.best.ids))
        request.score = search.best.score
        self.end(request.sequences[0], search.best.finish_reason)
        return [Output(request, 0, search.best.ids, (), search.best.finish_reason)]

    def _branch_beams(self, request: Request, parents: abc.Sequence[int]) -> None:
        """Give new beams their slots: the first continuation of a beam stays in its slot, others go where a beam ended,
        then to new slots. Beams share their prompt, so over an old beam only what is behind it is copied."""
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
                self.pool.copy(source, target, start=request.prompt_tokens)
            else:
                target = Sequence(request, 0)
                self.pool.fork(source, target)
            new.append(target)
        for beam in unused:
            self.pool.remove(beam)
        request.sequences = new
        for i, (beam, found) in enumerate(zip(new, request.search.beams, strict=True)):
            beam.index, beam.output_ids = i, list(found.ids)

    def _follow_draft(
        self, sequence: Sequence, drafted: abc.Sequence[int], scores_RV: Array, outputs: deque[Output]
    ) -> None:
        """Take the next token of the only sequence, and more as long as they are those that were drafted."""
        lookup, cache = sequence.lookup, self.pool.cache
        assert lookup is not None
        for row, expected in enumerate([*drafted, None]):
            self._choose([Scored(sequence, row)], scores_RV, outputs)
            if sequence.finish_reason is not None or outputs[-1].tokens != (expected,):
                break
        if sequence.slot is not None:
            lookup.settle(cache)
            sequence.computed = cache.lengths[sequence.slot]

    def end(self, sequence: Sequence, reason: FinishReason, *, erase: bool = False) -> None:
        """End an answer that is complete or given up; a request whose answers all are is forgotten."""
        request = sequence.request
        if sequence.finish_reason is None:
            sequence.finish_reason = reason
            self.scheduler.forget(sequence, erase=erase)
            # A request and its sequences name each other: whatever waits for the collector should be small.
            sequence.prefix = sequence.lookup = sequence.sampling = sequence.grammar = None
            self.metrics.finished(reason)
        if request.is_finished and self.requests.pop(request.request_id, None) is not None:
            request.patches = request.search = None
            self.closed += 1
            self.metrics.closed(request)

    def fail_sequence(self, sequence: Sequence, error: str, *, erase: bool = False) -> Output:
        sequence.error = error
        self.end(sequence, "error", erase=erase)
        return Output(sequence.request, sequence.index, finish_reason="error", error=error)

    def end_all(self, request: Request, reason: FinishReason, error: str | None = None) -> list[Output]:
        """End all answers of a request that have not ended; with beams that is one."""
        if request.width > 1:
            self._drop_beams(request)
        outputs = []
        for sequence in request.sequences:
            if sequence.finish_reason is None:
                sequence.error = error
                outputs.append(Output(request, sequence.index, finish_reason=reason, error=error))
            self.end(sequence, reason)
        return outputs

    def _drop_beams(self, request: Request, *, erase: bool = False) -> None:
        """Leave one of the beams, which stands for the answer from now on."""
        for beam in request.sequences[1:]:
            self.scheduler.forget(beam, erase=erase)
        request.sequences = request.sequences[:1]
