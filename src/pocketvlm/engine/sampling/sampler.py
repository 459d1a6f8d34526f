"""Scores of the next token in, a chosen token for each sequence out.

Order of the steps, as in vLLM: mask, min_tokens and logit_bias; repetition, frequency and presence penalty;
temperature, top-k, top-p, min-p, `draw`. Log probabilities are those before all of them. A sequence's tokens
depend on its own scores, parameters and seed only, never on what shares its batch.
Shapes:  B sequences · E those whose scores are changed · L those with log probabilities · V vocabulary
         W = ceil(V / 32) words of a mask
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pocketvlm.engine.sampling.draw import NO_TOKEN, Floats, best_first, draw, draw_batch, weights_buffer
from pocketvlm.engine.sampling.params import SamplingParams


def seen_tokens(prompts: Sequence[Tensor], vocab_size: int) -> Tensor:
    """bool [B, V]: which tokens each prompt (ids [S]) holds."""
    seen_BV = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
    for row, prompt in zip(seen_BV, prompts, strict=True):
        row[prompt.cpu()] = True
    return seen_BV


def penalise_repetition(scores_BV: Tensor, seen_BV: Tensor, penalty_B: Tensor) -> Tensor:
    """Return a copy in which seen tokens have worse scores (Keskar et al., arXiv 1909.05858).

    Positive scores are divided by the penalty and negative ones multiplied, as in transformers and vLLM.
    """
    # Only the seen: they are hundreds of 248,094, and products over all of them take ten times as long.
    rows, tokens = seen_BV.nonzero(as_tuple=True)
    scores_BV = scores_BV.clone()
    scores_BV[rows, tokens] = _penalised(scores_BV[rows, tokens], penalty_B[rows])
    return scores_BV


def _penalised(scores: Tensor, penalty: Tensor) -> Tensor:
    return torch.where(scores > 0, scores / penalty, scores * penalty)


def best_tokens(scores_BV: Tensor) -> list[int]:
    """Return the token of highest score in each row, the first of equals."""
    if scores_BV.device.type == "cpu" and scores_BV.dtype == torch.float32:
        best: list[int] = scores_BV.numpy().argmax(-1).tolist()  # twelve times as fast as PyTorch's
        return best
    return scores_BV.argmax(-1).tolist()


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

    def __init__(self, prompt: npt.NDArray[np.int64]) -> None:
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
    def ids(self) -> npt.NDArray[np.int64]:
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

    def __init__(self, params: SamplingParams, prompt_ids: Tensor, stop_ids: frozenset[int], index: int = 0) -> None:
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
            self.counts = TokenCounts(prompt_ids.cpu().numpy() if repeats else np.empty(0, np.int64))

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
        self._scores_1V, self._weights_P = torch.empty(1, vocab_size), weights_buffer(vocab_size)
        is_set = torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1
        self._limits = torch.where(is_set == 1, torch.inf, -torch.inf)  # [256, 8]: of the tokens of each byte of a mask

    def __call__(
        self, logits_BV: Tensor, states: Sequence[SamplingState], masks_BW: Tensor | None = None
    ) -> list[Sampled]:
        """Choose the next token of each sequence. The states are left as they are.

        Args:
            logits_BV: of any float type, on any device; not changed.
            states: one a row.
            masks_BW: int32; bit t % 32 of word t // 32 is set where token t is allowed, so a row of -1 allows all.
        """
        is_masked = [False] * len(states) if masks_BW is None else (masks_BW != -1).any(-1).tolist()
        changed = [b for b, state in enumerate(states) if is_masked[b] or state.changes_scores]
        is_on_cpu = logits_BV.device.type == "cpu"
        choose = self._choose_on_cpu if is_on_cpu else self._choose_on_device
        tokens = choose(logits_BV, states, masks_BW, changed)
        chosen = [Sampled(token) for token in tokens]
        if rows := [b for b, state in enumerate(states) if state.params.logprobs is not None and tokens[b] != NO_TOKEN]:
            counts = [states[b].params.logprobs or 0 for b in rows]
            look_up = _with_logprobs if is_on_cpu else _with_logprobs_on_device
            for b, sampled in zip(rows, look_up(logits_BV, rows, [tokens[b] for b in rows], counts), strict=True):
                chosen[b] = sampled
        return chosen

    def _choose_on_cpu(
        self, logits_BV: Tensor, states: Sequence[SamplingState], masks_BW: Tensor | None, changed: Sequence[int]
    ) -> list[int]:
        """Go row by row in the same memory, since fresh megabytes for all rows cost more than what is done in them."""
        tokens, to_change = [NO_TOKEN] * len(states), frozenset(changed)
        for b, (logits_V, state) in enumerate(zip(logits_BV, states, strict=True)):
            scores_V = logits_V.float().numpy()
            if b in to_change:
                if not np.isfinite(scores_V.max()):
                    continue  # which a mask might hide
                self._scores_1V.copy_(logits_V)
                self._change(self._scores_1V, [state], None if masks_BW is None else masks_BW[b : b + 1])
                scores_V = self._scores_1V[0].numpy()
            if state.params.temperature > 0:
                tokens[b] = draw(scores_V, state.params, state.uniform(), self._weights_P)
            elif np.isfinite(scores_V[best := scores_V.argmax()]):
                tokens[b] = int(best)
        return tokens

    def _choose_on_device(
        self, logits_BV: Tensor, states: Sequence[SamplingState], masks_BW: Tensor | None, changed: Sequence[int]
    ) -> list[int]:
        """Choose for all rows at once; nothing is read back before the end, but whether a partial sort was enough."""
        scores_BV = logits_BV
        if changed:
            changed_EV = logits_BV[changed].float()
            self._change(changed_EV, [states[b] for b in changed], None if masks_BW is None else masks_BW[changed])
            scores_BV = logits_BV.to(torch.float32, copy=True)
            scores_BV[changed] = changed_EV
        best_B1, tokens_B1 = scores_BV.max(-1, keepdim=True)
        is_sane_B1 = best_B1.isfinite() & logits_BV.amax(-1, keepdim=True).isfinite()
        if drawn := [b for b, state in enumerate(states) if state.params.temperature > 0]:
            own = [states[b] for b in drawn]
            drawn_G = draw_batch(scores_BV[drawn].float(), [s.params for s in own], [s.uniform() for s in own])
            tokens_B1[drawn] = drawn_G.unsqueeze(1)
        tokens: list[int] = torch.where(is_sane_B1, tokens_B1, NO_TOKEN).squeeze(1).tolist()
        return tokens

    def _change(self, scores_EV: Tensor, states: Sequence[SamplingState], masks_EW: Tensor | None) -> None:
        """Apply masks, min_tokens, logit_bias and the penalties, in place."""
        if masks_EW is not None:
            # Infinities by table and a minimum, since filling where a mask says so takes ten times as long.
            byte_values = masks_EW.contiguous().view(torch.uint8).to(scores_EV.device).int()
            limits_EV = torch.nn.functional.embedding(byte_values, self._limits.to(scores_EV.device)).flatten(1)
            torch.minimum(scores_EV, limits_EV[:, : self.vocab_size], out=scores_EV)
        _penalise(scores_EV, states)


def _penalise(scores_EV: Tensor, states: Sequence[SamplingState]) -> None:
    """Apply min_tokens, logit_bias and the penalties, in place and to the few tokens that they concern only."""
    vocab_size, device = scores_EV.shape[1], scores_EV.device

    def entries(ids: Sequence[npt.ArrayLike]) -> tuple[Tensor, Tensor]:
        """Return the rows and tokens of each row's ids."""
        rows = np.repeat(np.arange(len(ids)), [np.size(own) for own in ids])
        tokens = np.concatenate([np.asarray(own, np.int64) for own in ids])
        return torch.from_numpy(rows).to(device), torch.from_numpy(tokens).to(device)

    if any(state.forbidden for state in states):
        scores_EV[entries([[t for t in state.forbidden if t < vocab_size] for state in states])] = -torch.inf
    if any(state.bias for state in states):
        values = torch.tensor([float(v) for state in states for v in state.bias.values()], device=device)
        scores_EV[entries([list(state.bias) for state in states])] += values
    if any(state.counts for state in states):
        none = np.empty(0)
        at = entries([none if state.counts is None else state.counts.ids for state in states])
        counts = np.concatenate([none if state.counts is None else state.counts.counts for state in states])
        times = torch.from_numpy(counts.astype(np.float32)).to(device)
        repetition, frequency, presence = (
            torch.tensor([float(getattr(state.params, f"{name}_penalty")) for state in states], device=device)[at[0]]
            for name in ("repetition", "frequency", "presence")
        )
        scores_EV[at] = _penalised(scores_EV[at], repetition) - frequency * times - presence * (times > 0)


