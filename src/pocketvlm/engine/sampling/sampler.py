"""Scores of the next token in, a chosen token for each sequence out.

Order of the steps, as in vLLM: mask, min_tokens and logit_bias; repetition, frequency and presence penalty;
temperature, top-k, top-p, min-p, `draw`. Log probabilities are those before all of them. A sequence's tokens
depend on its own scores, parameters and seed only, never on what shares its batch. Scores of a CPU are NumPy's; those
of another device are tensors, and stay there (`device_sampler`).
Shapes:  B sequences · E those whose scores are changed · L those with log probabilities · V vocabulary
         W = ceil(V / 32) words of a mask
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pocketvlm.engine.sampling.draw import NO_TOKEN, Floats, best_first, draw, weights_buffer
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.model.cache.memory import Array

Ids = npt.NDArray[np.int64]
Words = npt.NDArray[np.int32]


def best_tokens(scores_BV: Array) -> list[int]:
    """Return the token of highest score in each row, the first of equals."""
    best: list[int] = scores_BV.argmax(-1).tolist()
    return best


class Sampled(NamedTuple):
    """What was chosen for one sequence.

    Attributes:
        token: -1 when there is none to choose: the logits hold NaN, the best is infinite, or nothing is allowed.
        logprob: natural log of the token's probability as the model gives it; None unless asked for.
        top_logprobs: (token, logprob) of the most probable tokens, best first, the chosen one where it is among them.
    """

    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class TokenCounts:
    """Counts how often each token of one sequence stands in its answer; those of its prompt are listed, with 0.

    Attributes:
        ids: int64 [N], different tokens.
        counts: float32 [N].
    """

    def __init__(self, prompt: Ids) -> None:
        known = np.unique(prompt)
        self._size = len(known)
        self._ids = np.concatenate([known, np.zeros(64, np.int64)])
        self._counts = np.zeros(len(self._ids), np.float32)
        self._index = {token: i for i, token in enumerate(known.tolist())}

    def add(self, token: int) -> None:
        i = self._index.setdefault(token, self._size)
        if i == self._size:
            if i == len(self._ids):
                self._ids, self._counts = np.resize(self._ids, 2 * i), np.resize(self._counts, 2 * i)
            self._ids[i], self._counts[i] = token, 0
            self._size += 1
        self._counts[i] += 1

    @property
    def ids(self) -> Ids:
        return self._ids[: self._size]

    @property
    def counts(self) -> Floats:
        return self._counts[: self._size]


class SamplingState:
    """Holds what choosing the tokens of one sequence needs to know.

    Args:
        prompt_ids: int64 [S]; read only for a repetition penalty.
        stop_ids: the checkpoint's tokens that end an answer.
        index: which of the request's `n` answers this is; each draws other numbers from the one seed.

    Attributes:
        stop_ids: tokens that end this answer, after `ignore_eos` and `stop_token_ids`.
        output_ids: tokens chosen so far.
        counts: None without penalties.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Ids, stop_ids: frozenset[int], index: int = 0) -> None:
        self.params, self.index = params, index
        self.stop_ids = (frozenset() if params.ignore_eos else stop_ids) | frozenset(params.stop_token_ids)
        self.output_ids: list[int] = []
        seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed
        self._key = hashlib.blake2b(f"{seed % 2**64} {index}".encode(), digest_size=32).digest()
        # As in vLLM, these wait for min_tokens even where ignore_eos makes nothing of them.
        self._early_ids = tuple(sorted(self.stop_ids | stop_ids)) if params.min_tokens else ()
        self.bias = dict(params.logit_bias or ())
        repeats = params.repetition_penalty != 1
        self.counts: TokenCounts | None = None
        if repeats or params.frequency_penalty or params.presence_penalty:
            self.counts = TokenCounts(prompt_ids if repeats else np.empty(0, np.int64))

    def append(self, token: int) -> None:
        """Go on after this token."""
        self.output_ids.append(token)
        if self.counts is not None:
            self.counts.add(token)

    @property
    def forbidden(self) -> tuple[int, ...]:
        """The tokens that must not come next, by `min_tokens`."""
        return self._early_ids if len(self.output_ids) < self.params.min_tokens else ()

    @property
    def changes_scores(self) -> bool:
        return bool(self.counts is not None or self.bias or self.forbidden)

    def uniform(self) -> float:
        """The random number in [0, 1) of this step: a function of seed, index and step, so it survives pre-emption."""
        step = len(self.output_ids).to_bytes(8, "little")
        drawn = hashlib.blake2b(step, key=self._key, digest_size=8).digest()
        return float((int.from_bytes(drawn, "little") >> 11) * 2.0**-53)


