"""Choosing the next token of each sequence in a batch.

Order of the steps, as in transformers and vLLM: repetition penalty, temperature, top-k, top-p, min-p, draw.
Shapes:  B sequences · V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pocketvlm.engine.sampling_params import SamplingParams


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
        self._seen: dict[int, Tensor] = {}
        for i, (p, prompt) in enumerate(zip(params, prompts, strict=True)):
            if p.repetition_penalty != 1.0:
                self._seen[i] = torch.zeros(vocab_size, dtype=torch.bool)
                self._seen[i][prompt.cpu()] = True

    def __call__(self, logits_BV: Tensor, rows: Sequence[int]) -> list[int]:
        """The next token of each sequence.

        Args:
            logits_BV: scores, one row a sequence.
            rows: which sequence (index into `params`) each row belongs to.
        """
        chosen = logits_BV.argmax(-1).tolist()
        for b, i in enumerate(rows):
            p = self.params[i]
            if p.temperature > 0 or i in self._seen:
                chosen[b] = self._draw(logits_BV[b].float(), i)
            if i in self._seen:
                self._seen[i][chosen[b]] = True
        return chosen

    def _draw(self, logits_V: Tensor, i: int) -> int:
        p, logits_V = self.params[i], logits_V.clone()
        if i in self._seen:
            seen = self._seen[i].to(logits_V.device)
            scores = logits_V[seen]
            logits_V[seen] = torch.where(scores > 0, scores / p.repetition_penalty, scores * p.repetition_penalty)
        if p.temperature == 0:
            return int(logits_V.argmax())
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