def _with_logprobs(
    logits_BV: Tensor, rows: Sequence[int], tokens: Sequence[int], counts: Sequence[int]
) -> list[Sampled]:
    """Return the chosen tokens of some rows, with the log probabilities that the raw logits give.

    Args:
        tokens, counts: what was chosen and how many best are wanted, for each of `rows`.
    """
    answers = []
    for b, token, count in zip(rows, tokens, counts, strict=True):
        logits_V = logits_BV[b].float().numpy()
        best = logits_V.max()
        total = float(best) + float(np.log(np.exp(logits_V - best).sum(dtype=np.float64)))
        top = best_first(logits_V, count).tolist() if count else []
        own, *others = (float(logits_V[t]) - total for t in (token, *top))
        answers.append(Sampled(token, own, tuple(zip(top, others, strict=True))))
    return answers


def _with_logprobs_on_device(
    logits_BV: Tensor, rows: Sequence[int], tokens: Sequence[int], counts: Sequence[int]
) -> list[Sampled]:
    """Do the same for all rows at once; equal logits come in any order."""
    logits_LV = logits_BV[rows].float()
    best = logits_LV.topk(min(max(1, *counts), logits_LV.shape[1]))
    ids = torch.cat([torch.tensor(tokens, device=logits_LV.device).unsqueeze(1), best.indices], -1)
    logprobs = logits_LV.gather(1, ids).double() - logits_LV.double().logsumexp(-1, keepdim=True)
    answers = []
    for (token, *top), (own, *others), count in zip(ids.tolist(), logprobs.tolist(), counts, strict=True):
        pairs = zip(top[:count], others[:count], strict=True)
        answers.append(Sampled(token, own, tuple(pair for pair in pairs if pair[1] > -torch.inf)))
    return answers
