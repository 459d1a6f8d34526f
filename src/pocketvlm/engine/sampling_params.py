"""How an answer is drawn: options by vLLM's names, checked without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

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
        if not (self.stop is None or isinstance(self.stop, str | list | tuple)):
            raise ConfigError(f"stop={self.stop!r:.80} is neither a string nor a list of strings")
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
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # Compared the right way round, NaN fails too.
        if not number or not low <= value <= high or (above and value == low):
            raise ConfigError(f"{name}={value!r:.40} is not a number {'above' if above else 'from'} {low} to {high}")

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
