"""Choosing the next token of each sequence in a batch.

Order of the steps, as in transformers and vLLM: repetition penalty, temperature, top-k, top-p, min-p, draw.
Shapes:  B sequences · V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from pocketvlm.errors import ConfigError

MAX_STOP_STRINGS, MAX_STOP_LENGTH = 16, 256


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one answer is drawn; names and meanings are vLLM's.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k best tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of best tokens whose probabilities reach this sum.
        min_p: keep tokens at least this fraction as probable as the best one.
        repetition_penalty: above 1 makes tokens of the prompt and the answer so far less likely.
        seed: the same seed gives the same answer, alone or in a batch; None draws one.
        stop: strings that end the answer; they are not part of it.
        max_tokens: at most this many tokens are generated.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        self._check("temperature", self.temperature, 0, 100)
        self._check("top_p", self.top_p, 0, 1, above=True)
        self._check("min_p", self.min_p, 0, 1)
        self._check("repetition_penalty", self.repetition_penalty, 0, 100, above=True)
        for name, least, most in (("top_k", -1, 2**31), ("max_tokens", 1, 2**31)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ConfigError(f"{name}={value!r} is not an integer of at least {least}")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise ConfigError(f"seed={self.seed!r} is not an integer")
        for string in stop:
            if not isinstance(string, str) or not string or len(string) > MAX_STOP_LENGTH:
                raise ConfigError(f"stop={string!r} is not a string of 1 to {MAX_STOP_LENGTH} characters")
        if len(stop) > MAX_STOP_STRINGS:
            raise ConfigError(f"{len(stop)} stop strings were given, at most {MAX_STOP_STRINGS} are allowed")

    @staticmethod
    def _check(name: str, value: Any, low: float, high: float, *, above: bool = False) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value > high or value < low or (above and value == low):
            raise ConfigError(f"{name}={value!r} is not a number {'above' if above else 'from'} {low} to {high}")

    @classmethod
    def from_options(cls, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Self:
        """Options over a checkpoint's defaults; `ConfigError` names an option that does not exist."""
        known = {f.name for f in fields(cls)}
        for name in options:
            if name not in known:
                raise ConfigError(f"option {name!r} is unknown", hint=f"Sampling options: {', '.join(sorted(known))}.")
        return cls(**{**defaults, **{k: v for k, v in options.items() if v is not None}})

    @staticmethod
    def defaults_of(generation_config: Mapping[str, Any]) -> dict[str, Any]:
        """What a `generation_config.json` asks for; without `do_sample` it asks for greedy decoding."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        picked = {k: generation_config[k] for k in names if generation_config.get(k) is not None}
        if not generation_config.get("do_sample", False):
            picked["temperature"] = 0.0
        return picked


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
        logits_V /= p.temperature
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