class Sampler:
    """Chooses tokens for any mix of sequences; for one thread at a time.

    Args:
        vocab_size: V.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._scores_1V, self._weights_P = np.empty((1, vocab_size), np.float32), weights_buffer(vocab_size)
        self._limits = byte_limits()
        self._on_device: Any = None

    def __call__(
        self, logits_BV: Array, states: Sequence[SamplingState], masks_BW: Words | None = None
    ) -> list[Sampled]:
        """Choose the next token of each sequence. The states are left as they are.

        Args:
            logits_BV: float32 of NumPy, or a tensor of any float type on any device; not changed.
            states: one a row.
            masks_BW: bit t % 32 of word t // 32 is set where token t is allowed, so a row of -1 allows all.
        """
        if not isinstance(logits_BV, np.ndarray):
            return self._choose_on_device(logits_BV, states, masks_BW)
        changed = frozenset(changed_rows(states, masks_BW))
        chosen = [Sampled(NO_TOKEN)] * len(states)
        # Row by row in the same memory, since fresh megabytes for all rows cost more than what is done in them.
        for b, (logits_V, state) in enumerate(zip(logits_BV, states, strict=True)):
            scores_V = logits_V
            if b in changed:
                if not np.isfinite(logits_V.max()):
                    continue  # which a mask might hide
                self._scores_1V[0] = logits_V
                self._change(self._scores_1V, [state], None if masks_BW is None else masks_BW[b : b + 1])
                scores_V = self._scores_1V[0]
            token = self._choose(scores_V, state)
            if token != NO_TOKEN:
                count = state.params.logprobs
                chosen[b] = Sampled(token) if count is None else _with_logprobs(logits_V, token, count)
        return chosen

    def _choose(self, scores_V: Floats, state: SamplingState) -> int:
        if state.params.temperature > 0:
            return draw(scores_V, state.params, state.uniform(), self._weights_P)
        best = int(scores_V.argmax())
        return best if np.isfinite(scores_V[best]) else NO_TOKEN

    def _choose_on_device(
        self, logits_BV: Array, states: Sequence[SamplingState], masks_BW: Words | None
    ) -> list[Sampled]:
        if self._on_device is None:
            from pocketvlm.engine.sampling.device_sampler import DeviceSampler  # brings PyTorch, as the tensors did

            self._on_device = DeviceSampler(self.vocab_size)
        found: list[Sampled] = self._on_device(logits_BV, states, masks_BW)
        return found

    def _change(self, scores_EV: Floats, states: Sequence[SamplingState], masks_EW: Words | None) -> None:
        """Apply masks, min_tokens, logit_bias and the penalties, in place."""
        if masks_EW is not None:
            # Infinities by table and a minimum, since filling where a mask says so takes ten times as long.
            limits_EV = self._limits[masks_EW.view(np.uint8)].reshape(len(masks_EW), -1)
            np.minimum(scores_EV, limits_EV[:, : self.vocab_size], out=scores_EV)
        penalise(scores_EV, states, np.asarray, np.where)


def changed_rows(states: Sequence[SamplingState], masks_BW: Words | None) -> list[int]:
    """The rows whose scores masks, min_tokens, bias or penalties change."""
    is_masked = [False] * len(states) if masks_BW is None else (masks_BW != -1).any(-1).tolist()
    return [b for b, state in enumerate(states) if is_masked[b] or state.changes_scores]


def byte_limits() -> Floats:
    """[256, 8]: for each byte of a mask, what the scores of its eight tokens may be at most."""
    is_set = np.arange(256)[:, None] >> np.arange(8) & 1
    return np.where(is_set == 1, np.float32(np.inf), np.float32(-np.inf))


def penalise(
    scores_EV: Array,
    states: Sequence[SamplingState],
    put: Callable[[npt.NDArray[Any]], Array],
    where: Callable[..., Array],
) -> None:
    """Apply min_tokens, logit_bias and the penalties, in place and to the few tokens that they concern only.

    Positive scores are divided by the repetition penalty and negative ones multiplied, as in transformers and vLLM
    (Keskar et al., arXiv 1909.05858).

    Args:
        put: brings numbers to where the scores are.
        where: of the scores' library.
    """
    vocab_size = scores_EV.shape[1]

    def entries(ids: Sequence[npt.ArrayLike]) -> tuple[Array, Array]:
        """Return the rows and tokens of each row's ids."""
        rows = np.repeat(np.arange(len(ids)), [np.size(own) for own in ids])
        return put(rows), put(np.concatenate([np.asarray(own, np.int64) for own in ids]))

    if any(state.forbidden for state in states):
        scores_EV[entries([[t for t in state.forbidden if t < vocab_size] for state in states])] = -np.inf
    if any(state.bias for state in states):
        values = np.array([v for state in states for v in state.bias.values()], np.float32)
        scores_EV[entries([list(state.bias) for state in states])] += put(values)
    if any(state.counts for state in states):
        none = np.empty(0)
        at = entries([none if state.counts is None else state.counts.ids for state in states])
        counts = np.concatenate([none if state.counts is None else state.counts.counts for state in states])
        times = put(counts.astype(np.float32))
        repetition, frequency, presence = (
            put(np.array([getattr(state.params, f"{name}_penalty") for state in states], np.float32))[at[0]]
            for name in ("repetition", "frequency", "presence")
        )
        scores = scores_EV[at]
        repeated = where(scores > 0, scores / repetition, scores * repetition)
        scores_EV[at] = repeated - frequency * times - presence * (times > 0)


def _with_logprobs(logits_V: Floats, token: int, count: int) -> Sampled:
    """The chosen token with the log probabilities that the raw logits give, of its own and of the `count` best."""
    best = logits_V.max()
    total = float(best) + float(np.log(np.exp(logits_V - best).sum(dtype=np.float64)))
    top = best_first(logits_V, count).tolist() if count else []
    own, *others = (float(logits_V[t]) - total for t in (token, *top))
    return Sampled(token, own, tuple(zip(top, others, strict=True)))
