"""The sampler for scores on a device: all rows at once, and nothing is read back before the end.

It chooses what `sampler.Sampler` and `beam_search` choose from the same scores.
Shapes as there, and:  G rows that are drawn · K tokens, or beams
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pocketvlm.engine.sampling.draw import LIKELY, NO_TOKEN, rate
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.engine.sampling.sampler import Sampled, SamplingState, Words, byte_limits, changed_rows, penalise


class DeviceSampler:
    """Chooses tokens for any mix of sequences.

    Args:
        vocab_size: V.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._limits = torch.from_numpy(byte_limits())

    def __call__(
        self, logits_BV: Tensor, states: Sequence[SamplingState], masks_BW: Words | None = None
    ) -> list[Sampled]:
        """Do what `Sampler` does, for a tensor on any device."""
        tokens = self._choose(logits_BV, states, masks_BW)
        chosen = [Sampled(token) for token in tokens]
        if rows := [b for b, state in enumerate(states) if state.params.logprobs is not None and tokens[b] != NO_TOKEN]:
            counts = [states[b].params.logprobs or 0 for b in rows]
            found = with_logprobs(logits_BV, rows, [tokens[b] for b in rows], counts)
            for b, sampled in zip(rows, found, strict=True):
                chosen[b] = sampled
        return chosen

    def _choose(self, logits_BV: Tensor, states: Sequence[SamplingState], masks_BW: Words | None) -> list[int]:
        """Choose for all rows; only whether a partial sort was enough is read back on the way."""
        scores_BV = logits_BV
        if changed := changed_rows(states, masks_BW):
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

    def _change(self, scores_EV: Tensor, states: Sequence[SamplingState], masks_EW: Words | None) -> None:
        """Apply masks, min_tokens, logit_bias and the penalties, in place."""

        def put(numbers: npt.NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(numbers).to(scores_EV.device)

        if masks_EW is not None:
            byte_values = put(np.ascontiguousarray(masks_EW).view(np.uint8)).int()
            limits_EV = torch.nn.functional.embedding(byte_values, self._limits.to(scores_EV.device)).flatten(1)
            torch.minimum(scores_EV, limits_EV[:, : self.vocab_size], out=scores_EV)
        penalise(scores_EV, states, put, torch.where)


def with_logprobs(
    logits_BV: Tensor, rows: Sequence[int], tokens: Sequence[int], counts: Sequence[int]
) -> list[Sampled]:
    """Return the chosen tokens of some rows, with the log probabilities that the raw logits give; equal logits come in
    any order.

    Args:
        tokens, counts: what was chosen and how many best are wanted, for each of `rows`.
    """
    logits_LV = logits_BV[rows].float()
    best = logits_LV.topk(min(max(1, *counts), logits_LV.shape[1]))
    ids = torch.cat([torch.tensor(tokens, device=logits_LV.device).unsqueeze(1), best.indices], -1)
    logprobs = logits_LV.gather(1, ids).double() - logits_LV.double().logsumexp(-1, keepdim=True)
    answers = []
    for (token, *top), (own, *others), count in zip(ids.tolist(), logprobs.tolist(), counts, strict=True):
        pairs = zip(top[:count], others[:count], strict=True)
        answers.append(Sampled(token, own, tuple(pair for pair in pairs if pair[1] > -torch.inf)))
    return answers


def draw_batch(
    scores_GV: Tensor, params: Sequence[SamplingParams], uniform: Sequence[float], width: int = 2 * LIKELY
) -> Tensor:
    """`draw` for rows on any device.

    Args:
        scores_GV: float32.
        params, uniform: one a row.
        width: sort so many of the best tokens first; all of them follow where these do not settle what is kept.

    Returns:
        int64 [G], with `NO_TOKEN` for rows without an answer.
    """
    vocab_size = scores_GV.shape[1]

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=scores_GV.device).unsqueeze(1)

    best_G1 = scores_GV.amax(-1, keepdim=True)
    weights_GV = ((scores_GV - best_G1) * column([rate(p.temperature) for p in params]).float()).exp().double()
    top_k = [p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in params]
    is_cut = [k < vocab_size or p.top_p < 1 for k, p in zip(top_k, params, strict=True)]
    if any(is_cut):
        top_p = column([p.top_p if p.top_p < 1 else torch.inf for p in params])
        widest = max([2 * k for k in top_k if k < vocab_size], default=0)
        kept_GV = _kept_weights(scores_GV, weights_GV, column(top_k).long(), top_p, max(width, widest))
        weights_GV = torch.where(column(is_cut).bool(), kept_GV, weights_GV)
    weights_GV = weights_GV * (weights_GV >= column([float(np.float32(p.min_p)) for p in params]))
    sums_GV = weights_GV.cumsum(-1)
    tokens_G1 = torch.searchsorted(sums_GV, column(uniform) * sums_GV[:, -1:], right=True).clamp(max=vocab_size - 1)
    return torch.where(best_G1.isfinite(), tokens_G1, NO_TOKEN).squeeze(1)


