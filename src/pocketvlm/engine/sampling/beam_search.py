"""Beam search of one answer: scores in, the beams to go on with out. It knows no model and no cache.

The search, its scores and when it ends are those of `generate(num_beams=…, do_sample=False)` of transformers 5.23.
Shapes:  K running beams · V vocabulary
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.engine.sampling.sampler import penalise_repetition, seen_tokens


@dataclass(frozen=True)
class Beam:
    """A prefix of an answer, and the sum of its (penalised) log probabilities."""

    ids: tuple[int, ...] = ()
    log_probability: float = 0.0


@dataclass(frozen=True)
class Hypothesis:
    """A whole answer.

    Attributes:
        ids: its tokens; a stop id that ended it is not among them.
        score: sum of log probabilities, that of the stop id included, over the length to the power of length_penalty.
        finish_reason: "stop" or, at `max_tokens`, "length".
    """

    ids: tuple[int, ...]
    score: float
    finish_reason: Literal["stop", "length"]


class BeamSearch:
    """Searches with the beams of one request.

    A repetition penalty multiplies log probabilities, not logits, and the result is not normalised again, as in
    transformers; so with a penalty, beams may choose what greedy decoding would not.

    Args:
        params: the request's options.
        input_ids: int64 [S], the prompt, for the repetition penalty.
        stop_ids: tokens that end an answer.
        max_tokens: tokens that an answer may have, a stop id counted.
        vocab_size: V.

    Attributes:
        beams: what runs, best first; one that is empty before the first `advance`.
        length: tokens of each of them.
        done: whether the search is over.
    """

    def __init__(
        self, params: SamplingParams, input_ids: Tensor, stop_ids: frozenset[int], max_tokens: int, vocab_size: int
    ) -> None:
        self.params, self.stop_ids, self.max_tokens = params, stop_ids, max_tokens
        self.beams, self.length, self.done = [Beam()], 0, False
        self._whole: list[Hypothesis] = []  # best first, at most num_beams
        self._seen_KV = seen_tokens([input_ids], vocab_size) if params.repetition_penalty != 1.0 else None

    @property
    def best(self) -> Hypothesis:
        """The answer, once the search is `done`."""
        return self._whole[0]

    def advance(self, logits_KV: Tensor) -> list[int] | None:
        """Go one token further.

        Args:
            logits_KV: scores of the next token, a row for each of `beams`.

        Returns:
            for each of the new `beams`, the index of the one it continues; None, and nothing has changed, where scores
            hold NaN or the best of a beam is infinite.
        """
        width, candidates = self.params.num_beams, self._candidates(logits_KV)
        if any(math.isnan(total) for *_, total in candidates):
            return None
        self.length += 1
        is_last = self.length == self.max_tokens
        beams, parents = list[Beam](), list[int]()
        for rank, (parent, token, total) in enumerate(candidates):
            ids = self.beams[parent].ids
            if is_last or token in self.stop_ids:
                # Answers count only where running on would have: what ranks lower is there to fill the beams.
                if rank < width:
                    self._keep(ids, token, total / self.length**self.params.length_penalty)
            elif len(beams) < width:
                beams.append(Beam((*ids, token), total))
                parents.append(parent)
        if self._seen_KV is not None:
            self._seen_KV = self._seen_KV[parents]
            self._seen_KV[range(len(beams)), [beam.ids[-1] for beam in beams]] = True
        self.beams = beams
        self.done = not beams or not self._can_improve()
        return parents

    def _candidates(self, logits_KV: Tensor) -> list[tuple[int, int, float]]:
        """Return the best continuations as (beam, token, sum of log probabilities), best first.

        So many that, whichever of them end an answer, `num_beams` others are left to run on.
        """
        scores_KV = logits_KV.float().log_softmax(-1)
        if self._seen_KV is not None:
            self._seen_KV = self._seen_KV.to(scores_KV.device)
            penalty_K = scores_KV.new_full((len(scores_KV),), self.params.repetition_penalty)
            scores_KV = penalise_repetition(scores_KV, self._seen_KV, penalty_K)
        so_far = torch.tensor([beam.log_probability for beam in self.beams], device=scores_KV.device)
        totals = (scores_KV + so_far.unsqueeze(1)).flatten()
        best = totals.topk(min(self.params.num_beams * (1 + len(self.stop_ids)), len(totals)))
        vocab_size = scores_KV.shape[-1]
        pairs = (divmod(i, vocab_size) for i in best.indices.tolist())
        return [(*pair, total) for pair, total in zip(pairs, best.values.tolist(), strict=True)]

    def _keep(self, ids: tuple[int, ...], token: int, score: float) -> None:
        is_stop = token in self.stop_ids
        self._whole.append(Hypothesis(ids if is_stop else (*ids, token), score, "stop" if is_stop else "length"))
        self._whole.sort(key=lambda hypothesis: -hypothesis.score)
        del self._whole[self.params.num_beams :]

    def _can_improve(self) -> bool:
        """Say whether a running beam may still beat a whole answer, judged by its score at the present length."""
        if len(self._whole) < self.params.num_beams:
            return True
        if self.params.early_stopping:
            return False
        return self.beams[0].log_probability / self.length**self.params.length_penalty > self._whole[-1].score
