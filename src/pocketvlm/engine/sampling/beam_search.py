"""Beam search of one answer: scores in, the beams to go on with out. It knows no model and no cache.

The search, its scores and when it ends are those of `generate(num_beams=…, do_sample=False)` of transformers 5.23.
Shapes:  K running beams · V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pocketvlm.engine.sampling.draw import Floats, best_first
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.model.cache.memory import Array


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
        self,
        params: SamplingParams,
        input_ids: NDArray[np.int64],
        stop_ids: frozenset[int],
        max_tokens: int,
        vocab_size: int,
    ) -> None:
        self.params, self.stop_ids, self.max_tokens = params, stop_ids, max_tokens
        self.beams, self.length, self.done = [Beam()], 0, False
        self._whole: list[Hypothesis] = []  # best first, at most num_beams
        self._seen_KV: NDArray[np.bool_] | None = None
        if params.repetition_penalty != 1.0:
            self._seen_KV = np.zeros((1, vocab_size), np.bool_)
            self._seen_KV[:, input_ids] = True

    @property
    def best(self) -> Hypothesis:
        """The answer, once the search is `done`."""
        return self._whole[0]

    def advance(self, logits_KV: Array) -> list[int] | None:
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

    def _candidates(self, logits_KV: Array) -> list[tuple[int, int, float]]:
        """Return the best continuations as (beam, token, sum of log probabilities), best first.

        So many that, whichever of them end an answer, `num_beams` others are left to run on.
        """
        count = self.params.num_beams * (1 + len(self.stop_ids))
        so_far = [beam.log_probability for beam in self.beams]
        if isinstance(logits_KV, np.ndarray):
            found, totals = best_continuations(logits_KV, so_far, self._seen_KV, self.params.repetition_penalty, count)
        else:
            from pocketvlm.engine.sampling import device_sampler  # brings PyTorch, as the tensors did

            search = device_sampler.best_continuations
            found, totals = search(logits_KV, so_far, self._seen_KV, self.params.repetition_penalty, count)
        vocab_size = logits_KV.shape[-1]
        return [(*divmod(i, vocab_size), total) for i, total in zip(found, totals, strict=True)]

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


def best_continuations(
    logits_KV: Floats, so_far: Sequence[float], seen_KV: NDArray[np.bool_] | None, penalty: float, count: int
) -> tuple[list[int], list[float]]:
    """Return the best `count` of all beams' next tokens, best first: their places among K * V, and for each the sum of
    log probabilities; one of NaN where scores hold NaN or the best of a beam is infinite.

    Args:
        so_far: the sum of each beam.
        seen_KV: tokens whose log probabilities are multiplied by `penalty`.
    """
    with np.errstate(invalid="ignore"):
        scores_KV = logits_KV - logits_KV.max(-1, keepdims=True)
        scores_KV -= np.log(np.exp(scores_KV).sum(-1, dtype=np.float64, keepdims=True)).astype(np.float32)
    if seen_KV is not None:
        rows, tokens = seen_KV.nonzero()
        seen, factor = scores_KV[rows, tokens], np.float32(penalty)
        scores_KV[rows, tokens] = np.where(seen > 0, seen / factor, seen * factor)
    scores_KV += np.array(so_far, np.float32)[:, None]
    totals = scores_KV.reshape(-1)
    if np.isnan(totals).any():
        return [0], [math.nan]
    best = best_first(totals, min(count, len(totals)))
    return best.tolist(), totals[best].tolist()