def _kept_weights(scores_GV: Tensor, weights_GV: Tensor, top_k_G1: Tensor, top_p_G1: Tensor, width: int) -> Tensor:
    """Weights [G, V] with 0 for what top-k (V keeps all) and top-p (inf keeps all) leave out."""
    vocab_size = scores_GV.shape[1]
    if width < vocab_size:
        tokens_GK = scores_GV.topk(width).indices.sort().values
        scores_GK, order = scores_GV.gather(1, tokens_GK).sort(descending=True, stable=True)
        tokens_GK = tokens_GK.gather(1, order)
    else:
        width = vocab_size
        scores_GK, tokens_GK = scores_GV.sort(descending=True, stable=True)
    is_top_k = top_k_G1 < vocab_size
    last_G1 = scores_GK.gather(1, top_k_G1.clamp(max=width) - 1)
    kept_GK = weights_GV.gather(1, tokens_GK) * ((scores_GK >= last_G1) | ~is_top_k)
    sums_GK = kept_GK.cumsum(-1)
    wanted_G1 = top_p_G1 * torch.where(is_top_k, sums_GK[:, -1:], weights_GV.sum(-1, keepdim=True))
    if width < vocab_size:
        # Of tokens that tie with the last one here, some may be missing.
        lowest_G1 = scores_GK[:, -1:]
        reached_G1 = (kept_GK * (scores_GK > lowest_G1)).sum(-1, keepdim=True) >= wanted_G1
        is_settled = torch.where(is_top_k, last_G1 > lowest_G1, reached_G1 | top_p_G1.isinf())
        is_settled |= lowest_G1.isneginf() | ~scores_GK[:, :1].isfinite()
        if not is_settled.all():
            return _kept_weights(scores_GV, weights_GV, top_k_G1, top_p_G1, vocab_size)
    before_GK = torch.nn.functional.pad(sums_GK[:, :-1], (1, 0))
    return torch.zeros_like(weights_GV).scatter_(1, tokens_GK, kept_GK * (before_GK < wanted_G1))


def best_continuations(
    logits_KV: Tensor, so_far: Sequence[float], seen_KV: npt.NDArray[np.bool_] | None, penalty: float, count: int
) -> tuple[list[int], list[float]]:
    """`beam_search.best_continuations` where the scores are; of equal ones any may come first."""
    device = logits_KV.device
    scores_KV = logits_KV.float().log_softmax(-1)
    if seen_KV is not None:
        rows, tokens = (torch.from_numpy(index).to(device) for index in seen_KV.nonzero())
        seen = scores_KV[rows, tokens]
        scores_KV[rows, tokens] = torch.where(seen > 0, seen / penalty, seen * penalty)
    totals = (scores_KV + torch.tensor(so_far, device=device).unsqueeze(1)).flatten()
    best = totals.topk(min(count, len(totals)))
    return best.indices.tolist(), best.values.tolist()
