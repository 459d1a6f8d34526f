"""Choosing the next token of each sequence in a batch.

Order of the steps, as in transformers and vLLM: repetition penalty, temperature, top-k, top-p, min-p, draw.
Shapes:  B sequences · V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pocketvlm.engine.sampling_params import SamplingParams


def seen_tokens(prompts: Sequence[Tensor], vocab_size: int) -> Tensor:
    """bool [B, V]: which tokens each prompt (ids [S]) holds."""
    seen_BV = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
    for row, prompt in zip(seen_BV, prompts, strict=True):
        row[prompt.cpu()] = True
    return seen_BV


def penalise_repetition(scores_BV: Tensor, seen_BV: Tensor, penalty_B: Tensor) -> Tensor:
    """A copy in which seen tokens have worse scores (Keskar et al., arXiv 1909.05858).

    Positive scores are divided by the penalty and negative ones multiplied, as in transformers and vLLM.
    """
    # Only the seen: they are hundreds of 248,094, and products over all of them take ten times as long.
    rows, tokens = seen_BV.nonzero(as_tuple=True)
    seen, penalty = scores_BV[rows, tokens], penalty_B[rows]
    scores_BV = scores_BV.clone()
    scores_BV[rows, tokens] = torch.where(seen > 0, seen / penalty, seen * penalty)
    return scores_BV


def best_tokens(scores_BV: Tensor) -> list[int]:
    """The token of highest score in each row, the first of equals."""
    if scores_BV.device.type == "cpu" and scores_BV.dtype == torch.float32:
        best: list[int] = scores_BV.numpy().argmax(-1).tolist()  # twelve times as fast as PyTorch's
        return best
    return scores_BV.argmax(-1).tolist()


class Sampler:
    """Draws tokens for sequences that each have parameters of their own.

    Args:
        params: one a sequence.
        prompts: ids of each sequence's prompt, for the repetition penalty.
        vocab_size: V.
    """

    def __init__(self, params: Sequence[SamplingParams], prompts: Sequence[Tensor], vocab_size: int) -> None:
        self.params = list(params)
        self._generators = []
        for p in params:
            generator = torch.Generator()
            generator.manual_seed(p.seed & (2**63 - 1)) if p.seed is not None else generator.seed()
            self._generators.append(generator)
        # Beams differ in what they have seen, so `BeamSearch` looks after its own.
        self._penalty_B = torch.tensor([p.repetition_penalty if p.num_beams == 1 else 1.0 for p in params])
        self._seen_BV: Tensor | None = None
        if (self._penalty_B != 1).any():
            self._seen_BV = seen_tokens(
                [
                    prompt if penalty != 1 else prompt[:0]
                    for prompt, penalty in zip(prompts, self._penalty_B, strict=True)
                ],
                vocab_size,
            )

    def __call__(self, logits_BV: Tensor, rows: Sequence[int]) -> list[int]:
        """The next token of each sequence.

        Args:
            logits_BV: scores, one row a sequence.
            rows: which sequence (index into `params`) each row belongs to.
        """
        if self._seen_BV is not None:
            self._seen_BV, self._penalty_B = self._seen_BV.to(logits_BV.device), self._penalty_B.to(logits_BV.device)
            own = list(rows)
            logits_BV = penalise_repetition(logits_BV.float(), self._seen_BV[own], self._penalty_B[own])
        chosen = best_tokens(logits_BV)
        for b, i in enumerate(rows):
            if self.params[i].temperature > 0:
                chosen[b] = self._draw(logits_BV[b].float(), i)
        if self._seen_BV is not None:
            self._seen_BV[own, chosen] = self._penalty_B[own] != 1
        return chosen

    def _draw(self, logits_V: Tensor, i: int) -> int:
        p = self.params[i]
        logits_V = (logits_V - logits_V.max()) / p.temperature  # the best stays at 0, however low the temperature
        if 0 < p.top_k < len(logits_V):
            logits_V[logits_V < logits_V.topk(p.top_k).values[-1]] = -torch.inf
        if p.top_p < 1:
            ordered, index = logits_V.softmax(-1).sort(descending=True)
            # A token stays while the tokens before it have not reached the sum, so the best one always stays.
            logits_V[index[ordered.cumsum(-1) - ordered >= p.top_p]] = -torch.inf
        probabilities = logits_V.softmax(-1)
        if p.min_p > 0:
            probabilities[probabilities < p.min_p * probabilities.max()] = 0
        # Exponential race: the noise depends on the sequence's own generator only, so a batch changes nothing.
        noise = torch.empty(len(probabilities)).exponential_(generator=self._generators[i])
        return int((probabilities / noise.to(probabilities.device)).argmax())
